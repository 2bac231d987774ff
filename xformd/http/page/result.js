// Runs what is on the screen, and shows the outcome. A newer run cancels an older one, whose response is never shown,
// even if it has already arrived.

const TYPING_PAUSE_MS = 150;
const ANNOUNCED_CHARACTERS = 160;

let waiting;
let counting;
let running = null;
let currentProblem = null;
let shown = { bytes: new Uint8Array(), type: "" };

function runSoon(outcome) {
  clearTimeout(waiting);
  waiting = setTimeout(() => runNow(outcome), TYPING_PAUSE_MS);
}

// outcome: {replace(step, name), changed(problem)}
async function runNow(outcome) {
  cancelRun();
  const poem = poemBytes();
  showPoemError(poem ? "" : "Not hexadecimal: write two digits for each byte, as in c3 a9.");
  if (!state.steps.length || !poem) return showNothing();
  const mine = (running = new AbortController());
  const slow = setTimeout(() => byId("paper").setAttribute("aria-busy", "true"), TYPING_PAUSE_MS);
  try {
    const answer = await runSteps(state.steps, poem, mine.signal);
    if (mine === running) showAnswer(answer);
  } catch (problem) {
    if (mine === running) showProblem(problem, outcome);
  } finally {
    clearTimeout(slow);
    if (mine === running) byId("paper").removeAttribute("aria-busy");
  }
}

function cancelRun() {
  clearTimeout(waiting);
  clearInterval(counting);
  running?.abort();
  running = currentProblem = null;
  byId("paper").removeAttribute("aria-busy");
}

function showPoemError(text) {
  byId("poem-error").textContent = text;
  byId("poem-error").hidden = !text;
  byId("poem").setAttribute("aria-invalid", String(Boolean(text)));
}

function showNothing() {
  show({ bytes: new Uint8Array(), type: "" }, "", "");
  clearStepErrors();
  byId("problem").hidden = true;
}

function show(answer, text, facts) {
  shown = answer;
  byId("result").textContent = text;
  byId("result-facts").textContent = facts;
}

function showAnswer(answer) {
  clearStepErrors();
  byId("problem").hidden = true;
  const text = decodeText(answer.bytes);
  show(answer, text ?? hexDump(answer.bytes), describe(answer, text));
  const summary = text === null ? count(answer.bytes.length, "byte") : text;
  announce(`Result: ${summary.length > ANNOUNCED_CHARACTERS ? count(summary.length, "character") : summary}`);
}

function describe({ bytes, type, timing, tookMs }, text) {
  const facts = [count(bytes.length, "byte"), `${milliseconds(tookMs)} ms`];
  if (timing.run !== undefined) facts.push(`run ${milliseconds(timing.run)} ms`);
  if (text === null) facts.push("shown as hex");
  else if (type && type !== "text/plain" && type !== "application/octet-stream") facts.push(`${type}, shown as text`);
  return facts.join(" · ");
}

const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));

function showProblem(problem, outcome) {
  if (!(problem instanceof Problem)) throw problem;
  cancelRun();
  show({ bytes: new Uint8Array(), type: "" }, "", "");
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

function saveResult() {
  const isText = decodeText(shown.bytes) !== null;
  const url = URL.createObjectURL(new Blob([shown.bytes], { type: "application/octet-stream" }));
  element("a", { href: url, download: isText ? "result.txt" : "result.bin" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
