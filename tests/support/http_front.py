"""The HTTP front in memory: the real application and connections, no sockets, and a clock that the test moves."""

import asyncio
import json
import re
import tomllib
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from support.registries import registry_of
from xformd import GibberishError, transform
from xformd.http.application import HttpDependencies, make_application
from xformd.http.connection import HttpFactory
from xformd.http.endpoints import HealthEndpoints
from xformd.limits import Limits
from xformd.service import TransformService
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.status import ServerStatus, WorkerHistory

HERE = IPv4Address("TCP", "127.0.0.1", 1)

READ_BYTES = 65_536
"""What Twisted reads from a socket at a time."""

_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n")
_WELL = ServerStatus(
    queue_length=0,
    max_queue=10,
    workers={},
    proven_workers=0,
    needs_workers=False,
    history=WorkerHistory(),
    quarantined=frozenset(),
    in_flight=0,
)


@attrs.frozen
class Answer:
    """One answer.

    Args:
        status: of HTTP.
        headers: names in lower case.
        body: without its framing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        """The body of an error."""
        assert self.headers["content-type"] == "application/problem+json"
        return json.loads(self.body)


def answers(data: bytes, *, to_head: bool = False) -> list[Answer]:
    """Parse answers, all of them complete.

    Args:
        data: everything that the server has sent.
        to_head: whether the last answers a HEAD, and has no body.
    """
    return list(_answers(data, to_head))


def _answers(data: bytes, to_head: bool) -> Iterator[Answer]:
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"half a head: {head!r}"
        first, *lines = head.split(b"\r\n")
        match = _STATUS.fullmatch(first + b"\r\n")
        assert match, f"no status line: {first!r}"
        headers = {name.lower(): value for name, _, value in (line.decode().partition(": ") for line in lines)}
        status = int(match[1])
        body, data = (b"", data) if status in (100, 304) or (to_head and not data) else _body(headers, data)
        yield Answer(status, headers, body)


def _body(headers: Mapping[str, str], data: bytes) -> tuple[bytes, bytes]:
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers["content-length"])
        assert len(data) >= length, f"half a body: {data!r}"
        return data[:length], data[length:]
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            return body, data


@attrs.frozen
class Case:
    """A raw request of ``data/http.toml``."""

    name: str
    send: bytes
    status: tuple[int, ...]
    open: bool
    body: bytes | None


def cases() -> list[Case]:
    """Return all raw requests."""
    table = tomllib.loads((Path(__file__).parents[1] / "data" / "http.toml").read_text())
    return [_case(each) for each in table["request"]]


def _case(given: Mapping[str, Any]) -> Case:
    parts = given["send"] if isinstance(given["send"], list) else [given["send"]]
    texts = [part if isinstance(part, str) else part["text"] * part["times"] for part in parts]
    body = given.get("body")
    statuses = tuple(given["status"]) * given.get("times", 1)
    return Case(
        given["name"],
        "".join(texts).encode("latin-1"),
        statuses,
        given["open"],
        None if body is None else body.encode(),
    )


@transform(inline=True, deterministic=True)
def upper(poem: str) -> str:
    return poem.upper()


@transform(inline=True, deterministic=True, media_type="text/html")
def markup(poem: str) -> str:
    return f"<p>{poem}</p>"


@transform(inline=True, deterministic=True)
def wrap(poem: str, *, width: int = 10, fill: str = ".") -> str:
    return poem.ljust(width, fill)


@transform(inline=True, deterministic=True)
def repeat(poem: str, *, times: int) -> str:
    return poem * times


@transform(inline=True, deterministic=True)
def backwards(poem: bytes) -> bytes:
    return poem[::-1]


@transform(inline=True)
def dice(poem: str) -> str:
    return poem


@transform(inline=True)
def picky(poem: str) -> str:
    raise GibberishError("this is no sonnet")


@transform(inline=True)
def raises(poem: str) -> str:
    raise ValueError("a verse too many")


@implementer(IHalfCloseableDescriptor)
class Wire(StringTransport):
    """The server's side of a connection; the test decides what the peer does."""

    write_closed = False

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def abortConnection(self) -> None:
        super().abortConnection()  # type: ignore[no-untyped-call]
        self.disconnected = True

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...


class Client:
    """A client of the front, on one connection."""

    def __init__(self, front: "Front") -> None:
        self.wire = Wire()  # type: ignore[no-untyped-call]
        self.protocol: Any = front.factory.buildProtocol(HERE)
        assert self.protocol is not None
        self.protocol.makeConnection(self.wire)

    @property
    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self.wire.write_closed or self.wire.disconnecting or self.wire.disconnected

    async def send(self, data: bytes, step: int = READ_BYTES) -> None:
        """Send data in steps of some bytes, while the server reads; then let it work."""
        for start in range(0, len(data), step):
            for _ in range(len(data)):
                if self.wire.producerState == "producing":
                    break
                await asyncio.sleep(0)
            self.protocol.dataReceived(data[start : start + step])
            if step > 1:
                await asyncio.sleep(0)
        await self.settle()

    async def settle(self) -> None:
        """Let the server work until nothing on the loop is ready to run."""
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(0)
        while loop._ready:  # asyncio has no public way to ask
            await asyncio.sleep(0)

    @property
    def sent_bytes(self) -> int:
        """Number of bytes that the server has sent."""
        return len(self.wire.value())

    def received(self, *, to_head: bool = False) -> list[Answer]:
        """Return the answers so far, and forget them."""
        found = answers(self.wire.value(), to_head=to_head)
        self.wire.clear()
        return found

    async def ask(self, data: bytes) -> list[Answer]:
        """Send data, and return the answers."""
        await self.send(data)
        return self.received()

    def stop_reading(self) -> None:
        """Fill the connection with the next write."""
        self.wire.write = lambda data: self.wire.producer.pauseProducing()  # type: ignore[method-assign, union-attr]

    def leave(self) -> None:
        """Disconnect."""
        self.protocol.connectionLost(Failure(ConnectionResetError()))


class Front:
    """A front with a few transforms, and ``later``, whose results the test fires."""

    def __init__(self, *, origins: frozenset[str] = frozenset(), application: Any = None, **limits: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.waiting: list[Deferred[str]] = []
        self.cancelled = 0
        self.limits = Limits(**limits)

        @transform
        def later(poem: str) -> Deferred[str]:
            """Return a Deferred that the test fires."""
            self.waiting.append(Deferred(self._cancel))
            return self.waiting[-1]

        registry = registry_of(upper, markup, wrap, repeat, backwards, dice, picky, raises, later)
        self.service = TransformService.inline(registry, self.limits, self.clock, stopwatch=self.clock.seconds)
        parts = HttpDependencies(
            service=self.service,
            metrics=self.metrics,
            limits=self.limits,
            health=HealthEndpoints(lambda: _WELL, lambda: self.factory.is_stopping),
            render_metrics=lambda: b"",
            origins=origins,
        )
        self.factory = HttpFactory(
            application or make_application(parts), self.metrics, self.service, self.limits, self.clock
        )

    def connect(self) -> Client:
        """Open a connection."""
        return Client(self)

    async def ask(self, data: bytes) -> list[Answer]:
        """Send data on a new connection, and return the answers."""
        return await self.connect().ask(data)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


def request(target: str, body: bytes | None = None, *, method: str | None = None, **headers: str | None) -> bytes:
    """Build a request: a POST if there is a body.

    Args:
        target: path and query.
        body: of the request.
        method: overrides GET or POST.
        headers: with ``_`` for ``-``; None omits a header.
    """
    given: dict[str, str | None] = {"host": "a"}
    if body is not None:
        given["content-length"] = str(len(body))
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method or ('GET' if body is None else 'POST')} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on a new event loop, with a time limit."""
    asyncio.run(asyncio.wait_for(test, 60))
