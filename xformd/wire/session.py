"""The session dialect: many requests on one connection, answered in any order (``docs/wire.md``, "Session").

Both sides' messages, encoded and decoded. Invariant: nothing here has state, and what cannot be decoded is either an
error that can be answered, or a ``BadFrame`` that ends the connection.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from xformd.errors import ERRORS, REDACTED, BadFrame, BadRequest, InternalError, XformError, one_line
from xformd.spec import MAX_SPEC_BYTES, SHORT_CHARACTERS, Spec, parse
from xformd.wire import netstring

OPENING = b"xformd/2"
"""A client's first string. It holds no ``.``, so that a server that knows only the classic dialect refuses it."""

CONNECTION_ID = 0
"""The id of the server's messages about the connection itself."""

MAX_ID = 2**53 - 1
"""The largest integer that every JSON and JavaScript implementation holds exactly."""

MAX_HEAD_BYTES = MAX_SPEC_BYTES + 1_024
"""The longest head, which ends at the first ``.``: an id, a spec and a few attributes."""

_ZERO = ord("0")
_CLIENT = re.compile(r"[0-9A-Za-z.:/_-]{1,100}")  # an address, or a name that the proxy has for it

Control = Literal["list", "ping", "cancel"]
_CONTROLS: Mapping[str, Control] = {"!list": "list", "!ping": "ping", "!cancel": "cancel"}


match_plain_request = re.compile(rb"([1-9][0-9]{0,7}+):([1-9][0-9]{0,14}+) ([^.]*+)\.").match
"""Match the netstring of a request up to its poem: length, id, words; for a server that answers many in one loop.

``decode_request`` reads whatever this matches in the same way, as ``tests/dialects/test_fast_path.py`` shows. Ids of up
to 15 digits are below ``MAX_ID``. The quantifiers are possessive: text without a ``.`` fails in one pass.
"""


@attrs.frozen
class Hello:
    """How a server introduces itself when a session begins."""

    server: str
    max_request_bytes: int
    max_in_flight: int


@attrs.frozen
class Request:
    """A poem to transform; ``timeout_ms`` counts from its arrival, ``client`` is for whom a proxy asks."""

    id: int
    spec: Spec
    poem: bytes
    timeout_ms: int | None = None
    client: str | None = None


@attrs.frozen
class ControlRequest:
    """``!list``, ``!ping``, or ``!cancel``, whose id is that of the request to cancel."""

    id: int
    control: Control


@attrs.frozen
class Malformed:
    """A request of which only the id could be read: it is answered, and the session goes on."""

    id: int
    error: BadRequest


@attrs.frozen
class Reply:
    """The result of a request."""

    id: int
    poem: bytes


@attrs.frozen
class Refusal:
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
    head = b"%d %b%b%b." % (request.id, _encode_spec(request.spec), deadline, client)
    return b"%d:%b%b," % (len(head) + len(request.poem), head, request.poem)


@functools.lru_cache(maxsize=256)
def _encode_spec(spec: Spec) -> bytes:
    return str(spec).encode("ascii")


def encode_control(request: ControlRequest) -> bytes:
    """Encode a control message."""
    return netstring.encode(b"%d !%b." % (request.id, request.control.encode("ascii")))


def decode_request(string: bytes) -> Request | ControlRequest | Malformed:
    """Decode a client's message after its opening.

    Args:
        string: the inside of one netstring.

    Raises:
        BadFrame: it does not even start with an id. This is no session, and the connection must end.
    """
    head, poem = _split(string)
    number, _, words = head.partition(b" ")
    request_id = _id(number)
    if request_id == CONNECTION_ID:
        raise BadFrame("a client's messages start with an id from 1 on")
    try:
        if poem is None:
            raise BadRequest("a request is <id> <transform>.<poem>; this one has no '.' after a transform")
        meaning = _short_meaning(words) if len(words) <= SHORT_CHARACTERS else _meaning(words)
    except BadRequest as error:
        return Malformed(request_id, error)
    if isinstance(meaning, str):
        return ControlRequest(request_id, meaning)
    return Request(request_id, meaning[0], poem, *meaning[1:])


def _meaning(words: bytes) -> tuple[Spec, int | None, str | None] | Control:
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
    return parse(spec), _milliseconds(values, "timeout"), client if _CLIENT.fullmatch(client) else None


# Clients repeat the same few words.
_short_meaning = functools.lru_cache(maxsize=1_024)(_meaning)


# From the server to the client.


def encode_hello(hello: Hello) -> bytes:
    """Encode a server's first message."""
    return netstring.encode(OPENING + b" " + json.dumps(attrs.asdict(hello)).encode("ascii"))


def encode_reply(reply: Reply) -> bytes:
    """Encode a result, with a single copy of the poem, which may be long."""
    return b"".join(frame_reply(reply))


def frame_reply(reply: Reply) -> tuple[bytes, bytes, bytes]:
    """Encode a result in three parts, of which the second is the poem itself."""
    head = b"%d ok." % reply.id
    return b"%d:%b" % (len(head) + len(reply.poem), head), reply.poem, b","


def encode_refusal(refusal: Refusal) -> bytes:
    """Encode an error."""
    error = refusal.error
    later = "" if error.retry_after_ms is None else f" retry-after={error.retry_after_ms}"
    return netstring.encode(f"{refusal.id} {error.code}{later}.{one_line(error.message)}".encode())


def decode_hello(string: bytes) -> Hello:
    """Decode a server's first message.

    Args:
        string: the inside of its first netstring.

    Raises:
        BadFrame: it is not a hello of this version.
    """
    opening, _, text = string.partition(b" ")
    try:
        fields = json.loads(text)
        hello = Hello(str(fields["server"]), int(fields["max_request_bytes"]), int(fields["max_in_flight"]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadFrame("the server's first message is not the hello of a session") from error
    if opening != OPENING or hello.max_in_flight < 1 or hello.max_request_bytes < 1:
        raise BadFrame("the server's first message is not a hello of this version of the protocol")
    return hello


def decode_reply(string: bytes) -> Reply | Refusal:
    """Decode a server's message after its hello.

    Args:
        string: the inside of one netstring.

    Returns:
        The result, or the error. A code that this version does not know makes an ``InternalError``.

    Raises:
        BadFrame: it is not a message of a session.
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
        return Reply(reply_id, body)
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
    return milliseconds
