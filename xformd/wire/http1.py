"""HTTP/1.1 requests (RFC 9112), parsed strictly and incrementally.

Whatever the standard does not allow, or two servers may read differently, is refused: that is how one request is
smuggled inside another. Invariant: the result does not depend on how the bytes were split, and what is kept of a
request besides its body is at most ``MAX_HEAD_BYTES`` and one read.
"""

import enum
import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from xformd.errors import BadRequest, TooLarge

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; the framing of a chunked body and its trailers have the same limit."""

MAX_FIELDS = 1_000  # header fields of one request: each costs far more to handle than to send
FREE_FRAMING_BYTES = 8  # chunk framing for each byte of a body that does not count against ``MAX_HEAD_BYTES``

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "QUERY")
"""The registered ones that clients try, but for CONNECT: what follows one of those is not HTTP."""

_METHOD = "|".join(METHODS).encode()
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_TEXT = rb"[\t -~\x80-\xff]*+"
_FIELDS = rb"((?>%b:%b\r\n)*+)\r\n" % (_TOKEN, _TEXT)

# One expression accepts or refuses a whole head, another finds its fields. None of them backtracks.
_match_head = re.compile(rb"(%b) ([!-~]++) HTTP/1\.([01])\r\n%b" % (_METHOD, _FIELDS)).match
_match_fields = re.compile(_FIELDS).match
_find_fields = re.compile(rb"(%b):(%b)\r\n" % (_TOKEN, _TEXT)).findall
_match_chunk_size = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:;%b)?+\r\n" % _TEXT).match

# These refuse a head before it is complete: a peer that speaks something else learns it at once.
_match_begun_method = re.compile(rb"(%b) |[A-Z]{1,7}\Z" % _METHOD).match
_find_misplaced = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)|(?<!\r)\n").search
_match_other_version = re.compile(rb"(?:%b) [!-~]++(?:| (?!HTTP/1\.)[A-Z]++/[0-9]\.[0-9])\r\n" % _METHOD).match

_match_length = re.compile(rb"[0-9]{1,20}\Z").match
_match_absolute = re.compile(rb"https?://([^/?#:][^/?#]*+)(.*+)\Z", re.IGNORECASE).match
_match_host = re.compile(  # RFC 3986, 3.2.2
    rb"(?:\[[vV][0-9A-Fa-f]++\.[A-Za-z0-9._~!$&'()*+,;=:-]++\]"
    rb"|(?>[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]*+)?+\Z"
).match
_match_ipv6_host = re.compile(rb"\[([0-9A-Fa-f:.]++)\](?::[0-9]*+)?+\Z").match

_TLS_HANDSHAKE = b"\x16"
_BAD_FRAMING = "the chunks of the body, or its trailers, are malformed"
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_EMPTY: Mapping[bytes, bytes] = {}


class HttpError(BadRequest):
    """A request was refused, with the HTTP status that fits. Nothing that follows it on the connection may be read.

    ``headers`` are those of the request, if its head could be read.
    """

    def __init__(self, status: int, message: str, headers: Mapping[bytes, bytes] = _EMPTY) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers

    @property
    def wire_error(self) -> BadRequest | TooLarge:
        """The error of the table to answer the peer with."""
        return (TooLarge if self.status in (413, 431) else BadRequest)(self.message)


class RequestHead(NamedTuple):
    """A request without its body. Its headers are stripped; those of one name joined with ``, `` (RFC 9110, 5.3)."""

    method: str  # one of ``METHODS``
    target: bytes  # path and query, as they were sent; ``*`` stands for the server as a whole
    host: bytes  # the authority that the request is for, as it was sent: of an absolute target, else of ``Host``
    headers: Mapping[bytes, bytes]  # by name in lower case
    body_bytes: int | None  # the length of the body; 0 where there is none, None where it comes in chunks
    is_1_0: bool  # the client speaks HTTP/1.0
    keeps_alive: bool  # the client may send another request after this one
    expects_continue: bool  # the client waits for ``100 Continue`` before it sends the body


class End(enum.Enum):
    """What ends a request."""

    END = "end"


END: Final = End.END


class _State(enum.Enum):
    """What comes next."""

    HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILERS = range(6)


_HEAD, _BODY, _CHUNK_SIZE, _CHUNK, _CHUNK_END, _TRAILERS = _State


class RequestParser:
    """Parses the requests of one connection, one after the other. After an error it must not be used again.

    ``max_body_bytes`` is for bodies in chunks: one that announces its length is the caller's to refuse.
    """

    __slots__ = ("_checked", "_data", "_framing", "_left", "_max_body_bytes", "_position", "_room", "_state")

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._data = b""  # what arrived last, parsed up to _position
        self._position = 0
        self._checked = 0  # how many bytes from _position on have been looked at in vain
        self._state = _HEAD
        self._left = 0  # how much is still to come of the body, or of a chunk
        self._room = 0  # how much more the chunks of this request may hold
        self._framing = 0  # bytes of this request, less its head and its body

    @property
    def is_inside(self) -> bool:
        """Whether a request has begun and is not complete; half an empty line is none."""
        return self._state is not _HEAD or self._data[self._position : self._position + 2] not in (b"", b"\r")

    @property
    def begun_method(self) -> str:
        """The method of a request whose head is not complete, or was refused; empty where it is not known."""
        match = _match_begun_method(self._data, self._position)
        return match[1].decode() if match and match[1] else ""

    @property
    def has_unread(self) -> bool:
        """Whether there are bytes that no event has covered yet."""
        return self._position < len(self._data)

    def feed(self, data: bytes) -> None:
        """Keep the next bytes of the stream, split anywhere, for ``next_event``."""
        if self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data, self._position = data, 0

    def next_event(self) -> RequestHead | bytes | End | None:
        """Parse what comes next; raise ``HttpError`` if the request is refused.

        Each request gives its head; then its body, in pieces, if it has one; then ``END``. None where more has to come.
        """
        if self._state is _HEAD:
            return self._next_head()
        if self._state is _BODY:
            return self._take() if self._left else self._end()
        while self._state is not _CHUNK:
            if not self._next_framing():
                return None
            if self._state is _HEAD:
                return END
        return self._take()

    def take_whole_body(self) -> bytes | None:
        """Return the body of the request whose head came last, and end it, if all is here: nearly always it is.

        Return None where it comes in events.
        """
        end = self._position + self._left
        if self._state is not _BODY or end > len(self._data):
            return None
        body = self._data[self._position : end]
        self._advance(end)
        self._left = 0
        self._state = _HEAD
        return body

    def _next_head(self) -> RequestHead | None:
        data, start = self._data, self._position
        while data.startswith(b"\r\n", start):  # before a request it is ignored (RFC 9112, 2.2)
            start += 2
            self._framing += 2
            self._checked = 0
        self._position = start
        match = _match_head(data, start) if not self._checked else None
        if match and match.end() - start <= MAX_HEAD_BYTES - self._framing:  # nearly always
            return self._begin(match)
        end = self._find_end(b"\r\n\r\n")
        if end < 0:
            begun = data[start : min(start + 8, start + MAX_HEAD_BYTES - self._framing)]
            if begun not in (b"", b"\r") and not _match_begun_method(begun):
                raise _explain(data, start)
            self._check_begun()
            if not self.has_unread:
                self._advance(start)
            return None
        match = _match_head(data, start, end)
        if not match:
            raise _explain(data, start)
        return self._begin(match)

    def _begin(self, match: re.Match[bytes]) -> RequestHead:
        method, target, minor, block = match.groups()
        head = _read_head(method.decode(), target, minor == b"0", block)
        self._advance(match.end())
        self._framing = 0
        if head.body_bytes is None:
            self._state, self._room = _CHUNK_SIZE, self._max_body_bytes
        else:
            self._state, self._left = _BODY, head.body_bytes
        return head

    def _next_framing(self) -> bool:
        """Parse what stands between two chunks or after the last one; return False where more has to arrive first."""
        data, start = self._data, self._position
        if self._state is _CHUNK_END:
            if data.startswith(b"\r\n", start):
                self._advance(start + 2)
                self._state = _CHUNK_SIZE
                return True
            if data[start : start + 2] not in (b"", b"\r"):
                raise HttpError(400, _BAD_FRAMING)
            return False
        is_size = self._state is _CHUNK_SIZE
        has_fields = not is_size and not b"\r\n".startswith(data[start : start + 2])
        end = self._find_end(b"\r\n\r\n" if has_fields else b"\r\n")
        if end < 0:
            self._check_begun()
            return False
        self._framing += end - start
        if is_size:
            self._read_chunk_size(data, start, end)
        else:
            _check_trailers(data, start, end)
            self._end()
        self._advance(end)
        return True

    def _read_chunk_size(self, data: bytes, start: int, end: int) -> None:
        match = _match_chunk_size(data, start, end)
        if not match:
            raise HttpError(400, _BAD_FRAMING)
        size = int(match[1], 16)
        self._room -= size
        if self._room < 0:
            limit = self._max_body_bytes
            raise HttpError(413, f"the body has more than {limit} bytes, which is the limit")
        self._framing = max(0, self._framing + 2 - FREE_FRAMING_BYTES * size)
        self._left = size
        self._state = _CHUNK if size else _TRAILERS

    def _find_end(self, mark: bytes) -> int:
        """Return where the head, or a line of framing, ends: behind a mark that lies within the limit; else -1."""
        start = self._position
        begin = start + max(0, self._checked - len(mark) + 1)
        end = self._data.find(mark, begin, max(start, start + MAX_HEAD_BYTES - self._framing))
        return end if end < 0 else end + len(mark)

    def _check_begun(self) -> None:
        """Refuse what is there of a head or of framing if that cannot go on well, or is too long."""
        data, start = self._data, self._position
        limit = start + MAX_HEAD_BYTES - self._framing
        if _find_misplaced(data, start + max(0, self._checked - 1), max(start, limit)):
            raise _explain(data, start) if self._state is _HEAD else HttpError(400, _BAD_FRAMING)
        if len(data) > limit:
            raise HttpError(431, f"the head of a request, or the framing of its body, exceeds {MAX_HEAD_BYTES} bytes")
        self._checked = len(data) - start

    def _take(self) -> bytes | None:
        """Return what has arrived of the body, or of a chunk."""
        data, start = self._data, self._position
        if start == len(data):
            return None
        piece = data[start : start + self._left]  # no copy where that is all
        self._advance(start + len(piece))
        self._left -= len(piece)
        if not self._left and self._state is _CHUNK:
            self._state = _CHUNK_END
        return piece

    def _advance(self, position: int) -> None:
        if position == len(self._data):  # an idle connection must not hold its last read, which may be long
            self._data, position = b"", 0
        self._position, self._checked = position, 0

    def _end(self) -> End:
        self._state, self._framing = _HEAD, 0
        return END


def _explain(data: bytes, start: int) -> HttpError:
    """Return why this does not begin a request that is accepted."""
    if data.startswith(_TLS_HANDSHAKE, start):
        return HttpError(400, "this is TLS, and this port speaks plain HTTP: use http:")
    if _match_other_version(data, start):
        return HttpError(505, "this server speaks HTTP/1.1")
    return HttpError(400, "this is not an HTTP/1.1 request")


def _read_head(method: str, target: bytes, is_1_0: bool, block: bytes) -> RequestHead:
    fields = _find_fields(block)
    if len(fields) > MAX_FIELDS:
        raise HttpError(431, f"a request has at most {MAX_FIELDS} header fields")
    headers = {name.lower(): value.strip(b" \t") for name, value in fields}
    if len(headers) < len(fields):
        headers = _join_repeated(fields)
    try:
        authority = b""
        if not target.startswith(b"/") or b"#" in target:
            target, authority = _read_target(method, target)
        host = headers.get(b"host")
        if host is None or not _match_host(host):
            host = _other_host(host, is_1_0)
        body_bytes = _read_body_length(headers, is_1_0) if not headers.keys().isdisjoint(_FRAMING) else 0
    except HttpError as error:
        error.headers = headers
        raise
    keeps_alive = not is_1_0
    if b"connection" in headers:
        options = [option.strip(b" \t") for option in headers[b"connection"].lower().split(b",")]
        keeps_alive = b"close" not in options and (not is_1_0 or b"keep-alive" in options)
    expects_continue = False
    if b"expect" in headers and body_bytes != 0 and not is_1_0:
        expects_continue = headers[b"expect"].lower() == b"100-continue"
    return RequestHead(method, target, authority or host, headers, body_bytes, is_1_0, keeps_alive, expects_continue)


def _join_repeated(fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return {name: b", ".join(each) for name, each in values.items()}


def _read_target(method: str, target: bytes) -> tuple[bytes, bytes]:
    """Return path and query, and the authority where the target is absolute (RFC 9112, 3.2)."""
    if b"#" in target:
        raise HttpError(400, "the request target has a fragment: leave out the # and what follows")
    if target == b"*" and method == "OPTIONS":
        return target, b""
    match = _match_absolute(target)
    if match is None:
        raise HttpError(400, "this server is not a proxy: request a path, such as /transforms")
    authority, rest = match.groups()
    if not (_match_host(authority) or _is_ipv6_host(authority)):
        raise HttpError(400, "the request target is not an http URL: write http://host:port/path, without a user")
    return rest if rest.startswith(b"/") else b"/" + rest, authority


def _other_host(host: bytes | None, is_1_0: bool) -> bytes:
    """Return a ``Host`` that is no name; HTTP/1.1 has exactly one (RFC 9112, 3.2), and two were joined."""
    if host is None and is_1_0:
        return b""
    if host is None or not _is_ipv6_host(host):
        raise HttpError(400, "a request needs exactly one Host header: a host, optionally with a port")
    return host


def _is_ipv6_host(text: bytes) -> bool:
    match = _match_ipv6_host(text)
    try:
        return match is not None and bool(IPv6Address(match[1].decode()))
    except ValueError:
        return False


def _read_body_length(headers: Mapping[bytes, bytes], is_1_0: bool) -> int | None:
    """Return how long the body is; None where it comes in chunks (RFC 9112, 6.3)."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if length is not None and coding is None and _match_length(length) and int(length) < 2**64:
        return int(length)
    if coding is not None:
        if is_1_0:
            raise HttpError(400, "HTTP/1.0 has no Transfer-Encoding: send a Content-Length")
        if length is not None:
            raise HttpError(400, "a request has a Content-Length or a Transfer-Encoding, not both")
        *others, last = [each.strip(b" \t") for each in coding.lower().split(b",")]
        if b"chunked" in others:
            raise HttpError(400, "chunked must be the only Transfer-Encoding")
        if others or last != b"chunked":
            raise HttpError(501, "the only Transfer-Encoding supported is chunked")
        return None
    raise HttpError(400, "a request has one Content-Length, a whole number of bytes")


def _check_trailers(data: bytes, start: int, end: int) -> None:
    """Refuse trailers that are malformed or would frame the body (RFC 9110, 6.5.1); ignore what else they say."""
    match = _match_fields(data, start, end)
    if not match:
        raise HttpError(400, _BAD_FRAMING)
    names = [name.lower() for name, _ in _find_fields(match[1])]
    if len(names) > MAX_FIELDS:
        raise HttpError(431, f"a request has at most {MAX_FIELDS} trailer fields")
    if b"content-length" in names or b"transfer-encoding" in names:
        raise HttpError(400, "a trailer cannot say how long the body is")
