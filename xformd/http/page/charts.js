// Small live charts of the metrics, while the page is visible. Without metrics there are no charts.

const POLL_MS = 2000;
const FIRST_POLL_MS = 600;
const POINTS = 45;
const LATENCY_WINDOW = 15;
const WIDTH = 120;
const HEIGHT = 34;

let summaries = [];
let polling;

// changed() is called when transforms enter or leave quarantine.
function startCharts(changed) {
  const poll = async () => {
    try {
      summaries = [...summaries, summarize(parseMetrics(await fetchMetrics()), performance.now())].slice(-POINTS - 1);
    } catch (problem) {
      byId("metrics").hidden = true;
      if (problem.code !== "connection-failed") return; // this server has no metrics
      summaries = [];
    }
    if (summaries.length) draw(changed);
    plan(POLL_MS);
  };
  const plan = (delayMs) => {
    clearTimeout(polling);
    if (document.visibilityState === "visible") polling = setTimeout(poll, delayMs);
  };
  document.addEventListener("visibilitychange", () => plan(0));
  plan(FIRST_POLL_MS);
}

function draw(changed) {
  const last = summaries.at(-1);
  byId("charts").replaceChildren(
    rateChart("Requests", "requests", "accent"),
    rateChart("Errors", "errors", "danger"),
    latencyChart(),
    workersChart(last.workers),
  );
  byId("metrics").hidden = false;
  const before = summaries.at(-2) ?? last;
  if (String(before.quarantined) !== String(last.quarantined)) changed();
}

function rateChart(title, key, tone) {
  const rates = summaries.slice(1).map((after, index) => rate(summaries[index], after, key));
  return card(title, `${short(rates.at(-1) ?? 0)}/s`, lines([[rates, tone]]));
}

// Over half a minute: a quantile of a handful of requests means nothing.
function latencyChart() {
  const past = (index) => summaries[Math.max(0, index - LATENCY_WINDOW)];
  const values = (share) => summaries.slice(1).map((after, index) => quantile(share, past(index), after));
  const [half, most] = [values(0.5), values(0.95)];
  const reading = half.at(-1) == null ? "–" : `${duration(half.at(-1))} / ${duration(most.at(-1))}`;
  return card("Run p50 / p95", reading, lines([[most, "muted"], [half, "accent"]]));
}

function workersChart(workers) {
  const states = [...workers].filter(([, number]) => number > 0);
  const total = states.reduce((sum, [, number]) => sum + number, 0);
  const reading = states.map(([state, number]) => `${number} ${state}`).join(", ");
  let left = 0;
  const parts = states.map(([state, number]) => {
    const width = (WIDTH * number) / total;
    left += width;
    return svgElement("rect", { x: left - width, y: 10, width: Math.max(1, width - 1.5), height: 12, class: tone(state) });
  });
  return card("Workers", reading || "none", picture(parts));
}

const tone = (state) => ({ idle: "rest", spare: "rest", busy: "accent" })[state] ?? "warn";

function card(title, reading, drawn) {
  drawn.setAttribute("aria-hidden", "true");
  const name = element("span", { class: "fine" }, title);
  return element("div", { class: "chart" }, name, element("strong", {}, reading), drawn);
}

function picture(parts) {
  return svgElement("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" }, ...parts);
}

// The series share one scale; a null leaves a gap in the line.
function lines(series) {
  const highest = Math.max(1e-9, ...series.flatMap(([values]) => values.map((value) => value ?? 0)));
  const base = svgElement("path", { d: `M0 ${HEIGHT - 1}H${WIDTH}`, class: "base" });
  return picture([base, ...series.map(([values, kind]) => svgElement("path", { d: outline(values, highest), class: kind }))]);
}

function outline(values, highest) {
  let isDown = false;
  return values
    .map((value, index) => {
      if (value === null) return (isDown = false) || "";
      const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (POINTS - 1);
      const y = HEIGHT - 1 - (value / highest) * (HEIGHT - 4);
      const command = `${isDown ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      isDown = true;
      return command;
    })
    .join("");
}

function short(value) {
  if (value === 0 || value >= 10) return Math.round(value).toLocaleString("en");
  return value.toFixed(1);
}

function duration(seconds) {
  const ms = seconds * 1000;
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  return ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${seconds.toFixed(1)} s`;
}
