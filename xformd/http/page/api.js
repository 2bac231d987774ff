// Requests to the server. URLs are relative to the page's own, so that it works below a path prefix.

const CONNECTION_RETRY_MS = 3000;

// An error of the table in docs/wire.md, or a failed connection.
class Problem extends Error {
  constructor({ code, detail, title, nearest, retry_after_ms, request_id }) {
    super(detail || title || code);
    Object.assign(this, { code, nearest, retryAfterMs: retry_after_ms, requestId: request_id });
  }
}

// A proxy may serve the page at /prefix, without the final slash.
const serverUrl = (path) => new URL(path, location.origin + location.pathname.replace(/\/?$/, "/")).href;

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(serverUrl(path), { ...options, headers: { ...options.headers, ...tokenHeaders() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (options.body instanceof File) await checkReadable(options.body);
    const detail = "The server does not answer.";
    throw new Problem({ code: "connection-failed", detail, retry_after_ms: CONNECTION_RETRY_MS });
  }
  if (!response.ok) throw await readProblem(response);
  return response;
}

async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({ code: "file-changed", detail: `${file.name} has changed since it was opened: open it again.` });
  }
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

// The poem is bytes or a File. A result stays a Blob: it may be large.
async function runSteps(steps, poem, signal) {
  const start = performance.now();
  const headers = { "Content-Type": "text/plain; charset=utf-8" };
  const response = await ask(transformPath(steps), { method: "POST", headers, body: poem, signal });
  return {
    blob: await response.blob(),
    type: (response.headers.get("Content-Type") ?? "").split(";")[0].trim().toLowerCase(),
    timing: readTiming(response.headers.get("Server-Timing") ?? ""),
    tookMs: performance.now() - start,
  };
}

// "queue;dur=0.0, run;dur=1.2" to {queue: 0, run: 1.2}, in milliseconds.
function readTiming(header) {
  return Object.fromEntries(Array.from(header.matchAll(/([\w-]+);dur=([\d.]+)/g), ([, name, ms]) => [name, Number(ms)]));
}
