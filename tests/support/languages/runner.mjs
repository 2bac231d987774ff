// Runs the vectors against the JavaScript client, or drives it as lines of JSON say: see test_other_languages.py.

import { readFileSync } from "node:fs";
import process from "node:process";
import { createInterface } from "node:readline";

const [client, task, folder] = process.argv.slice(2);
const { Decoder, Session, TransformClient, XformError, ...wire } = await import(client);

const latin1 = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const bytesOf = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

function equal(found, wanted) {
  const [one, other] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (one !== other) throw new Error(`${one} instead of ${other}`);
}

const SPLITS = {
  whole: (data) => [data],
  "byte by byte": (data) => Array.from(data, (_, place) => data.subarray(place, place + 1)),
};

function readsNetstrings(vector, split) {
  const data = Uint8Array.from(vector.hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  const decoder = new Decoder(vector.max_length);
  const strings = split(data).flatMap((piece) => decoder.decode(piece));
  const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  equal(strings.map(hex), vector.payloads);
  const error = decoder.error?.violation ?? (decoder.isInside ? "incomplete" : null);
  equal([error, decoder.error?.offset ?? null], [vector.error, vector.reject_at]);
}

// Only what this client sends: null means that it never sends such a thing.
function sends(vector) {
  const { string, request, control, error } = vector;
  const inside = (framed) => latin1(framed).replace(/^\d+:/, "").slice(0, -1);
  if (request?.client !== undefined || /timeout=9|owl=| timeout=\D| timeout=.* timeout=/.test(string)) return null;
  if (control !== undefined) return equal(inside(wire.encodeControl(control.id, control.control, control.token)), string);
  if (request !== undefined) {
    const steps = request.steps.map(([name, options]) => wire.encodeSpec(name, options));
    const framed = wire.encodeRequest(request.id, steps.join("+"), bytesOf(request.poem), { timeoutMs: request.timeout_ms });
    return equal(inside(framed), string);
  }
  if (error !== "bad-request" || !/^\d+ [^!]*\./.test(string)) return null;
  return fails(error, () => wire.encodeSpec(string.replace(/^\d+ /, "").split(".")[0]));
}

function receives({ string, reply, refusal, error }) {
  if (error !== undefined) return fails(error, () => wire.decodeReply(bytesOf(string)));
  const read = wire.decodeReply(bytesOf(string));
  if (reply !== undefined) return equal({ id: read.id, poem: latin1(read.poem) }, reply);
  const { code, message, retryAfterMs } = read.error;
  return equal({ id: read.id, code, message, retry_after_ms: retryAfterMs }, refusal);
}

function fails(code, work) {
  try {
    work();
  } catch (error) {
    return equal(error.code, code);
  }
  throw new Error(`no ${code}`);
}

function plays(vector, split) {
  let now = 100_000;
  let session;
  const requests = new Map();
  let sent = "";
  const outcomes = [];
  const collect = () => {
    sent += latin1(session.dataToSend());
    for (const { waiter, value, error, notSent } of session.outcomes()) {
      if (waiter === null) outcomes.push(["opening", error === undefined ? "hello" : error.code.replace("refused", "classic")]);
      else outcomes.push([waiter.id, ...(error === undefined ? ["ok", latin1(value)] : [notSent ? "not-sent" : error.code])]);
    }
  };
  const acts = {
    connect: ({ token }) => (session = new Session("there", 1_000, token)).open(),
    request: ([spec, poem]) => {
      const waiter = {};
      const request = session.request(waiter, now, wire.encodeSpec(spec), bytesOf(poem));
      requests.set((waiter.id = request.id), request);
    },
    cancel: (id) => session.cancel(requests.get(id), now),
    receives: (text) => split(bytesOf(text)).forEach((piece) => session.receive(piece, now)),
    ends: (how) => session.lose("", how === "closed"),
    wait_s: (seconds) => {
      for (now += 1_000 * seconds; session.checkAt <= now; ) session.check(now);
    },
    sends: (text) => {
      collect();
      equal(sent, text);
      sent = "";
    },
    outcome: (wanted) => {
      collect();
      equal(outcomes.shift(), wanted);
    },
    close: () => session.close(),
    closes: () => equal([session.isFinished, session.isAborted], [true, false]),
    aborts: () => equal(session.isAborted, true),
  };
  for (const step of vector.steps) {
    const [[act, what]] = Object.entries(step);
    acts[act](what);
  }
  collect();
  equal([sent, outcomes], ["", []]);
}

function runVectors() {
  const report = { passed: 0, failed: [], skipped: [] };
  const run = (kind, vectors, splits, check) => {
    for (const vector of vectors) {
      for (const [name, split] of Object.entries(splits)) {
        const label = `${kind}: ${vector.name}`;
        try {
          if (check(vector, split) === null) report.skipped.push(label);
          else report.passed += 1;
        } catch (error) {
          report.failed.push(`${label}, ${name}: ${error.message}`);
        }
      }
    }
  };
  const once = { whole: SPLITS.whole };
  run("netstrings", JSON.parse(readFileSync(`${folder}/netstrings.json`, "utf8")), SPLITS, readsNetstrings);
  const session = JSON.parse(readFileSync(`${folder}/session.json`, "utf8"));
  run("to_server", session.to_server, once, sends);
  run("to_client", session.to_client, once, receives);
  run("sessions", session.sessions, SPLITS, plays);
  console.log(JSON.stringify(report));
}

function drive() {
  const clients = new Map();
  const controllers = new Map();
  const say = (answer) => console.log(JSON.stringify(answer));
  const poemOf = (order) => (order.bytes === undefined ? order.poem : bytesOf(order.bytes));
  const acts = {
    client: async ({ client: label, name, address, ca, cert, token, maxResultBytes }) => {
      const read = (path) => (path === undefined ? undefined : readFileSync(path));
      const tls = ca === undefined ? false : { ca: read(ca), cert: read(cert), key: read(cert) };
      clients.set(label, new TransformClient(address, { name, token, maxResultBytes, tls }));
    },
    xform: async ({ id, client: name, spec, options, timeoutMs, ...order }) => {
      const controller = new AbortController();
      controllers.set(id, controller);
      const result = await clients.get(name).xform(spec, poemOf(order), { options, timeoutMs, signal: controller.signal });
      return typeof result === "string" ? { text: result } : { bytes: latin1(result) };
    },
    cancel: async ({ target }) => controllers.get(target).abort(),
    list: async ({ client: name }) => ({ text: (await clients.get(name).listTransforms()).transforms.map((each) => each.name).join() }),
    ping: async ({ client: name }) => ({ text: await clients.get(name).ping() }),
    close: async ({ client: name }) => clients.get(name).close(),
  };
  createInterface({ input: process.stdin }).on("line", async (line) => {
    const order = JSON.parse(line);
    try {
      say({ id: order.id, ...(await acts[order.act](order)) });
    } catch (error) {
      const { code, message, retryable, retryAfterMs, poem } = error;
      const kept = poem === poemOf(order) || latin1(poem ?? []) === order.bytes;
      if (error instanceof XformError) say({ id: order.id, error: { code, message, retryable, retryAfterMs, kept } });
      else say({ id: order.id, error: { code: error.name === "AbortError" ? "cancelled" : error.name, message } });
    }
  });
}

if (task === "vectors") runVectors();
else drive();
