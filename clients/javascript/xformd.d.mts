/** A client of xformd's session dialect, for Node and Deno: the types of xformd.mjs. */

export type ErrorCode =
  | "bad-frame"
  | "bad-request"
  | "bad-options"
  | "no-such-transform"
  | "ambiguous-transform"
  | "gibberish"
  | "too-large"
  | "transform-failed"
  | "transform-died"
  | "timeout"
  | "busy"
  | "unavailable"
  | "cancelled"
  | "shutting-down"
  | "unauthorized"
  | "forbidden"
  | "internal"
  | "connection-failed"
  | "connection-lost"
  | "refused";

/** The table of errors: whether the same request may succeed later. */
export const ERRORS: Readonly<Record<ErrorCode, boolean>>;

export class XformError extends Error {
  constructor(code: ErrorCode, message: string, details?: { retryAfterMs?: number; cause?: unknown });
  readonly code: ErrorCode;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  /** How long to wait before another try, if the server named a time. */
  readonly retryAfterMs: number | undefined;
  /** What was sent, so that a caller can fall back to it. */
  poem: string | Uint8Array | undefined;
}

export type OptionItem = string | number | boolean | bigint | Date;
/** The options of one transform; one that is null or undefined counts as left out. */
export type Options = Record<string, OptionItem | readonly OptionItem[] | null | undefined>;

export interface AskOptions {
  /** The deadline, here and at the server. */
  timeoutMs?: number;
  /** Gives the request up, at the server too; the call rejects with its reason. */
  signal?: AbortSignal;
}

export interface XformOptions extends AskOptions {
  options?: Options;
  /** The W3C trace that the request belongs to. */
  traceparent?: string;
}

/** What Node's `tls.connect` takes; the most needed of it. */
export interface TlsOptions {
  ca?: string | Uint8Array | (string | Uint8Array)[];
  cert?: string | Uint8Array;
  key?: string | Uint8Array;
  servername?: string;
  [name: string]: unknown;
}

export interface ClientOptions {
  /** TLS to a server on TCP; not needed where the address starts with `tls:`. */
  tls?: boolean | TlsOptions;
  /** Shows the server who this is, where that has an access file. */
  token?: string;
  /** The server's name in messages; by default its address. */
  name?: string;
  /** The longest result to accept; 10 MiB by default. */
  maxResultBytes?: number;
}

export interface Option {
  name: string;
  type: string;
  required: boolean;
  default?: unknown;
  takes?: string;
  description?: string;
  [more: string]: unknown;
}

export interface Transform {
  name: string;
  summary: string;
  options: Option[];
  distribution: string;
  version: string;
  [more: string]: unknown;
}

export interface Listing {
  transforms: Transform[];
  plugins: { name: string; [more: string]: unknown }[];
  conflicts: { name: string; [more: string]: unknown }[];
  [more: string]: unknown;
}

export class TransformClient {
  /** A client of the server at `HOST:PORT`, `tls:HOST:PORT`, `unix:PATH`, a host or a port. It does not connect yet. */
  constructor(address?: string | number, options?: ClientOptions);
  xform(transform: string, poem: string | Uint8Array, options: XformOptions & { result: "text" }): Promise<string>;
  xform(transform: string, poem: string | Uint8Array, options: XformOptions & { result: "bytes" }): Promise<Uint8Array>;
  xform(transform: string, poem: string, options?: XformOptions): Promise<string>;
  xform(transform: string, poem: Uint8Array, options?: XformOptions): Promise<Uint8Array>;
  /** What the server offers, as `xformd list-transforms --json` prints it. */
  listTransforms(options?: AskOptions): Promise<Listing>;
  /** The server's name and version, and what it says of itself. */
  ping(options?: AskOptions): Promise<string>;
  /** Take no more requests; the connection closes once those in flight are answered. */
  close(): void;
}

// The dialect without I/O, for those who have a connection of their own. Times are milliseconds of a monotonic clock.

export interface Hello {
  server: string;
  maxRequestBytes: number;
  maxInFlight: number;
}

/** What came of a request, or of the opening, whose waiter is null. */
export interface Outcome {
  waiter: unknown;
  value?: Uint8Array | Hello;
  error?: XformError;
  /** The server is known not to have run the request. */
  notSent?: boolean;
  /** A new connection to the same server may help. */
  mayReconnect?: boolean;
}

/** A request of a session, for `cancel`. */
export interface Pending {
  readonly id: number;
}

export class Session {
  constructor(address: string, maxResultBytes: number, token?: string);
  readonly hello: Hello | null;
  readonly isAborted: boolean;
  readonly checkAt: number;
  readonly load: number;
  readonly isFinished: boolean;
  isOpen(now: number): boolean;
  dataToSend(): Uint8Array;
  outcomes(): Outcome[];
  open(): void;
  request(
    waiter: unknown,
    now: number,
    spec: string,
    poem: Uint8Array,
    options?: { endsAt?: number; traceparent?: string },
  ): Pending;
  control(waiter: unknown, now: number, control: "list" | "ping"): Pending;
  cancel(request: Pending, now: number): void;
  close(): void;
  receive(data: Uint8Array, now: number): void;
  lose(reason: string, isClean: boolean): void;
  check(now: number): void;
}

export class NetstringError extends XformError {
  readonly violation: "bad_length" | "bad_terminator" | "too_long";
  readonly offset: number;
}

export class Decoder {
  constructor(maxLength: number);
  readonly error: NetstringError | null;
  readonly isInside: boolean;
  decode(data: Uint8Array): Uint8Array[];
}

export function encodeNetstring(bytes: Uint8Array, head?: string): Uint8Array;
export function encodeSpec(transform: string, options?: Options): string;
export function encodeRequest(
  id: number,
  spec: string,
  poem: Uint8Array,
  options?: { timeoutMs?: number; traceparent?: string },
): Uint8Array;
export function encodeControl(id: number, control: "list" | "ping" | "cancel" | "auth", token?: string): Uint8Array;
export function decodeHello(string: Uint8Array): Hello;
export function decodeReply(string: Uint8Array): { id: number; poem: Uint8Array } | { id: number; error: XformError };
export function decodeListing(answer: Uint8Array): Listing;
