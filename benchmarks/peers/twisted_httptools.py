"""HTTP by hand on Twisted's epoll reactor: a protocol feeds httptools, asks xformd's own service, writes its headers.

What xformd's HTTP costs beyond this is what it does for safety and for the operator: there are no limits here, no
deadlines, no errors but one, and nothing is counted.
"""

import functools
import random
import time
from email.utils import formatdate
from typing import Any

import httptools
from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol

from xformd import spec
from xformd.limits import Limits
from xformd.plugins import loader, media_type
from xformd.plugins.selection import Selection
from xformd.service import TransformService
from xformd.telemetry.timing import RequestTiming

reactor: Any = _reactor

PREFIX = b"/transform/"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
HEAD = (
    b"HTTP/1.1 200 OK\r\n%b"
    b"server-timing: queue;dur=%.2f, run;dur=%.2f\r\n"
    b"x-request-id: %b\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"content-security-policy: default-src 'none'; sandbox\r\n"
    b"date: %b\r\n"
    b"content-length: %d\r\n\r\n"
)


@functools.lru_cache(maxsize=1)
def date(now_s: int) -> bytes:
    return formatdate(now_s, usegmt=True).encode()


class HttpProtocol(Protocol):
    """One connection; httptools calls its methods ``on_...``."""

    factory: "HttpFactory"
    transport: Any

    def connectionMade(self) -> None:
        """Make the parser."""
        self._parser = httptools.HttpRequestParser(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse what has arrived."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.loseConnection()

    def connectionLost(self, reason: Any) -> None:  # noqa: ARG002 - Twisted's signature
        """Let go of the parser, which refers back to this."""
        del self._parser

    def on_message_begin(self) -> None:
        """Forget the last request."""
        self._path = self._request_id = b""
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """Keep a piece of the path."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the one header that is answered."""
        if name.lower() == b"x-request-id":
            self._request_id = value

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the poem."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer."""
        self.transport.write(self.factory.answer(self._path, b"".join(self._body), self._request_id))
        if not self._parser.should_keep_alive():
            self.transport.loseConnection()


class HttpFactory(Factory):
    """Makes connections, and asks the service."""

    protocol = HttpProtocol
    noisy = False

    def __init__(self) -> None:
        registry = loader.load(Selection(distributions=frozenset()))
        self._registry = registry
        self._service = TransformService.inline(registry, Limits(), reactor)
        self._look_up = functools.lru_cache(maxsize=1_024)(self._read_path)

    def _read_path(self, path: bytes) -> tuple[spec.Spec, bytes]:
        """Return the spec in a path, and the headers that depend on it alone."""
        parsed = spec.parse(path.removeprefix(PREFIX).decode())
        entry = self._registry.resolve(parsed.steps[0].name)
        transform = entry.transform
        content_type = media_type.content_type(transform.media_type, transform.kind)
        versions = f"{transform.name}/{entry.plugin.version}"
        return parsed, f"content-type: {content_type}\r\nx-transform: {versions}\r\n".encode()

    def answer(self, path: bytes, poem: bytes, request_id: bytes) -> bytes:
        """Return the response to a request."""
        if not path.startswith(PREFIX):
            return NOT_FOUND
        parsed, headers = self._look_up(path)
        timing = RequestTiming(request_id.decode() or f"{random.getrandbits(64):016x}")
        result = self._service.xform(parsed, poem, timing=timing)
        assert isinstance(result, bytes)  # an inline transform
        own_id = str(timing.request_id).encode()
        queue_ms, run_ms = 1_000 * timing.queue_s, 1_000 * timing.run_s
        return HEAD % (headers, queue_ms, run_ms, own_id, date(int(time.time())), len(result)) + result


def main() -> None:
    port = reactor.listenTCP(0, HttpFactory(), backlog=2048, interface="127.0.0.1")
    print(f"listening on 127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
