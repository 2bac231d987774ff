// Requests to the server. URLs are relative to the page's own, so that it works behind a path prefix.

const CONNECTION_RETRY_MS = 3000;

// An error of the table in docs/wire.md, or a failed connection.
class Problem extends Error {
  constructor({ code, detail, title, nearest, retry_after_ms, request_id }) {
    super(detail || title || code);
    Object.assign(this, { code, nearest, retryAfterMs: retry_after_ms, requestId: request_id });
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, location.href), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const detail = "The server does not answer.";
    throw new Problem({ code: "connection-failed", detail, retry_after_ms: CONNECTION_RETRY_MS });
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

async function readProblem(response) {
  const requestId = response.headers.get("X-Request-Id");
  try {
    return new Problem({ request_id: requestId, ...(await response.json()) });
  } catch {
    const detail = `The server, or a proxy in front of it, answered ${response.status} ${response.statusText}.`;
    return new Problem({ code: `http-${response.status}`, detail, request_id: requestId });
  }
}

const fetchListing = async () => (await ask("transforms")).json();

const fetchMetrics = async () => (await ask("metrics")).text();

async function runSteps(steps, poem, signal) {
  const start = performance.now();
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  const response = await ask(transformUrl(steps), { method: "POST", headers, body: poem, signal });
  const bytes = new Uint8Array(await response.arrayBuffer());
  return {
    bytes,
    type: (response.headers.get("Content-Type") ?? "").split(";")[0].trim().toLowerCase(),
    timing: readTiming(response.headers.get("Server-Timing") ?? ""),
    tookMs: performance.now() - start,
  };
}

// "queue;dur=0.0, run;dur=1.2" to {queue: 0, run: 1.2}, in milliseconds.
function readTiming(header) {
  return Object.fromEntries(Array.from(header.matchAll(/([\w-]+);dur=([\d.]+)/g), ([, name, ms]) => [name, Number(ms)]));
}
