"""The session dialect: many requests on one connection, answered in any order (``docs/wire.md``, "Session").

Both sides' messages, encoded and decoded. Invariant: nothing here has state, and what cannot be decoded is either an
error that can be answered, or a ``BadFrame`` that ends the connection.
"""

import functools
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote

from xformd.errors import ERRORS, REDACTED, BadFrame, BadRequest, InternalError, XformError, one_line
from xformd.spec import MAX_SPEC_BYTES, SHORT_CHARACTERS, TRACEPARENT, Spec, is_valid_name, parse
from xformd.wire import netstring

OPENING = b"xformd/2"
"""A client's first string. It holds no ``.``, so that a server that knows only the classic dialect refuses it."""

CONNECTION_ID = 0  # the id of the server's messages about the connection itself
MAX_ID = 2**53 - 1  # the largest integer that every JSON and JavaScript implementation holds exactly

MAX_HEAD_BYTES = MAX_SPEC_BYTES + 1_024
"""The longest head, which ends at the first ``.``: an id, a spec and a few attributes."""

MIB = 1024 * 1024
MAX_WAIT_MS = 24 * 60 * 60 * 1_000  # nothing waits for longer because a peer says so
MAX_LISTING_BYTES, MAX_VALUES, MAX_ROWS, MAX_DEPTH = 4 * MIB, 250_000, 10_000, 16
"""Room for 5,000 transforms with options and examples. The worst within it takes a client 70 MB and 0.5 s."""

_KINDS = {str: "a string", int: "an integer", bool: "a boolean", dict: "an object", list: "a list of at most 10,000"}
# What clients rely on; a list holds what each of its rows has.
_OPTIONS = [{"name": str, "type": str, "required": bool}]
_LISTING = {
    "transforms": [{"name": str, "summary": str, "options": _OPTIONS, "distribution": str, "version": str}],
    "plugins": [{"name": str, "distribution": str, "version": str, "state": str, "reason": str}],
    "conflicts": [{"name": str, "message": str}],
}

_TRACE_IDS = rb"((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})"
_match_traceparent = re.compile(rb"00-%b" % _TRACE_IDS).fullmatch
_match_later_traceparent = re.compile(rb"(?!00|ff)[0-9a-f]{2}-%b(?:-.*)?" % _TRACE_IDS).fullmatch

_ZERO = ord("0")
_CLIENT = re.compile(r"[0-9A-Za-z.:/_-]{1,100}")  # an address, or a name that the proxy has for it

Control = Literal["list", "ping", "cancel", "auth"]
_CONTROLS: Mapping[str, Control] = {"!list": "list", "!ping": "ping", "!cancel": "cancel", "!auth": "auth"}


match_plain_request = re.compile(rb"([1-9][0-9]{0,7}+):([1-9][0-9]{0,14}+) ([^.]*+)\.").match
"""Match the netstring of a request up to its poem: length, id, words; for a server that answers many in one loop.

``decode_request`` reads whatever this matches in the same way, as ``tests/dialects/test_fast_path.py`` shows. Ids of up
to 15 digits are below ``MAX_ID``. The quantifiers are possessive: text without a ``.`` fails in one pass.
"""


class Hello(NamedTuple):
    """How a server introduces itself when a session begins."""

    server: str
    max_request_bytes: int
    max_in_flight: int


class Request(NamedTuple):
    """A poem to transform.

    ``timeout_ms`` counts from its arrival, ``client`` is for whom a proxy asks, ``traceparent`` is the caller's trace,
    and ``wants_version`` has the reply say which versions of the transforms made it.
    """

    id: int
    spec: Spec
    poem: bytes
    timeout_ms: int | None = None
    client: str | None = None
    traceparent: str | None = None
    wants_version: bool = False


class ControlRequest(NamedTuple):
    """``!list``, ``!ping``, ``!cancel``, whose id is that of the request to cancel, or ``!auth``, which has a token."""

    id: int
    control: Control
    token: bytes = b""

    def __repr__(self) -> str:
        return f"ControlRequest({self.id}, {self.control!r})"  # without the token


class Malformed(NamedTuple):
    """A request of which only the id could be read: it is answered, and the session goes on."""

    id: int
    error: BadRequest


class Reply(NamedTuple):
    """The result of a request; ``version`` is what HTTP's ``X-Transform`` says, if it was asked for and is known."""

    id: int
    poem: bytes
    version: str | None = None


class Refusal(NamedTuple):
    """The error of a request; with the id 0 it is about the connection, which then closes."""

    id: int
    error: XformError


# From the client to the server.


def encode_opening() -> bytes:
    """Encode the opening of a session."""
    return netstring.encode(OPENING)


def encode_request(request: Request) -> bytes:
    """Encode a request, with a single copy of its poem, which may be long."""
    deadline = b"" if request.timeout_ms is None else b" timeout=%d" % request.timeout_ms
    client = b"" if request.client is None else b" client=%b" % request.client.replace(".", "%2E").encode("ascii")
    trace = b"" if request.traceparent is None else TRACEPARENT + request.traceparent.encode("ascii")
    want = b" want=version" if request.wants_version else b""
    head = b"%d %b%b%b%b%b." % (request.id, _encode_spec(request.spec), deadline, client, want, trace)
    return b"%d:%b%b," % (len(head) + len(request.poem), head, request.poem)


@functools.lru_cache(maxsize=256)
def _encode_spec(spec: Spec) -> bytes:
    return str(spec).encode("ascii")


def encode_control(request: ControlRequest) -> bytes:
    """Encode a control message."""
    return netstring.encode(b"%d !%b.%b" % (request.id, request.control.encode("ascii"), request.token))


def decode_request(string: bytes) -> Request | ControlRequest | Malformed:
    """Decode a client's message after its opening: the inside of one netstring.

    Raises ``BadFrame`` if it does not even start with an id: this is no session, and the connection must end.
    """
    head, poem = _split(string)
    number, _, words = head.partition(b" ")
    request_id = _id(number)
    if request_id == CONNECTION_ID:
        raise BadFrame("a client's messages start with an id from 1 on")
    try:
        if poem is None:
            raise BadRequest("a request is <id> <transform>.<poem>; this one has no '.' after a transform")
        words, traceparent = _take_traceparent(words)
        meaning = _short_meaning(words) if len(words) <= SHORT_CHARACTERS else _meaning(words)
    except BadRequest as error:
        return Malformed(request_id, error)
    if isinstance(meaning, str):
        return ControlRequest(request_id, meaning, poem if meaning == "auth" else b"")
    spec, timeout_ms, client, wants_version = meaning
    return Request(request_id, spec, poem, timeout_ms, client, traceparent, wants_version)


def decode_words(words: bytes) -> Request | None:
    """Decode what stands between a request's id and its ``.``; None where that is not the same for many requests."""
    if len(words) > SHORT_CHARACTERS or TRACEPARENT in words:
        return None
    request = decode_request(b"1 %b." % words)
    return request if isinstance(request, Request) and not request.wants_version else None


def _meaning(words: bytes) -> tuple[Spec, int | None, str | None, bool] | Control:
    """Decode what stands between a request's id and its ``.``."""
    # Latin-1, so that whatever was sent can be quoted.
    spec, *attributes = words.decode("latin-1").split(" ")
    if not words:
        raise BadRequest("a request names its transform after its id and a space")
    values = _attributes(attributes)
    if spec.startswith("!"):
        if spec not in _CONTROLS:
            raise BadRequest(f"there is no control message {spec[:80]!r}; there are {', '.join(_CONTROLS)}")
        return _CONTROLS[spec]
    client = values.get("client", "").replace("%2E", ".")
    named = client if _CLIENT.fullmatch(client) else None
    return parse(spec), _milliseconds(values, "timeout"), named, values.get("want") == "version"


# Clients repeat the same few words, apart from their traces.
_short_meaning = functools.lru_cache(maxsize=1_024)(_meaning)


def _take_traceparent(words: bytes) -> tuple[bytes, str | None]:
    """Return the words without their ``traceparent``, and its value; one given twice is left to be rejected."""
    if words.count(TRACEPARENT) != 1:
        return words, None
    before, _, after = words.partition(TRACEPARENT)
    value, space, rest = after.partition(b" ")
    return before + space + rest, read_traceparent(value)


def read_traceparent(value: bytes | None) -> str | None:
    """Return a ``traceparent`` in its version 00; None for one that is malformed, which W3C has everybody ignore."""
    if not value or _match_traceparent(value):
        return value.decode() if value else None
    match = _match_later_traceparent(value)
    return f"00-{match[1].decode()}" if match else None


# From the server to the client.


def encode_hello(hello: Hello) -> bytes:
    """Encode a server's first message."""
    return netstring.encode(OPENING + b" " + json.dumps(hello._asdict()).encode("ascii"))


def encode_reply(reply: Reply) -> bytes:
    """Encode a result, with a single copy of the poem, which may be long."""
    return b"".join(frame_reply(reply))


def frame_reply(reply: Reply) -> tuple[bytes, bytes, bytes]:
    """Encode a result in three parts, of which the second is the poem itself."""
    head = b"%d ok." % reply.id if reply.version is None else b"%d ok%b." % (reply.id, _version(reply.version))
    return b"%d:%b" % (len(head) + len(reply.poem), head), reply.poem, b","


@functools.lru_cache(maxsize=256)
def _version(text: str) -> bytes:
    quoted = quote(text, safe="/+").replace(".", "%2E")
    return b" version=" + quoted.encode() if len(quoted) <= MAX_HEAD_BYTES - 64 else b""  # a head has to stay short


def encode_refusal(refusal: Refusal) -> bytes:
    """Encode an error."""
    error = refusal.error
    later = "" if error.retry_after_ms is None else f" retry-after={error.retry_after_ms}"
    return netstring.encode(f"{refusal.id} {error.code}{later}.{one_line(error.message)}".encode())


def decode_hello(string: bytes) -> Hello:
    """Decode the inside of a server's first netstring; raise ``BadFrame`` if it is not a hello of this version."""
    opening, _, text = string[:MAX_HEAD_BYTES].partition(b" ")
    try:
        _check(fields := json.loads(text), {"server": str, "max_request_bytes": int, "max_in_flight": int}, "it")
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"the server's first message is not the hello of a session: {error}") from error
    hello = Hello(one_line(fields["server"]), fields["max_request_bytes"], fields["max_in_flight"])
    if opening != OPENING or not all(1 <= limit <= MAX_ID for limit in (hello.max_request_bytes, hello.max_in_flight)):
        raise BadFrame("the server's first message is not a hello of this version of the protocol")
    return hello


def decode_listing(answer: bytes) -> dict[str, Any]:
    """Decode what a server answers to ``!list``; raise ``BadFrame`` if it is no listing, or larger than any real one.

    What an older server does not tell is empty, and what a newer one adds is kept.
    """
    try:
        if len(answer) > MAX_LISTING_BYTES or sum(map(answer.count, (b"[", b"{", b","))) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_LISTING_BYTES // MIB} MiB or {MAX_VALUES:,} values")
        listed = json.loads(answer, parse_constant=_finite, parse_float=_finite)
        if not isinstance(listed, dict) or not _LISTING.keys() <= listed.keys():
            raise ValueError(f"it is not an object with {', '.join(_LISTING)}")
        _check(listed, _LISTING, "it")
        _check(listed.get("cache", {}), {"hits": int, "misses": int, "bytes": int}, "'cache'")  # only a proxy has one
        if not all(is_valid_name(transform["name"]) for transform in listed["transforms"]):
            raise ValueError("a transform has an invalid name")
        level: list[Any] = [listed]
        for _ in range(MAX_DEPTH):
            inside = (each.values() if isinstance(each, dict) else each for each in level)
            level = [value for values in inside for value in values if isinstance(value, dict | list)]
        if level:
            raise ValueError("it is nested too deeply")
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"the server's list of transforms is malformed: {error}") from error
    return listed


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a number in JSON")
    return number


def _check(value: Any, shape: Any, what: str) -> None:
    """Check that a value has a shape, and add what it lacks; raise ``ValueError`` if it has another."""
    kind: Any = shape if isinstance(shape, type) else type(shape)
    if type(value) is not kind or (kind is list and len(value) > MAX_ROWS):
        raise ValueError(f"{what} is not {_KINDS[kind]}")
    for row in value if kind is list else ():
        _check(row, shape[0], f"a row of {what}")
    for name, inner in shape.items() if kind is dict else ():
        _check(value.setdefault(name, inner() if isinstance(inner, type) else type(inner)()), inner, repr(name))


def decode_reply(string: bytes) -> Reply | Refusal:
    """Decode a server's message after its hello: the inside of one netstring; raise ``BadFrame`` if it is none.

    An error code that this version does not know makes an ``InternalError``.
    """
    head, body = _split(string)
    number, space, words = head.partition(b" ")
    reply_id = _id(number)
    if body is None or not space:
        raise BadFrame("a server's message is <id> <code>.<text>")
    if words == b"ok" and reply_id != CONNECTION_ID:
        return Reply(reply_id, body)
    code, *attributes = words.decode("latin-1").split(" ")
    try:
        values = _attributes(attributes)
        retry_after_ms = _milliseconds(values, "retry-after")
    except BadRequest as error:
        raise BadFrame(error.message) from error
    if code == "ok" and reply_id != CONNECTION_ID:
        return Reply(reply_id, body, unquote(values["version"]) if "version" in values else None)
    message = body.decode(errors="replace")
    if code not in ERRORS or ERRORS[code].http_status is None:
        code, message = InternalError.code, f"{one_line(code)}: {message}"
    return Refusal(reply_id, ERRORS[code](message, retry_after_ms=retry_after_ms, log_message=REDACTED))


# Both directions.


def _split(string: bytes) -> tuple[bytes, bytes | None]:
    """Return the head, and what follows its ``.``; None where there is no ``.`` within ``MAX_HEAD_BYTES``."""
    dot = string.find(b".", 0, MAX_HEAD_BYTES + 1)
    if dot < 0:
        return string[:MAX_HEAD_BYTES], None
    return string[:dot], string[dot + 1 :]


def _id(digits: bytes) -> int:
    value = _number(digits)
    if value is None or value > MAX_ID:
        shown = digits[:80].decode("latin-1")
        rule = "a session's messages start with an id from 1 to 2^53-1"
        raise BadFrame(f"{shown!r} is not an id: {rule}", log_message=f"not an id: {rule}")
    return value


def _number(digits: bytes) -> int | None:
    if not digits.isdigit() or len(digits) > 16 or (digits[0] == _ZERO and len(digits) > 1):
        return None
    return int(digits)


def _attributes(words: Iterable[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise BadRequest(f"{word[:80]!r} is not an attribute: write <key>=<value>")
        if key in values:
            raise BadRequest(f"the attribute {key[:80]!r} is given twice")
        values[key] = value
    return values


def _milliseconds(values: Mapping[str, str], key: str) -> int | None:
    if key not in values:
        return None
    milliseconds = _number(values[key].encode("latin-1"))
    if milliseconds is None:
        raise BadRequest(f"the attribute {key!r} takes a whole number of milliseconds, not {values[key][:80]!r}")
    return min(milliseconds, MAX_WAIT_MS)
