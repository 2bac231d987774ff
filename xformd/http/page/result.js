// Runs what is on the screen, and shows the outcome. A newer run cancels an older one, whose response is never shown,
// even if it has already arrived.

const TYPING_PAUSE_MS = 150;
const ANNOUNCED_CHARACTERS = 160;

const NOTHING = { blob: new Blob(), type: "", bytes: new Uint8Array(), text: "", isWhole: true };

let waiting;
let counting;
let running = null;
let currentProblem = null;
let shown = NOTHING;

function runSoon(outcome) {
  clearTimeout(waiting);
  waiting = setTimeout(() => runNow(outcome), TYPING_PAUSE_MS);
}

// outcome: {replace(step, name), changed(problem)}
async function runNow(outcome) {
  cancelRun();
  const poem = poemBody();
  showPoemError(poem ? "" : "Not hexadecimal: write two digits for each byte, as in c3 a9.");
  if (!state.steps.length || !poem) return showNothing();
  const mine = (running = new AbortController());
  startClock(shown !== NOTHING);
  try {
    const answer = await readAnswer(await runSteps(state.steps, poem, mine.signal));
    if (mine === running) showAnswer(answer);
  } catch (problem) {
    if (mine === running) showProblem(problem, outcome);
  }
}

// Reads as much of a result as is shown. Reading a blob does not block the page, decoding it would.
async function readAnswer(answer) {
  const isWhole = answer.blob.size <= SHOWN_BYTES;
  const bytes = new Uint8Array(await answer.blob.slice(0, SHOWN_BYTES).arrayBuffer());
  return { ...answer, bytes, isWhole, text: decodeText(bytes, isWhole) };
}

function cancelRun() {
  clearTimeout(waiting);
  clearInterval(counting);
  running?.abort();
  running = currentProblem = null;
}

// The person cancels: the server stops the transform when the connection closes.
function stopRun() {
  const seconds = secondsSoFar();
  cancelRun();
  stopClock();
  showStopped(`Cancelled after ${count(seconds, "second")}`);
  announce("Cancelled");
}

function showPoemError(text) {
  byId("poem-error").textContent = text;
  byId("poem-error").hidden = !text;
  byId("poem").setAttribute("aria-invalid", String(Boolean(text)));
}

function showNothing() {
  show(NOTHING, "");
  clearStepErrors();
  byId("problem").hidden = true;
}

function show(answer, facts) {
  stopClock();
  shown = answer;
  drawResult(answer);
  byId("save").disabled = answer === NOTHING;
  byId("result-facts").textContent = byId("result-facts").title = facts;
}

function showAnswer(answer) {
  clearStepErrors();
  byId("problem").hidden = true;
  show(answer, describe(answer));
  const isShort = answer.isWhole && answer.text?.length <= ANNOUNCED_CHARACTERS;
  announce(`Result: ${isShort ? answer.text : sizeOf(answer.blob.size)}`);
}

function describe({ blob, type, timing, tookMs, text }) {
  const facts = [count(blob.size, "byte"), `${milliseconds(tookMs)} ms`];
  if (timing.run !== undefined) facts.push(`run ${milliseconds(timing.run)} ms`);
  if (viewsOf({ blob, type, text }).length > 1) return facts.join(" · ");
  if (text === null) facts.push("shown as hex");
  else if (!isUnknown(type) && type !== "text/plain") facts.push(type);
  return facts.join(" · ");
}

const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));

function showProblem(problem, outcome) {
  if (!(problem instanceof Problem)) throw problem;
  cancelRun();
  show(NOTHING, "");
  clearStepErrors();
  currentProblem = problem;
  drawProblem(problem, showProblemAtStep(outcome), outcome);
  announce(`${problem.code}: ${problem.message}`);
  outcome.changed(problem);
}

// Returns the step where the problem belongs, if it belongs to one. Called again whenever the steps are redrawn.
function showProblemAtStep(outcome) {
  const place = currentProblem ? locateProblem(currentProblem, state.steps) : {};
  return showAtStep(currentProblem, place, outcome.replace) ? place.step : null;
}

// A problem that is shown at its step is not repeated here.
function drawProblem(problem, step, outcome) {
  const lines = [element("p", { class: "code" }, problem.code)];
  if (step) lines.push(element("p", {}, `See step ${state.steps.indexOf(step) + 1}, ${step.name}.`));
  else lines.push(element("p", {}, problem.message));
  if (problem.requestId && problem.code === "internal") {
    lines.push(element("p", { class: "fine" }, `Request ${problem.requestId}`));
  }
  if (problem.retryAfterMs) lines.push(countDown(problem.retryAfterMs, outcome));
  byId("problem").replaceChildren(...lines);
  byId("problem").hidden = false;
}

function countDown(retryAfterMs, outcome) {
  const ends = performance.now() + retryAfterMs;
  const left = element("span", {});
  const tick = () => {
    const seconds = Math.ceil((ends - performance.now()) / 1000);
    left.textContent = `Trying again in ${count(Math.max(seconds, 0), "second")}. `;
    if (seconds <= 0 && document.visibilityState === "visible") runNow(outcome);
  };
  tick();
  counting = setInterval(tick, 250);
  return element("p", { class: "retry" }, left, button("Try now", () => runNow(outcome)));
}
