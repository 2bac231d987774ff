// Parses Prometheus' text format, and compares two scrapes.

// [{name, labels, value}]
function parseMetrics(text) {
  return text.split("\n").map(parseSample).filter(Boolean);
}

function parseSample(line) {
  const found = /^([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?\s+(\S+)/.exec(line);
  if (!found) return null;
  const [, name, labels = "", value] = found;
  const pairs = labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g);
  return { name, labels: Object.fromEntries(Array.from(pairs, ([, key, text]) => [key, text])), value: parseNumber(value) };
}

const parseNumber = (text) => (text === "+Inf" ? Infinity : Number(text));

// What the charts need of one scrape. Buckets map an upper bound in seconds to a cumulative count.
function summarize(samples, atMs) {
  const summary = { atMs, requests: 0, errors: 0, buckets: new Map(), workers: new Map(), quarantined: [] };
  for (const { name, labels, value } of samples) {
    if (name === "xformd_requests_total") {
      summary.requests += value;
      if (labels.code !== "ok") summary.errors += value;
    } else if (name === "xformd_run_seconds_bucket") {
      const bound = parseNumber(labels.le);
      summary.buckets.set(bound, (summary.buckets.get(bound) ?? 0) + value);
    } else if (name === "xformd_workers") {
      summary.workers.set(labels.state, value);
    } else if (name === "xformd_quarantined" && value > 0) {
      summary.quarantined.push(labels.transform);
    }
  }
  return summary;
}

// Per second; 0 if the server has restarted in between.
function rate(before, after, key) {
  const seconds = (after.atMs - before.atMs) / 1000;
  return seconds > 0 ? Math.max(0, after[key] - before[key]) / seconds : 0;
}

// A quantile in seconds of what ran between two scrapes, as Prometheus' histogram_quantile computes it; null if nothing.
function quantile(share, before, after) {
  const bounds = [...after.buckets.keys()].sort((one, other) => one - other);
  const counts = bounds.map((bound) => after.buckets.get(bound) - (before.buckets.get(bound) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (!(total > 0)) return null;
  const at = counts.findIndex((counted) => counted >= share * total);
  if (bounds[at] === Infinity) return bounds[at - 1] ?? null;
  const [lower, below] = at ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  return lower + ((bounds[at] - lower) * (share * total - below)) / (counts[at] - below);
}
