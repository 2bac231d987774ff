"""A request and its response, as endpoints see them, and how a response is written.

An endpoint is a function of a ``Request`` whose body has not arrived yet. It returns the ``Response``, or a function
that makes one of the body. Invariant: every response has the same general headers, whoever makes it.
"""

import http
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from typing import NamedTuple, Protocol

import attrs
from twisted.internet.defer import Deferred

from xformd.telemetry.timing import RequestTiming
from xformd.wire.http1 import RequestHead

Headers = Sequence[tuple[bytes, bytes]]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}\Z")
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}


@attrs.define
class Request:
    """A request without its body.

    Args:
        head: what was sent.
        timing: takes the times of the request, and has its id for the log.

    Attributes:
        path: of the target, as it was sent.
        query: of the target, as it was sent, without its ``?``.
        is_answered: whether the response has begun.
    """

    head: RequestHead
    timing: RequestTiming
    is_answered: bool = False
    path: bytes = attrs.field(init=False)
    query: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path, _, self.query = self.head.target.partition(b"?")

    @property
    def method(self) -> str:
        """The HTTP method: ``POST``."""
        return self.head.method

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Its headers, by name in lower case."""
        return self.head.headers

    @property
    def id(self) -> str:
        """The request's id in the log."""
        return str(self.timing.request_id)


class BodyWriter(Protocol):
    """Where a ``BodyStream`` goes."""

    @property
    def has_room(self) -> bool:
        """Whether the client reads what is sent."""
        ...

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        ...

    def end(self) -> None:
        """End the body."""
        ...

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function after the other connections' turn, unless this one is lost by then."""
        ...


class BodyStream(Protocol):
    """The body of a response that is sent piece by piece."""

    def start(self, writer: BodyWriter) -> None:
        """Begin to send."""
        ...

    def resume(self) -> None:
        """Go on: the client has read everything."""
        ...

    def cancel(self) -> None:
        """Stop: the client is gone."""
        ...


class Response(NamedTuple):
    """A response. ``headers`` are those that it has besides the general ones."""

    status: int
    headers: Headers = ()
    body: bytes | BodyStream = b""


TakeBody = Callable[[bytes], Response | Deferred[Response]]
"""Responds to a request whose body has arrived."""

Endpoint = Callable[[Request], Response | TakeBody]


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Return the client's own id for a request where it is fit for a log, else a new one."""
    own = headers.get(b"x-request-id")
    if own is not None and _REQUEST_ID.match(own):
        return own.decode()
    return f"{random.getrandbits(64):016x}"  # not a secret: it only has to differ each time


def encode_head(response: Response, request: Request, general: bytes, *, closes: bool) -> bytes:
    """Encode a response up to its body.

    Args:
        response: what to encode.
        request: what it answers.
        general: lines of headers that every response to this request has.
        closes: whether the connection ends with it.
    """
    status, headers, body = response
    lines = [_STATUS_LINES[status], _date_line(), b"x-request-id: %b\r\n" % request.id.encode(), general]  # type: ignore[index]
    lines += [b"%b: %b\r\n" % header for header in headers]
    if not isinstance(body, bytes):
        if not request.head.is_1_0:  # whose clients know no transfer coding: the end is the close (RFC 9112, 6.1)
            lines.append(b"transfer-encoding: chunked\r\n")
    elif status not in (204, 304):
        lines.append(b"content-length: %d\r\n" % len(body))
    if closes:
        lines.append(b"connection: close\r\n")
    elif request.head.is_1_0:
        lines.append(b"connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


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
