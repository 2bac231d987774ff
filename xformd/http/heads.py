"""Whether the head of a request is one to answer, by RFC 9110 and 9112. Decisions alone; the parser has split it.

What two servers on the way may read differently is refused: that is how one request is smuggled inside another.
"""

import re
from collections.abc import Sequence

import attrs

from xformd.errors import BadRequest, TooLarge, XformError

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers, its trailers, and what frames its body: nobody needs more, and it is kept."""

Headers = Sequence[tuple[bytes, bytes]]

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*\Z")
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_EACH_HEADER_BYTES = 4  # a colon, a space, and the end of the line


class RejectedHead(Exception):
    """This head is answered with an error, and the connection ends.

    Args:
        status: of HTTP.
        error: what is wrong with it.
    """

    def __init__(self, status: int, error: XformError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


@attrs.frozen
class RequestHead:
    """What a head says.

    Args:
        target: path and query, as they came.
        body_bytes: how long the body is; 0 where there is none, or where it comes in chunks.
        framing: the header that says where the body ends; empty where there is none.
    """

    target: bytes
    body_bytes: int = 0
    framing: bytes = b""


def too_large() -> RejectedHead:
    """Refuse a head that does not fit."""
    return RejectedHead(431, TooLarge(f"the head of a request has at most {MAX_HEAD_BYTES} bytes"))


def read(version: str, target: bytes, headers: Headers) -> RequestHead:
    """Read a head.

    Args:
        version: of HTTP.
        target: what stands between the method and the version.
        headers: with names in lower case.

    Returns:
        What it says.

    Raises:
        RefusedHead: it is none to answer.
    """
    if version not in ("1.1", "1.0"):
        raise RejectedHead(505, BadRequest("this server speaks HTTP/1.1"))
    size, hosts, body_bytes, framing = len(target), 0, 0, b""
    for name, value in headers:
        size += len(name) + len(value) + _EACH_HEADER_BYTES
        if name == b"host":
            hosts += 1 if _HOST.match(value) else 2
        elif name == b"content-length":
            body_bytes, framing = int(value), b"content-length: %b" % value
        elif name == b"transfer-encoding":
            framing = _chunked(version, value)
    if size > MAX_HEAD_BYTES:
        raise too_large()
    if hosts > 1 or (not hosts and version == "1.1"):
        raise RejectedHead(400, BadRequest("a request of HTTP/1.1 has one Host header, with a host and perhaps a port"))
    return RequestHead(_path_and_query(target), body_bytes, framing)


def _chunked(version: str, value: bytes) -> bytes:
    if version == "1.0":
        raise RejectedHead(400, BadRequest("HTTP/1.0 has no Transfer-Encoding: send a Content-Length"))
    if value.lower() != b"chunked":
        raise RejectedHead(501, BadRequest("the only Transfer-Encoding here is chunked"))
    return b"transfer-encoding: chunked"


def _path_and_query(target: bytes) -> bytes:
    if b"#" in target:
        raise RejectedHead(400, BadRequest("an address ends before its #: leave the fragment out"))
    if target.startswith(b"/") or target == b"*":
        return target
    match = _ABSOLUTE.match(target)
    if match is None:
        raise RejectedHead(400, BadRequest("this is no proxy: ask for a path"))
    rest = target[match.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest
