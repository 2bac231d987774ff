// Says that a run goes on, for how long, and that what is shown below is older. A fast run is not worth a word.

const FAST_MS = 300;
const TICK_MS = 100;

let startedMs = null;
let ticking;

// Typing starts a new run before the old one has ended: its clock starts anew, in the same place.
function startClock(hasOldResult) {
  startedMs = performance.now();
  clearInterval(ticking);
  ticking = setInterval(tick, TICK_MS);
  byId("old").hidden = !hasOldResult;
  if (!byId("running").hidden) tick();
}

const secondsSoFar = () => Math.floor((performance.now() - startedMs) / 1000);

function tick() {
  if (performance.now() - startedMs < FAST_MS && byId("running").hidden) return;
  if (byId("paper").getAttribute("aria-busy") !== "true") announce("Running");
  byId("paper").setAttribute("aria-busy", "true");
  byId("paper").classList.toggle("old", !byId("old").hidden);
  byId("running").hidden = false;
  byId("stop").hidden = false;
  const seconds = secondsSoFar();
  byId("running-text").textContent = seconds ? `Running for ${seconds} s` : "Running";
}

function stopClock() {
  clearInterval(ticking);
  byId("paper").removeAttribute("aria-busy");
  byId("paper").classList.remove("old");
  byId("running").hidden = true;
}

// A result that was there before the run stays, and stays marked.
function showStopped(text) {
  byId("running-text").textContent = text;
  byId("running").hidden = false;
  byId("stop").hidden = true;
  byId("paper").classList.toggle("old", !byId("old").hidden);
}
