"""A request and its response, as endpoints see them, and how a response is written.

An endpoint is a function of a ``Request`` whose body has not arrived yet. It returns the ``Response``, or a function
that makes one of the body. Invariant: every response has the same general headers, whoever makes it, and every
error is a problem (RFC 9457) with the request's id.
"""

import http
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred

from xformd.errors import BadRequest, InternalError, NoSuchTransform, Unauthorized, XformError
from xformd.http.forwarded import Source
from xformd.net.connections import share_of
from xformd.runners import Caller
from xformd.telemetry.access_log import AccessEntry
from xformd.telemetry.metrics import OK
from xformd.telemetry.timing import RequestTiming
from xformd.wire.http1 import RequestHead
from xformd.wire.session import read_traceparent

if TYPE_CHECKING:
    from xformd.http.batch import BatchLines

Credentials = tuple[frozenset[str], int]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_NEAREST = re.compile(r"\Ano [^;]*; did you mean '([a-z][a-z0-9_-]{0,63})'\?")

_WITHOUT_BODY = (204, 304)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")
_STATUS_LINES: Mapping[int, bytes] = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}


class Request:
    """A request without its body. Its ``id`` is its name in the log; its path and query are as they were sent.

    ``credentials`` are those of the connection: the names in its peer's certificate, and the user of its process.
    """

    def __init__(self, head: RequestHead, source: Source, credentials: Credentials = (frozenset(), -1)) -> None:
        self.head = head
        self.source = source
        self.client = source.client  # its address, also behind trusted proxies; None if it has no IP address
        self.credentials = credentials
        self.id = request_id(head.headers)
        self.method = head.method
        self.headers = head.headers
        self.path, _, self.query = head.target.partition(b"?")
        self.is_answered = False  # the response has begun
        self.entry: AccessEntry | None = None  # in the access log, or of its trace
        self._timing: RequestTiming | None = None

    @property
    def caller(self) -> Caller:
        """Return the caller, whose share pays for it."""
        return Caller(self.source.share or share_of(self.client))

    @property
    def timing(self) -> RequestTiming:
        """What takes its times, and has its id for the log."""
        if self._timing is None:
            traceparent = read_traceparent(self.headers.get(b"traceparent"))
            self._timing = self.entry or RequestTiming(self.id.decode(), traceparent=traceparent)
        return self._timing


class Response(NamedTuple):
    """A response; ``headers`` are its own as ``header_lines``, ``code`` is for metrics and logs."""

    status: int
    headers: bytes = b""
    body: "bytes | BatchLines" = b""
    code: str = OK


class HttpProblem(BadRequest):
    """An error that only HTTP has, such as no such path.

    ``more`` are lines of headers of the response, and ``members`` of the problem, beside those that each has.
    """

    def __init__(self, status: int, message: str, more: bytes = b"", **members: str) -> None:
        super().__init__(message)
        title = http.HTTPStatus(status).phrase.lower()
        self.more, self.members = more, {"status": status, "title": title, **members}


TakeBody = Callable[[bytes], Response | Deferred[Response]]
"""Responds to a request whose body has arrived."""

Endpoint = Callable[[Request], Response | TakeBody]


def header_lines(*headers: tuple[bytes, bytes]) -> bytes:
    """Encode headers as lines."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def problem_details(error: XformError, request_id: bytes | None = None, status: int | None = None) -> dict[str, Any]:
    """Return an error as problem details, for JSON; an HTTP ``status`` may be more precise than the table's."""
    members: dict[str, Any] = {
        "type": f"urn:xformd:error:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status or error.http_status or InternalError.http_status,
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, HttpProblem):
        members |= error.members
    if request_id is not None:
        members["request_id"] = request_id.decode()
    if error.retry_after_ms is not None:
        members["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, NoSuchTransform) and (match := _NEAREST.search(error.message)):
        members["nearest"] = match[1]
    return members


def problem_response(error: XformError, request_id: bytes, status: int | None = None) -> Response:
    """Return the response for an error; a ``status`` may be more precise than the table's."""
    members = problem_details(error, request_id, status)
    lines = header_lines((b"content-type", b"application/problem+json"), (b"cache-control", b"no-store"))
    if error.retry_after_ms is not None:
        lines += b"retry-after: %d\r\n" % -(-error.retry_after_ms // 1_000)  # in whole seconds, rounded up
    if isinstance(error, Unauthorized):
        lines += b'www-authenticate: Bearer realm="xformd"\r\n'  # RFC 6750, 3
    if isinstance(error, HttpProblem):
        lines += error.more
    return Response(members["status"], lines, json.dumps(members).encode(), error.code)


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """Return the client's own id for a request where it is fit for a log, else a new one."""
    own = headers.get(b"x-request-id")
    if own is not None and _REQUEST_ID.match(own):
        return own
    return b"%016x" % random.getrandbits(64)  # not a secret: it only has to differ each time


def encode_head(response: Response, request: Request, general: bytes, *, closes: bool) -> bytes:
    """Encode a response up to its body, with the ``general`` lines of headers that every response to this has."""
    status, headers, body, _ = response
    if type(body) is bytes:
        framing = b"" if status in _WITHOUT_BODY else b"content-length: %d\r\n" % len(body)
    else:  # to HTTP/1.0, which knows no transfer coding, the end is the close (RFC 9112, 6.1)
        framing = b"" if request.head.is_1_0 else b"transfer-encoding: chunked\r\n"
    if closes:
        framing += b"connection: close\r\n"
    elif request.head.is_1_0:
        framing += b"connection: keep-alive\r\n"
    values = (_STATUS_LINES[status], _date_line(), request.id, general, headers, framing)
    return b"%b%bx-request-id: %b\r\n%b%b%b\r\n" % values


def encode_chunk(data: bytes) -> bytes:
    """Encode a piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_date = (0, b"")


def _date_line() -> bytes:
    """Return the ``Date`` header (RFC 9110, 6.6.1), formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = now, b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
    return _date[1]
