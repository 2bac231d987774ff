// @ts-self-types="./xformd.d.mts"
/**
 * A client of xformd's session dialect, for Node (18 or later) and Deno. Copy this file and its types; it needs nothing.
 *
 *     const client = new TransformClient("127.0.0.1:11000");
 *     await client.xform("wrap", "one two", { options: { width: 1.5 }, timeoutMs: 2000 });
 *
 * `Session` is the dialect without I/O; `TransformClient` owns the connection. Invariant: a request that has been
 * written is never sent again, unless the server says that it has not begun.
 */

import net from "node:net";
import tls from "node:tls";

const MAX_SPEC = 8_192;
const MAX_STEPS = 32;
const MAX_HEAD_BYTES = MAX_SPEC + 1_024;
const MAX_WAIT_MS = 24 * 60 * 60 * 1_000; // nothing waits for longer because a peer says so
const MAX_LISTING_BYTES = 4 * 1_048_576;
const MAX_VALUES = 250_000;
const MAX_ROWS = 10_000;
const MAX_DEPTH = 16;
const MAX_MESSAGE = 1_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

const SILENCE_MS = 2_000; // how long a server that owes an answer may be silent until it is asked whether it is there
const DOUBT_MS = 1_000; // from then on, until new requests avoid the connection
const GIVE_UP_MS = 2_000; // and until it is given up
const SLOWEST_UPLOAD_BYTES_PER_MS = 50; // a question waits behind what was written before it, at worst at this speed

const CONNECT_MS = 5_000;
const OPENING_MS = 5_000;
const FIRST_DELAY_MS = 100; // after a failure to connect; twice as long after each further one
const LONGEST_DELAY_MS = 2_500;

const NAME = /^[a-z][a-z0-9_-]{0,63}$/;
const NAME_RULE = "a-z, then up to 63 of a-z 0-9 - _";
const COLON = 58;
const COMMA = 44;
const DOT = 46;
const ZERO = 48;
const NINE = 57;

const encoder = new TextEncoder();
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenientDecoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** The table of errors: whether the same request may succeed later. The last three are never on the wire. */
export const ERRORS = Object.freeze({
  "bad-frame": false,
  "bad-request": false,
  "bad-options": false,
  "no-such-transform": false,
  "ambiguous-transform": false,
  gibberish: false,
  "too-large": false,
  "transform-failed": false,
  "transform-died": false,
  timeout: true,
  busy: true,
  unavailable: true,
  cancelled: false,
  "shutting-down": true,
  unauthorized: false,
  forbidden: false,
  internal: false,
  "connection-failed": true,
  "connection-lost": true,
  refused: false,
});
const NEVER_SENT = new Set(["connection-failed", "connection-lost", "refused"]);

/** Every error of a request. `poem` is what was sent, so that a caller can fall back to it. */
export class XformError extends Error {
  constructor(code, message, { retryAfterMs, cause } = {}) {
    super(oneLine(message), cause === undefined ? undefined : { cause });
    this.name = "XformError";
    this.code = code;
    this.retryable = ERRORS[code] ?? false;
    this.retryAfterMs = retryAfterMs;
    this.poem = undefined;
  }
}

/** Make one printable line of a text that may quote a hostile peer. */
function oneLine(text) {
  const words = text.slice(0, 4 * MAX_MESSAGE).split(/\s+/u).filter(Boolean);
  const line = [...words.join(" ").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "\ufffd")];
  return line.length <= MAX_MESSAGE ? line.join("") : `${line.slice(0, MAX_MESSAGE - 1).join("")}\u2026`;
}

// Netstrings.

/** Frame bytes as a netstring, with whatever head comes before them. */
export function encodeNetstring(bytes, head = "") {
  const start = encoder.encode(`${head.length + bytes.length}:${head}`);
  const framed = new Uint8Array(start.length + bytes.length + 1);
  framed.set(start);
  framed.set(bytes, start.length);
  framed[framed.length - 1] = COMMA;
  return framed;
}

/** What breaks the format, at an `offset` from the stream's start: bad_length, bad_terminator or too_long. */
export class NetstringError extends XformError {
  constructor(violation, offset, message) {
    super(violation === "too_long" ? "too-large" : "bad-frame", message);
    this.violation = violation;
    this.offset = offset;
  }
}

/** Decodes a stream strictly, piece by piece; nothing is decoded after an error. */
export class Decoder {
  #maxLength;
  #offset = 0; // in the stream
  #length = -1; // of the string that is being read; -1 before its first digit
  #body = null; // of the string being read; null while in its length
  #filled = 0;

  constructor(maxLength) {
    this.#maxLength = maxLength;
    this.error = null;
  }

  /** Whether a string has begun and is not complete. */
  get isInside() {
    return this.#length >= 0;
  }

  /** Return the strings that are complete. After a violation, which `error` has then, these are what came before. */
  decode(data) {
    const strings = [];
    let position = 0;
    while (position < data.length && this.error === null) {
      position = this.#body === null ? this.#readLength(data, position) : this.#readBody(data, position, strings);
    }
    this.#offset += data.length;
    return strings;
  }

  #readLength(data, position) {
    const byte = data[position];
    if (byte === COLON && this.#length >= 0) {
      this.#body = new Uint8Array(Math.min(this.#length, Math.max(1_024, data.length - position - 1)));
      this.#filled = 0;
    } else if (byte < ZERO || byte > NINE) {
      this.#fail("bad_length", position, "a netstring starts with its length and a colon");
    } else if (this.#length === 0) {
      this.#fail("bad_length", position, "a netstring's length has no leading zeros");
    } else {
      this.#length = Math.max(this.#length, 0) * 10 + byte - ZERO;
      if (this.#length > this.#maxLength) {
        const said = `a netstring of ${this.#length} bytes or more; the limit is ${this.#maxLength} bytes`;
        this.#fail("too_long", position, said);
      }
    }
    return position + 1;
  }

  #readBody(data, position, strings) {
    const piece = data.subarray(position, position + this.#length - this.#filled);
    if (piece.length > 0) {
      if (this.#filled + piece.length > this.#body.length) {
        const larger = new Uint8Array(Math.min(this.#length, 2 * (this.#filled + piece.length)));
        larger.set(this.#body.subarray(0, this.#filled));
        this.#body = larger;
      }
      this.#body.set(piece, this.#filled);
      this.#filled += piece.length;
      return position + piece.length;
    }
    if (data[position] !== COMMA) {
      this.#fail("bad_terminator", position, "a netstring must end with a comma");
    } else {
      strings.push(this.#body);
      this.#length = -1;
      this.#body = null;
    }
    return position + 1;
  }

  #fail(violation, position, message) {
    const offset = this.#offset + position;
    this.error = new NetstringError(violation, offset, `${message} (byte ${offset} of the stream)`);
  }
}

// Specs.

/** Return the wire form of a spec and of more options for it. A value may have any character but `+` and `,`. */
export function encodeSpec(transform, options = {}) {
  const steps = parseSpec(transform);
  const given = Object.entries(options).filter(([, value]) => value !== undefined && value !== null);
  if (given.length > 0) {
    if (steps.length > 1) {
      const instead = `write options into the spec: ${steps[0].name}:option=value+...`;
      throw new XformError("bad-request", `with several steps, ${instead}`);
    }
    for (const [name, value] of given) steps[0].options.set(name, optionText(name, value));
  }
  const spec = steps.map(encodeStep).join("+");
  if (spec.length > MAX_SPEC) {
    throw badSpec(spec, MAX_SPEC, `a spec may have at most ${MAX_SPEC} characters; this one has ${spec.length}`);
  }
  return spec;
}

function encodeStep({ name, options }) {
  const pairs = [...options].sort(([one], [other]) => (one < other ? -1 : 1));
  const texts = pairs.map(([key, value]) => `${key}=${percentEncode(value)}`);
  return texts.length > 0 ? `${name}:${texts.join(",")}` : name;
}

/** Encode every byte but A-Z a-z 0-9 - _ ~. A `.` above all: unescaped, it would end the spec, and no error tells. */
function percentEncode(value) {
  let text = "";
  for (const byte of encoder.encode(value)) {
    const character = String.fromCharCode(byte);
    const hex = byte.toString(16).toUpperCase().padStart(2, "0");
    text += /[A-Za-z0-9_~-]/.test(character) ? character : `%${hex}`;
  }
  return text;
}

function parseSpec(text) {
  if (text.length > MAX_SPEC) {
    throw badSpec(text, MAX_SPEC, `a spec may have at most ${MAX_SPEC} characters; this one has ${text.length}`);
  }
  const steps = [];
  let place = 0;
  for (const part of text.split("+")) {
    if (steps.length === MAX_STEPS) throw badSpec(text, place, `a spec may have at most ${MAX_STEPS} steps`);
    steps.push(parseStep(text, part, place));
    place += part.length + 1;
  }
  return steps;
}

function parseStep(text, part, start) {
  const colon = part.indexOf(":");
  const name = colon < 0 ? part : part.slice(0, colon);
  if (!NAME.test(name)) {
    throw badSpec(text, start, `'${name.slice(0, 80)}' is not a valid transform name: use ${NAME_RULE}`);
  }
  const options = new Map();
  let place = start + name.length + 1;
  for (const option of colon < 0 ? [] : part.slice(colon + 1).split(",")) {
    const equals = option.indexOf("=");
    const key = equals < 0 ? option : option.slice(0, equals);
    if (!NAME.test(key)) {
      throw badSpec(text, place, `'${key.slice(0, 80)}' is not a valid option name: use ${NAME_RULE}`);
    }
    if (equals < 0) throw badSpec(text, place + key.length, `option '${key}' needs a value: ${key}=...`);
    if (options.has(key)) throw badSpec(text, place, `option '${key}' is given twice`);
    options.set(key, percentDecode(text, option.slice(equals + 1), place + equals + 1));
    place += option.length + 1;
  }
  return { name, options };
}

function percentDecode(text, value, place) {
  const wrong = value.search(/%(?![0-9A-Fa-f]{2})/);
  if (wrong >= 0) {
    const rule = "'%' must be followed by two hexadecimal digits (write '%25' for the character itself)";
    throw badSpec(text, place + wrong, rule);
  }
  try {
    return decodeURIComponent(value);
  } catch {
    throw badSpec(text, place, "the value is not valid UTF-8");
  }
}

function badSpec(text, place, message) {
  return new XformError("bad-request", `spec, character ${[...text.slice(0, place)].length + 1}: ${message}`);
}

function optionText(name, value) {
  if (!NAME.test(name)) {
    throw new XformError("bad-request", `'${name}' is not a valid option name: use ${NAME_RULE}`);
  }
  if (Array.isArray(value) && !value.some(Array.isArray)) {
    const items = value.map((item) => optionText(name, item));
    const text = items.join(",");
    const isAmbiguous = text.startsWith("[") || (items.length === 1 && text === "") || items.some((item) => item.includes(","));
    return isAmbiguous ? JSON.stringify(items) : text;
  }
  if (value instanceof Date) return value.toISOString();
  if (!["string", "number", "boolean", "bigint"].includes(typeof value)) {
    const takes = "a string, number, boolean, bigint, Date, or a list of them";
    throw new XformError("bad-request", `option '${name}' takes ${takes}, not ${value === null ? "null" : typeof value}`);
  }
  const text = String(value);
  if (hasLoneSurrogate(text)) {
    const why = "cannot be encoded as UTF-8: it has a lone surrogate";
    throw new XformError("bad-request", `the value of option '${name}' ${why}`);
  }
  return text;
}

function hasLoneSurrogate(text) {
  return /\p{Surrogate}/u.test(text);
}

// Messages.

/** Frame a request. The head's `.` must be its first: what is in it is percent-encoded. */
export function encodeRequest(id, spec, poem, { timeoutMs, traceparent } = {}) {
  const deadline = timeoutMs === undefined ? "" : ` timeout=${Math.min(Math.round(Math.max(timeoutMs, 0)), MAX_WAIT_MS)}`;
  const trace = traceparent === undefined ? "" : ` traceparent=${traceparent}`;
  return encodeNetstring(poem, `${id} ${spec}${deadline}${trace}.`);
}

/** Frame a control message: `list`, `ping`, `cancel`, whose id is that of its request, or `auth`, which has a token. */
export function encodeControl(id, control, token = "") {
  return encodeNetstring(encoder.encode(token), `${id} !${control}.`);
}

/** Decode the inside of a server's first netstring. */
export function decodeHello(string) {
  const text = lenientDecoder.decode(string.subarray(0, MAX_HEAD_BYTES));
  const space = text.indexOf(" ");
  let fields;
  try {
    fields = JSON.parse(space < 0 ? "" : text.slice(space + 1));
  } catch (error) {
    throw new XformError("bad-frame", `the server's first message is not the hello of a session: ${error.message}`);
  }
  const { server = "", max_request_bytes: maxRequestBytes, max_in_flight: maxInFlight } = fields ?? {};
  const isLimit = (value) => Number.isSafeInteger(value) && value >= 1;
  if (text.slice(0, space) !== "xformd/2" || typeof server !== "string" || !isLimit(maxRequestBytes) || !isLimit(maxInFlight)) {
    throw new XformError("bad-frame", "the server's first message is not a hello of this version of the protocol");
  }
  return { server: oneLine(server), maxRequestBytes, maxInFlight };
}

/** Decode a later message of a server: `{id, poem}` or `{id, error}`; throw `bad-frame` if it is neither. */
export function decodeReply(string) {
  const dot = string.subarray(0, MAX_HEAD_BYTES + 1).indexOf(DOT);
  const head = String.fromCharCode(...string.subarray(0, dot < 0 ? 80 : dot));
  const [digits, code, ...words] = head.split(" ");
  const id = wholeNumber(digits);
  if (id === undefined) {
    const rule = "a session's messages start with an id from 1 to 2^53-1";
    throw new XformError("bad-frame", `'${digits.slice(0, 80)}' is not an id: ${rule}`);
  }
  if (dot < 0 || code === undefined) throw new XformError("bad-frame", "a server's message is <id> <code>.<text>");
  const attributes = parseAttributes(words);
  const later = attributes.get("retry-after");
  const retryAfterMs = later === undefined ? undefined : wholeNumber(later);
  if (later !== undefined && retryAfterMs === undefined) {
    const takes = "takes a whole number of milliseconds";
    throw new XformError("bad-frame", `the attribute 'retry-after' ${takes}, not '${later.slice(0, 80)}'`);
  }
  const body = string.subarray(dot + 1);
  if (code === "ok" && id !== 0) return { id, poem: body };
  const isKnown = Object.hasOwn(ERRORS, code) && !NEVER_SENT.has(code);
  const message = lenientDecoder.decode(body);
  const wait = retryAfterMs === undefined ? undefined : Math.min(retryAfterMs, MAX_WAIT_MS);
  const said = isKnown ? message : `${oneLine(code)}: ${message}`;
  return { id, error: new XformError(isKnown ? code : "internal", said, { retryAfterMs: wait }) };
}

function wholeNumber(digits) {
  const value = /^(0|[1-9][0-9]{0,15})$/.test(digits) ? Number(digits) : NaN;
  return Number.isSafeInteger(value) ? value : undefined;
}

function parseAttributes(words) {
  const attributes = new Map();
  for (const word of words) {
    const equals = word.indexOf("=");
    if (equals < 1) throw new XformError("bad-frame", `'${word.slice(0, 80)}' is not an attribute: write <key>=<value>`);
    const key = word.slice(0, equals);
    if (attributes.has(key)) throw new XformError("bad-frame", `the attribute '${key.slice(0, 80)}' is given twice`);
    attributes.set(key, word.slice(equals + 1));
  }
  return attributes;
}

/** Decode what a server answers to `!list`; throw `bad-frame` if it is none, or larger than any real one. */
export function decodeListing(answer) {
  try {
    const values = answer.reduce((count, byte) => count + (byte === 91 || byte === 123 || byte === COMMA), 0);
    if (answer.length > MAX_LISTING_BYTES || values > MAX_VALUES) throw new Error("it has more than 4 MiB or 250,000 values");
    const listed = JSON.parse(strictDecoder.decode(answer));
    for (const key of ["transforms", "plugins", "conflicts"]) checkRows(listed?.[key], key);
    if (!listed.transforms.every(({ name }) => NAME.test(name))) throw new Error("a transform has an invalid name");
    for (const transform of listed.transforms) checkRows((transform.options ??= []), "options");
    checkDepth(listed);
    return listed;
  } catch (error) {
    throw new XformError("bad-frame", `the server's list of transforms is malformed: ${error.message}`);
  }
}

function checkRows(rows, name) {
  if (!Array.isArray(rows) || rows.length > MAX_ROWS) throw new Error(`'${name}' is not a list of at most 10,000`);
  for (const row of rows) {
    const isObject = typeof row === "object" && row !== null && !Array.isArray(row);
    if (!isObject || typeof row.name !== "string") throw new Error(`a row of '${name}' has no name`);
  }
}

function checkDepth(listed) {
  let level = [listed];
  for (let depth = 0; depth < MAX_DEPTH; depth += 1) {
    const inside = level.flatMap((value) => Object.values(value));
    if (inside.some((value) => typeof value === "number" && !Number.isFinite(value))) throw new Error("a number is too large");
    level = inside.filter((value) => typeof value === "object" && value !== null);
  }
  if (level.length > 0) throw new Error("it is nested too deeply");
}

// A session, without I/O.

/**
 * One session. After each call its owner writes `dataToSend()`, hands `outcomes()` to who waits, and closes if
 * `isAborted` or `isFinished`; at `checkAt` it calls `check`. Times are milliseconds of one monotonic clock.
 *
 * An outcome is `{waiter, value}` or `{waiter, error, notSent, mayReconnect}`: `notSent` says that the server is known
 * not to have run the request. `waiter` is null for the opening, whose value is the hello.
 */
export class Session {
  #address;
  #maxResultBytes;
  #decoder;
  #token; // until the server knows it
  #isOpening = true;
  #lastId = 0;
  #answers = 0;
  #waiting = [];
  #inFlight = new Map(); // id to request
  #cancelled = new Set(); // ids that were cancelled, but the server has not said so yet
  #goodbye = null;
  #hasReceived = false;
  #askedAt = null; // it has sent nothing since then
  #isGivingUp = false;
  #writtenSinceHeard = 0;
  #output = [];
  #outcomes = [];

  constructor(address, maxResultBytes, token) {
    this.#address = address;
    this.#maxResultBytes = maxResultBytes;
    this.#decoder = new Decoder(maxResultBytes + MAX_HEAD_BYTES);
    this.#token = token;
    this.hello = null;
    this.isAborted = false;
    this.checkAt = Infinity;
  }

  /** How many requests have no answer yet; a cancelled one counts until the server has confirmed it. */
  get load() {
    return this.#waiting.length + this.#inFlight.size + this.#cancelled.size;
  }

  /** Whether the connection is to be closed once all is sent: nothing new may be asked, and all is answered. */
  get isFinished() {
    return this.#goodbye !== null && this.#inFlight.size === 0 && this.#waiting.length === 0;
  }

  /** Whether it accepts new requests. */
  isOpen(now) {
    return this.hello !== null && this.#goodbye === null && !this.isAborted && !this.#isUnanswered(now, DOUBT_MS);
  }

  dataToSend() {
    const output = this.#output;
    this.#output = [];
    if (output.length < 2) return output[0] ?? new Uint8Array(0);
    const data = new Uint8Array(output.reduce((size, piece) => size + piece.length, 0));
    output.reduce((position, piece) => (data.set(piece, position), position + piece.length), 0);
    return data;
  }

  outcomes() {
    const outcomes = this.#outcomes;
    this.#outcomes = [];
    return outcomes;
  }

  // What the program does.

  /** Begin, once there is a connection. */
  open() {
    this.#output.push(encodeNetstring(encoder.encode("xformd/2")));
    if (this.#token !== undefined) {
      const id = ++this.#lastId;
      this.#inFlight.set(id, { id, isAuth: true });
      this.#output.push(encodeControl(id, "auth", this.#token));
    }
  }

  /** Send a poem, in bytes; its caller stops waiting at `endsAt`. Return what `cancel` takes. */
  request(waiter, now, spec, poem, { endsAt, traceparent } = {}) {
    const id = ++this.#lastId;
    const encode = (at) =>
      encodeRequest(id, spec, poem, { timeoutMs: endsAt === undefined ? undefined : endsAt - at, traceparent });
    return this.#enqueue({ id, waiter, encode, isControl: false }, now);
  }

  /** Send `list` or `ping`. */
  control(waiter, now, control) {
    const id = ++this.#lastId;
    return this.#enqueue({ id, waiter, encode: () => encodeControl(id, control), isControl: true }, now);
  }

  /** Give a request up, at the server too. It has no outcome. */
  cancel(request, now) {
    const place = this.#waiting.indexOf(request);
    if (place >= 0) {
      this.#waiting.splice(place, 1);
    } else if (this.#inFlight.delete(request.id) && !this.isAborted) {
      this.#cancelled.add(request.id);
      this.#ask(encodeControl(request.id, "cancel"), now);
    }
  }

  /** Accept no new requests, and be finished when those in flight are answered. */
  close() {
    this.#goodbye ??= new XformError("shutting-down", "this client is closing");
  }

  // What the connection does.

  /** Take what has arrived. */
  receive(data, now) {
    if (this.isAborted) return;
    this.#hasReceived = true;
    this.#askedAt = null;
    this.#isGivingUp = false;
    this.#writtenSinceHeard = 0;
    this.checkAt = now + SILENCE_MS;
    let violation = null;
    const strings = this.#decoder.decode(data);
    try {
      for (const string of strings) this.#handle(string);
      violation = this.#decoder.error;
    } catch (error) {
      if (!(error instanceof XformError)) throw error;
      violation = error;
    }
    if (violation !== null) this.#breakOff(violation);
    else this.#writeWaiting(now);
  }

  /** Take the connection's end. It is clean if the server closed it in order: only that is an answer. */
  lose(reason, isClean) {
    this.checkAt = Infinity;
    const how = reason || (isClean ? "the server closed it" : "it was broken off");
    const said = this.#goodbye === null ? "" : `: ${this.#goodbye.message}`;
    const lost = () => new XformError("connection-lost", `the connection to ${this.#address} is lost (${how})${said}`);
    const isClassic = isClean && !this.#hasReceived;
    const only = `${this.#address} speaks only the classic dialect: this client needs sessions`;
    this.#failOpening(isClassic ? new XformError("refused", only) : lost());
    this.#failAll(lost);
    this.#cancelled.clear();
    this.isAborted = true;
  }

  /** Ask a server that owes an answer and is silent whether it is there; give it up if that has no answer. */
  check(now) {
    this.checkAt = Infinity;
    if (this.#isGivingUp) {
      const said = `${this.#address} has stopped answering, even a ping: it may be gone`;
      this.#failAll(() => new XformError("connection-lost", said));
      this.isAborted = true;
    } else if (this.#isUnanswered(now, GIVE_UP_MS)) {
      this.#isGivingUp = true;
      this.checkAt = now; // what came while this program did something else is read first
    } else if (this.#askedAt !== null) {
      this.checkAt = now + GIVE_UP_MS;
    } else if (this.#inFlight.size > 0 || this.#cancelled.size > 0) {
      this.#ask(encodeControl(++this.#lastId, "ping"), now);
    }
  }

  // A request on its way.

  #enqueue(request, now) {
    if (this.#goodbye !== null || this.isAborted) {
      const error = this.#goodbye ?? new XformError("shutting-down", "this client is closing");
      this.#outcomes.push({ waiter: request.waiter, error, notSent: true, mayReconnect: true });
    } else {
      this.#waiting.push(request);
      this.#writeWaiting(now);
    }
    return request;
  }

  #writeWaiting(now) {
    // A session that was closed here has accepted what waits; where the server ends it, nothing waits any more.
    if (this.hello === null || this.isAborted || this.#isUnanswered(now, DOUBT_MS)) return;
    while (this.#waiting.length > 0) {
      if (this.#inFlight.size + this.#cancelled.size >= this.hello.maxInFlight) return;
      this.#write(this.#waiting.shift(), now);
    }
  }

  #write(request, now) {
    const data = request.encode(now);
    const size = data.length - data.indexOf(COLON) - 2; // without its frame
    const limit = this.hello.maxRequestBytes;
    if (size > limit) {
      const message = `the request has ${size} bytes; the limit of ${this.#address} is ${limit} bytes`;
      this.#outcomes.push({ waiter: request.waiter, error: new XformError("too-large", message) });
      return;
    }
    if (this.#inFlight.size === 0 && this.#cancelled.size === 0) this.checkAt = now + SILENCE_MS;
    this.#inFlight.set(request.id, request);
    this.#writtenSinceHeard += data.length;
    this.#output.push(data);
  }

  #handle(string) {
    if (this.hello === null) {
      this.hello = decodeHello(string);
      this.#openIfKnown();
      return;
    }
    const { id, poem, error } = decodeReply(string);
    this.#answers += 1;
    if (this.#answers > this.#lastId + 1) throw new XformError("bad-frame", "more answers than requests");
    const request = this.#inFlight.get(id);
    this.#inFlight.delete(id);
    this.#cancelled.delete(id);
    if (error === undefined) {
      if (request !== undefined) this.#settle(request, this.#withinLimit(poem, request));
    } else if (id === 0) {
      this.#goodbye = error;
      this.#failWaiting(error);
    } else if (request !== undefined) {
      if (error.code === "shutting-down") {
        this.#goodbye = error;
        this.#failWaiting(error);
      }
      // Only with a time to come back has the server certainly not begun.
      const notSent = ["shutting-down", "busy"].includes(error.code) && error.retryAfterMs !== undefined;
      this.#settle(request, { error, notSent, mayReconnect: notSent && error.code === "shutting-down" });
    }
  }

  #withinLimit(poem, request) {
    if (poem.length <= this.#maxResultBytes || request.isControl) return { value: poem };
    const message = `the result has ${poem.length} bytes; the limit is ${this.#maxResultBytes} bytes`;
    return { error: new XformError("too-large", message) };
  }

  #settle(request, outcome) {
    if (!request.isAuth) {
      this.#outcomes.push({ waiter: request.waiter, ...outcome });
    } else if (outcome.error === undefined || outcome.error.code === "bad-request") {
      this.#token = undefined; // an older server knows no such message, and needs no token
      this.#openIfKnown();
    } else if (this.#isOpening) {
      this.#failOpening(outcome.error);
      this.isAborted = true;
    }
  }

  #openIfKnown() {
    if (this.#token === undefined && this.hello !== null && this.#isOpening) {
      this.#isOpening = false;
      this.#outcomes.push({ waiter: null, value: this.hello });
    }
  }

  // A server that is silent.

  #ask(data, now) {
    this.#output.push(data);
    if (this.#askedAt === null) {
      this.#askedAt = now;
      this.checkAt = now + GIVE_UP_MS;
    }
  }

  #isUnanswered(now, afterMs) {
    if (this.#askedAt === null || this.hello === null) return false;
    // It may not have heard: at its limit it does not read, and an upload is in the way.
    const isFull = this.#inFlight.size + this.#cancelled.size >= this.hello.maxInFlight;
    return !isFull && now >= this.#askedAt + afterMs + Math.floor(this.#writtenSinceHeard / SLOWEST_UPLOAD_BYTES_PER_MS);
  }

  // The end.

  #breakOff(violation) {
    const said = `${this.#address} sent an unreadable answer: ${violation.message}`;
    const error = () => new XformError(violation.code, said);
    this.#goodbye = error();
    this.#failOpening(error());
    this.#failAll(error);
    this.isAborted = true;
  }

  #failOpening(error) {
    if (!this.#isOpening) return;
    this.#isOpening = false;
    this.#outcomes.push({ waiter: null, error, notSent: true, mayReconnect: false });
  }

  #failAll(makeError) {
    this.#goodbye ??= makeError();
    this.#failWaiting(this.#goodbye);
    const inFlight = [...this.#inFlight.values()];
    this.#inFlight.clear();
    for (const request of inFlight) {
      if (!request.isAuth) this.#outcomes.push({ waiter: request.waiter, error: makeError() });
    }
  }

  #failWaiting(error) {
    for (const request of this.#waiting.splice(0)) {
      this.#outcomes.push({ waiter: request.waiter, error: copyOf(error), notSent: true, mayReconnect: true });
    }
  }
}

function copyOf({ code, message, retryAfterMs, cause }) {
  return new XformError(code, message, { retryAfterMs, cause });
}

// The connection.

/** Why a request did not reach the server, and whether a new connection may help. */
class NotSent extends Error {
  constructor(error, mayReconnect) {
    super(error.message);
    this.error = error;
    this.mayReconnect = mayReconnect;
  }
}

/** One connection and its session. */
class Link {
  #socket;
  #address;
  #opening = withResolvers();
  #timer;
  #isFlushing = false;
  #error = null;
  #hasTcp = false;
  #isConnected = false; // also over TLS
  #hasEnded = false;

  constructor(place, address, { maxResultBytes, token, tlsOptions }) {
    this.#address = address;
    this.session = new Session(address, maxResultBytes, token);
    this.opening = this.#opening.promise;
    const target = place.path === undefined ? { host: place.host, port: place.port } : { path: place.path };
    const name = net.isIP(place.host ?? "") ? {} : { servername: place.host };
    this.#socket = tlsOptions ? tls.connect({ ...target, ...name, ...tlsOptions }) : net.connect(target);
    this.#limit(CONNECT_MS, () => this.#refuse("it does not answer"));
    this.#socket.once("connect", () => (this.#hasTcp = true));
    this.#socket.once(tlsOptions ? "secureConnect" : "connect", () => this.#open());
    this.#socket.on("data", (data) => this.act((session, now) => session.receive(data, now)));
    this.#socket.on("end", () => (this.#hasEnded = true));
    this.#socket.on("error", (error) => (this.#error = error));
    this.#socket.on("close", () => this.#close(tlsOptions));
  }

  /** Do something to the session, and what comes of it. */
  act(work) {
    const now = performance.now();
    const result = work(this.session, now);
    for (const { waiter, value, error, notSent, mayReconnect } of this.session.outcomes()) {
      const raised = notSent ? new NotSent(error, mayReconnect) : error;
      const { resolve, reject } = waiter ?? this.#opening;
      if (waiter === null) clearTimeout(this.#timer);
      if (raised === undefined) resolve(waiter === null ? this : value);
      else reject(raised);
    }
    if (!this.#isFlushing) {
      this.#isFlushing = true;
      queueMicrotask(() => this.#flush()); // requests that begin together leave together
    }
    return result;
  }

  /** Return the answer to a message; on `stop` it is given up at the server too. */
  async ask(send, stop) {
    const waiter = withResolvers();
    const request = this.act((session, now) => send(session, waiter, now));
    const giveUp = () => this.act((session, now) => session.cancel(request, now));
    return await stop.race(waiter.promise, giveUp);
  }

  close() {
    this.act((session) => session.close());
  }

  #open() {
    this.#isConnected = true;
    this.#socket.setNoDelay(true);
    this.#socket.setKeepAlive(true, CONNECT_MS);
    const silent = `${this.#address} accepted the connection and did not answer within ${OPENING_MS / 1_000} s`;
    this.#limit(OPENING_MS, () => this.#fail(new XformError("connection-failed", silent)));
    this.act((session) => session.open());
  }

  #flush() {
    this.#isFlushing = false;
    const { session } = this;
    const data = session.dataToSend();
    if (data.length > 0 && !this.#socket.destroyed) this.#socket.write(data);
    if (session.isAborted) this.#socket.destroy();
    else if (session.isFinished) this.#socket.end();
    if (session.hello === null) return;
    clearTimeout(this.#timer);
    if (session.load > 0) {
      this.#socket.ref();
      if (session.checkAt < Infinity) {
        const delayMs = Math.min(Math.max(0, session.checkAt - performance.now()), MAX_TIMER_MS);
        this.#timer = setTimeout(() => this.act((each) => each.check(performance.now())), delayMs);
      }
    } else {
      this.#socket.unref(); // an idle connection does not keep a program running
    }
  }

  #limit(delayMs, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, delayMs);
  }

  #refuse(reason, cause) {
    const said = `cannot connect to ${this.#address}: ${reason}; is 'xformd serve' running there?`;
    this.#fail(new XformError("connection-failed", said, { cause }));
  }

  #fail(error) {
    clearTimeout(this.#timer);
    this.#opening.reject(new NotSent(error, false));
    this.#socket.destroy();
  }

  #close(hasTls) {
    clearTimeout(this.#timer);
    const { session } = this;
    const isOfHandshake = hasTls && this.#hasTcp && (!this.#isConnected || isOfTls(this.#error));
    if (isOfHandshake && session.hello === null) {
      const reason = this.#error === null ? "the server ended the handshake" : this.#error.message;
      const said = `cannot connect to ${this.#address}: TLS failed: ${reason}`;
      this.#fail(new XformError("connection-failed", said, { cause: this.#error ?? undefined }));
    } else if (!this.#isConnected) {
      this.#refuse(words(this.#error), this.#error);
    }
    if (!session.isAborted) {
      const isReset = this.#error === null || ["ECONNRESET", "EPIPE"].includes(this.#error.code);
      this.act((each) => each.lose(isReset ? "" : words(this.#error), this.#hasEnded && this.#error === null));
    }
  }
}

function withResolvers() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

function isOfTls(error) {
  return /^ERR_(SSL|TLS)|CERT|SIGNATURE|ALTNAME/.test(error?.code ?? "");
}

function words(error) {
  if (error === null) return "it does not answer";
  const known = {
    ECONNREFUSED: "Connection refused",
    ECONNRESET: "Connection reset by peer",
    EHOSTUNREACH: "No route to host",
    ENETUNREACH: "Network is unreachable",
    ETIMEDOUT: "it does not answer",
    ENOENT: "No such file or directory",
    EACCES: "Permission denied",
    ENOTFOUND: `DNS lookup failed: no results for hostname lookup: ${error.hostname}`,
  };
  return known[error.code] ?? (error.message || error.errors?.[0]?.message || "it does not answer");
}

/** What ends a request before its answer: its deadline, or its caller's signal. */
class Stop {
  #stopped = withResolvers();
  #timer;
  #onAbort;

  constructor(address, timeoutMs, signal) {
    this.endsAt = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    this.signal = signal;
    this.#stopped.promise.catch(() => {}); // nobody may be waiting
    if (timeoutMs !== undefined) {
      const said = `no answer from ${address} within ${timeoutMs / 1_000} s`;
      const expire = () => this.#stopped.reject(new XformError("timeout", said));
      this.#timer = setTimeout(expire, Math.min(timeoutMs, MAX_TIMER_MS));
    }
    this.#onAbort = () => this.#stopped.reject(signal.reason);
    signal?.addEventListener("abort", this.#onAbort, { once: true });
  }

  /** Return what a promise gives, unless the stop comes first, before which `giveUp` is called. */
  async race(promise, giveUp = () => {}) {
    promise.catch(() => {});
    let isStopped = false;
    const stopped = this.#stopped.promise.catch((error) => {
      isStopped = true;
      throw error;
    });
    try {
      return await Promise.race([promise, stopped]);
    } finally {
      if (isStopped) giveUp();
    }
  }

  clear() {
    clearTimeout(this.#timer);
    this.signal?.removeEventListener("abort", this.#onAbort);
  }
}

/** A client of one server. Connects on the first request, and again on the next one after the connection has ended. */
export class TransformClient {
  #place;
  #name;
  #options;
  #link = null;
  #attempt = null;
  #failures = 0;
  #restsUntil = 0;
  #isClosed = false;

  /**
   * @param {string | number} address `HOST:PORT`, `tls:HOST:PORT`, `unix:PATH`, a host or a port.
   * @param {object} options `tls` is true, or what Node's `tls.connect` takes (`ca`, `cert`, `key`, `servername`).
   */
  constructor(address = "127.0.0.1:11000", { tls: tlsOptions = false, token, name, maxResultBytes = 10_485_760 } = {}) {
    this.#place = findPlace(String(address));
    this.#name = name ?? this.#place.name;
    const hasTls = this.#place.path === undefined && (this.#place.hasTls || tlsOptions);
    this.#options = { token, maxResultBytes, tlsOptions: hasTls ? { ...(tlsOptions === true ? {} : tlsOptions) } : null };
  }

  /**
   * Transform a poem. The result is a string for a string, and bytes for bytes; `result` says otherwise.
   *
   * Rejects with an `XformError`; if `signal` is aborted, with its reason, and the server is told.
   */
  async xform(transform, poem, { options, timeoutMs, signal, result, traceparent } = {}) {
    const isText = typeof poem === "string";
    try {
      const data = toBytes(poem);
      const spec = encodeSpec(transform, options);
      const trace = /^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(traceparent ?? "") ? traceparent : undefined;
      const send = (stop) => (session, waiter, now) =>
        session.request(waiter, now, spec, data, { endsAt: stop.endsAt, traceparent: trace });
      const answer = await this.#ask(send, { timeoutMs, signal }, false);
      return (result ?? (isText ? "text" : "bytes")) === "text" ? toText(answer) : answer.slice();
    } catch (error) {
      if (error instanceof XformError) error.poem = poem;
      throw error;
    }
  }

  /** Return what the server offers, as `xformd list-transforms --json` prints it. */
  async listTransforms({ timeoutMs, signal } = {}) {
    const send = () => (session, waiter, now) => session.control(waiter, now, "list");
    return decodeListing(await this.#ask(send, { timeoutMs, signal }, true));
  }

  /** Return the server's name and version, and what it says of itself. */
  async ping({ timeoutMs, signal } = {}) {
    let server = "";
    const send = () => (session, waiter, now) => {
      server = session.hello.server;
      return session.control(waiter, now, "ping");
    };
    const said = oneLine(lenientDecoder.decode(await this.#ask(send, { timeoutMs, signal }, true)));
    return said ? `${server}, ${said}` : server;
  }

  /** Take no more requests; the connection closes once those in flight are answered. */
  close() {
    this.#isClosed = true;
    this.#link?.close();
  }

  async #ask(makeSend, { timeoutMs, signal }, mayRunTwice) {
    if (timeoutMs !== undefined && !(timeoutMs > 0 && timeoutMs < Infinity)) {
      throw new RangeError(`timeoutMs must be a number of milliseconds above 0, not ${timeoutMs}`);
    }
    signal?.throwIfAborted();
    const stop = new Stop(this.#name, timeoutMs, signal);
    try {
      for (let repeats = 0; ; repeats += 1) {
        try {
          const link = await this.#open(stop);
          return await link.ask(makeSend(stop), stop);
        } catch (error) {
          const mayRepeat = error instanceof NotSent ? error.mayReconnect : mayRunTwice && isLoss(error);
          if (mayRepeat && repeats < 2) continue;
          if (error instanceof NotSent) throw copyOf(error.error);
          if (error.code === "connection-lost" && !mayRunTwice) {
            error.message += "; the request may have run: repeat it only if that is harmless";
          }
          throw error;
        }
      }
    } finally {
      stop.clear();
    }
  }

  async #open(stop) {
    if (this.#isClosed) throw new XformError("connection-failed", "this TransformClient is closed: make a new one");
    if (this.#link?.session.isOpen(performance.now())) return this.#link;
    this.#attempt ??= this.#connect().finally(() => (this.#attempt = null));
    return await stop.race(this.#attempt);
  }

  async #connect() {
    const restMs = this.#restsUntil - performance.now();
    if (restMs > 0) await new Promise((resolve) => setTimeout(resolve, restMs));
    try {
      this.#link = await new Link(this.#place, this.#name, this.#options).opening;
    } catch (error) {
      this.#failures += 1;
      const delayMs = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(this.#failures - 1, 16));
      this.#restsUntil = performance.now() + delayMs * (1 - Math.random() / 2); // so that not all come at once
      throw error;
    }
    this.#failures = 0;
    if (this.#isClosed) this.#link.close();
    return this.#link;
  }
}

function isLoss(error) {
  return error.code === "connection-lost" || error.code === "shutting-down";
}

function toBytes(poem) {
  if (poem instanceof Uint8Array) return poem;
  if (typeof poem !== "string") throw new TypeError(`a poem must be a string or a Uint8Array, not ${typeof poem}`);
  if (hasLoneSurrogate(poem)) {
    throw new XformError("gibberish", "the poem contains a lone surrogate: it cannot be sent as UTF-8");
  }
  return encoder.encode(poem);
}

function toText(answer) {
  try {
    return strictDecoder.decode(answer);
  } catch {
    throw new XformError("gibberish", "the result is not UTF-8: send the poem as bytes to get bytes");
  }
}

function findPlace(address) {
  const [, hasTls, rest] = /^(tls:)?(.*)$/s.exec(address);
  const path = /^unix:([^:=]+)$/.exec(address)?.[1];
  if (path !== undefined) return { path, name: address };
  const full = /^\d+$/.test(rest) ? `127.0.0.1:${rest}` : rest;
  const match = /^(\[[0-9A-Fa-f:.]+\]|[^:[\]/]+)(?::(\d{1,9}))?$/.exec(full);
  if (match === null) throw new TypeError(`server address '${address}': write HOST:PORT, tls:HOST:PORT or unix:/run/xformd.sock`);
  const port = Number(match[2] ?? 11_000);
  if (port < 1 || port > 65_535) throw new TypeError(`server address '${address}': a port is 1 to 65535`);
  return { host: match[1].replace(/^\[|\]$/g, ""), port, hasTls: hasTls !== undefined, name: address };
}
