// Puts the parts together: what an action changes, what is drawn anew, and when it runs.

const FIRST = "cummingsify";

let listing = { transforms: [], plugins: [], conflicts: [] };
let isAdding = false;

const find = (name) => listing.transforms.find((transform) => transform.name === name);

const actions = {
  find,
  move: (step, by, does) => {
    const from = state.steps.indexOf(step);
    const to = from + by;
    if (to < 0 || to >= state.steps.length) return;
    changeSteps(() => state.steps.splice(to, 0, ...state.steps.splice(from, 1)));
    focusStep(step, does);
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
  // An option has changed: of what a browser itself cannot read as a number the server is not asked.
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
  // These may mean that the server's plugins are not what they were.
  changed: ({ code }) => {
    if (code === "unavailable" || code === "no-such-transform") loadListing();
  },
};

// The run starts first: drawing can wait for the server, and not the other way round.
function changeSteps(change) {
  rememberNow();
  change();
  runNow(outcome);
  remember("pushState");
  drawPipeline();
}

function drawPipeline() {
  drawSteps(actions);
  tellAtStep(outcome);
  drawExamples(find(state.steps[0]?.name), useExample);
  drawCalls(find);
  redrawCatalogue();
}

function redrawCatalogue() {
  const current = state.steps.map((step) => step.name);
  drawCatalogue(listing, byId("search").value, current, isAdding ? addStep : useAlone, addStep);
}

function useAlone(name) {
  const isSame = state.steps.length === 1 && state.steps[0].name === name;
  changeSteps(() => (state.steps = isSame ? state.steps : [makeStep(name)]));
  closeCatalogue();
  refocus(name);
}

function addStep(name) {
  const step = makeStep(name);
  setAdding(false);
  changeSteps(() => state.steps.push(step));
  closeCatalogue();
  const card = byId(`step-${step.id}`);
  (card.querySelector("input, select") ?? card.querySelector("[data-does=remove]")).focus();
  announce(`${name} is step ${state.steps.length}`);
}

// The row that was clicked has been drawn anew.
function refocus(name) {
  document.querySelector(`#transforms [data-name="${name}"]`)?.focus({ preventScroll: true });
}

function useExample({ poem, options }) {
  const [first] = state.steps;
  const isBytes = find(first.name).kind === "bytes";
  changeSteps(() => {
    state.poem = isBytes ? poemFrom(fromLatin1(poem)) : { text: poem, hex: false };
    first.options = makeOptions(Object.fromEntries(Object.entries(options).map(([name, value]) => [name, String(value)])));
  });
  drawPoem();
}

function setAdding(adding) {
  isAdding = adding;
  byId("search-label").textContent = adding ? "Choose a step to add" : "Transforms";
  byId("catalogue").classList.toggle("adding", adding);
}

function openCatalogue(adding) {
  setAdding(adding);
  byId("catalogue").classList.add("open");
  byId("browse").setAttribute("aria-expanded", "true");
  byId("search").value = "";
  redrawCatalogue();
  byId("search").focus();
}

function closeCatalogue() {
  setAdding(false);
  byId("catalogue").classList.remove("open");
  byId("browse").setAttribute("aria-expanded", "false");
}

async function loadListing() {
  try {
    listing = await fetchListing();
  } catch (problem) {
    byId("found").textContent = `No list of transforms: ${problem.message}`;
    return;
  }
  drawTrouble(listing);
  redrawCatalogue();
}

function restore() {
  readFragment();
  drawPoem();
  drawPipeline();
  runNow(outcome);
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
    drawPoem();
    poemChanged(true);
  });
  byId("open").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    state.poem = poemFrom(new Uint8Array(await file.arrayBuffer()));
    event.target.value = "";
    drawPoem();
    poemChanged(true);
  });
}

function listenToCatalogue() {
  byId("search").addEventListener("input", redrawCatalogue);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would press the button that has the focus after this
    document.querySelector("#transforms .transform")?.click();
  });
  byId("catalogue").addEventListener("keydown", (event) => {
    walkRows(event);
    if (event.key !== "Escape" || !(isAdding || byId("catalogue").classList.contains("open"))) return;
    closeCatalogue();
    redrawCatalogue();
    byId("add-step").focus();
  });
  byId("add-step").addEventListener("click", () => openCatalogue(true));
  byId("browse").addEventListener("click", () => {
    if (byId("catalogue").classList.contains("open")) closeCatalogue();
    else openCatalogue(false);
  });
}

function listenToButtons() {
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment is the page's state
    byId("poem").focus();
  });
  byId("again").addEventListener("click", () => runNow(outcome));
  byId("save").addEventListener("click", saveResult);
  byId("copy-result").addEventListener("click", () => copyText(byId("result").textContent, byId("copy-result")));
  byId("copy-call").addEventListener("click", () => copyText(byId("call").textContent, byId("copy-call")));
  byId("share").addEventListener("click", async () => {
    rememberNow();
    await copyText(location.href, byId("share"));
    if (!isPoemInLink()) byId("share").textContent = "Copied without the poem: it is too long";
  });
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
    if (event.key === "Enter") runNow(outcome);
    else if (event.key === "k") openCatalogue(false);
    else return;
    event.preventDefault();
  });
}

async function main() {
  startTheme();
  listenToPoem();
  listenToCatalogue();
  listenToButtons();
  makeCallTabs(find);
  addEventListener("popstate", restore);
  const isFresh = !location.hash;
  if (isFresh) state.steps = [makeStep(FIRST)];
  restore();
  await loadListing();
  if (isFresh && !find(FIRST)) state.steps = listing.transforms.slice(0, 1).map(({ name }) => makeStep(name));
  if (isFresh) remember("replaceState");
  drawPipeline();
  if (isFresh && !find(FIRST)) runNow(outcome);
  startFigures(loadListing);
}

main();
