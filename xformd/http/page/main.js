// Connects the parts: what an action changes, what is redrawn, and when it runs.

const DEFAULT_TRANSFORM = "cummingsify";
const NO_POEM = { text: "", hex: false };

let listing = { transforms: [], plugins: [], conflicts: [] };
let problems = []; // of what has changed
let isAdding = false;

const find = (name) => listing.transforms.find((transform) => transform.name === name);

const actions = {
  find,
  move: (step, by, action) => {
    const from = state.steps.indexOf(step);
    const to = from + by;
    if (to < 0 || to >= state.steps.length) return;
    changeSteps(() => state.steps.splice(to, 0, ...state.steps.splice(from, 1)));
    focusStep(step, action);
    announce(`${step.name} is now step ${to + 1} of ${state.steps.length}`);
  },
  remove: (step) => {
    const at = state.steps.indexOf(step);
    changeSteps(() => state.steps.splice(at, 1));
    focusStep(state.steps[Math.min(at, state.steps.length - 1)], "remove");
    announce(`${step.name} is removed`);
  },
  replace: (step, name) => {
    changeSteps(() => (step.name = name));
    focusStep(step, "remove");
  },
  // An option has changed. What the browser cannot read as a number is not sent.
  edited: (problem, now = false) => {
    rememberSoon();
    drawCalls(find);
    if (problem) showProblem(problem, outcome);
    else if (now) runNow(outcome);
    else runSoon(outcome);
  },
};

const outcome = {
  replace: actions.replace,
  // These may mean that the server has reloaded its plugins.
  changed: ({ code }) => {
    if (code === "unavailable" || code === "no-such-transform") loadListing();
  },
};

// The run starts first: the server can work while the page is redrawn.
function changeSteps(change) {
  rememberNow();
  change();
  runNow(outcome);
  remember("pushState");
  drawPipeline();
}

function drawPipeline() {
  drawSteps(actions);
  showProblemAtStep(outcome);
  drawExamples(find(state.steps[0]?.name), useExample);
  drawCalls(find);
  redrawCatalog();
}

function redrawCatalog() {
  const current = state.steps.map((step) => step.name);
  drawCatalog(listing, byId("search").value, current, isAdding ? addStep : useAlone, addStep);
}

function useAlone(name) {
  const isSame = state.steps.length === 1 && state.steps[0].name === name;
  changeSteps(() => (state.steps = isSame ? state.steps : [makeStep(name)]));
  closeCatalog();
  refocus(name);
}

function addStep(name) {
  const step = makeStep(name);
  setAdding(false);
  changeSteps(() => state.steps.push(step));
  closeCatalog();
  const card = byId(`step-${step.id}`);
  (card.querySelector("input, select") ?? card.querySelector("[data-action=remove]")).focus();
  announce(`${name} is step ${state.steps.length}`);
}

// The row that was clicked has been redrawn.
function refocus(name) {
  document.querySelector(`#transforms [data-name="${name}"]`)?.focus({ preventScroll: true });
}

function useExample({ poem, options }) {
  const [first] = state.steps;
  const isBytes = find(first.name).kind === "bytes";
  changeSteps(() => {
    state.poem = isBytes ? poemFrom(fromLatin1(poem)) : { text: poem, hex: false };
    const texts = Object.entries(options).map(([name, value]) => [name, optionText(value)]);
    first.options = makeOptions(Object.fromEntries(texts));
  });
  redrawPoem();
}

function setAdding(adding) {
  isAdding = adding;
  byId("search-label").textContent = adding ? "Choose a step to add" : "Transforms";
  byId("catalog").classList.toggle("adding", adding);
}

function openCatalog(adding) {
  setAdding(adding);
  byId("catalog").classList.add("open");
  byId("browse").setAttribute("aria-expanded", "true");
  byId("search").value = "";
  redrawCatalog();
  byId("search").focus();
}

function closeCatalog() {
  setAdding(false);
  byId("catalog").classList.remove("open");
  byId("browse").setAttribute("aria-expanded", "false");
}

async function loadListing() {
  try {
    listing = await fetchListing();
  } catch (problem) {
    byId("found").textContent = `Cannot list the transforms: ${problem.message}`;
    if (problem.code === "unauthorized") askForToken(givenToken ? problem.message : "");
    return;
  }
  drawWarnings(listing, problems);
  redrawCatalog();
}

function restore() {
  readFragment();
  redrawPoem();
  drawPipeline();
  runNow(outcome);
}

function redrawPoem() {
  drawPoem(() => setPoem(NO_POEM));
}

function setPoem(poem) {
  rememberNow();
  state.poem = { ...poem };
  redrawPoem();
  poemChanged(true);
  if (!poem.file) byId("poem").focus();
}

async function openFile(file) {
  try {
    if (file) setPoem(await poemFromFile(file));
  } catch {
    showPoemError(`Cannot read ${file.name}.`); // a folder, for example
  }
}

function poemChanged(now) {
  rememberSoon();
  drawPoemSize();
  drawCalls(find);
  if (now) runNow(outcome);
  else runSoon(outcome);
}

function listenToPoem() {
  byId("poem").addEventListener("input", (event) => {
    state.poem.text = event.target.value;
    poemChanged(false);
  });
  byId("hex").addEventListener("change", (event) => {
    switchHex(event.target.checked);
    redrawPoem();
    poemChanged(true);
  });
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    openFile(event.target.files[0]);
    event.target.value = "";
  });
  listenToDrops();
}

// Else the browser would leave the page, and show the file.
function listenToDrops() {
  addEventListener("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files")) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    openFile(file);
  });
}

function listenToCatalog() {
  byId("search").addEventListener("input", redrawCatalog);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // else it would press the button that gets the focus
    document.querySelector("#transforms .transform")?.click();
  });
  byId("catalog").addEventListener("keydown", (event) => {
    walkRows(event);
    if (event.key !== "Escape" || !(isAdding || byId("catalog").classList.contains("open"))) return;
    closeCatalog();
    redrawCatalog();
    byId("add-step").focus();
  });
  byId("add-step").addEventListener("click", () => openCatalog(true));
  byId("browse").addEventListener("click", () => {
    if (byId("catalog").classList.contains("open")) closeCatalog();
    else openCatalog(false);
  });
}

function listenToButtons() {
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment is the page's state
    byId(state.poem.file ? "open" : "poem").focus();
  });
  byId("again").addEventListener("click", () => runNow(outcome));
  byId("stop").addEventListener("click", () => {
    stopRun();
    byId("again").focus();
  });
  byId("save").addEventListener("click", () => saveResult(shown));
  byId("copy-result").addEventListener("click", () => {
    copyText(shown.text ?? byId("result").textContent, byId("copy-result"));
  });
  byId("copy-call").addEventListener("click", () => copyText(byId("call").textContent, byId("copy-call")));
  byId("share").addEventListener("click", async () => {
    rememberNow();
    await copyText(location.href, byId("share"));
    if (!isPoemInLink()) byId("share").textContent = "Copied without the poem: it is too long";
  });
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    if (event.key === "Enter") runNow(outcome);
    else if (event.key === "k") openCatalog(false);
    else return;
    event.preventDefault();
  });
}

async function useOtherToken() {
  await loadListing();
  if (!find(state.steps[0]?.name)) state.steps = listing.transforms.slice(0, 1).map(({ name }) => makeStep(name));
  drawPipeline();
  runNow(outcome);
  startCharts(loadListing);
}

async function main() {
  startTheme();
  drawLinks();
  listenToPoem();
  listenToCatalog();
  listenToButtons();
  listenToToken(useOtherToken);
  makeCallTabs(find);
  addEventListener("popstate", restore);
  const isFresh = !location.hash;
  if (isFresh) state.steps = [makeStep(DEFAULT_TRANSFORM)];
  restore();
  await loadListing();
  if (isFresh && !find(DEFAULT_TRANSFORM)) state.steps = listing.transforms.slice(0, 1).map(({ name }) => makeStep(name));
  if (isFresh) remember("replaceState");
  drawPipeline();
  if (isFresh && !find(DEFAULT_TRANSFORM)) runNow(outcome);
  startCharts(loadListing);
  followChanges(async (found) => {
    problems = found;
    await loadListing();
    drawPipeline();
    runNow(outcome);
  });
}

main();
