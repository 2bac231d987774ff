"""A server and its session clients in memory, with a clock that only the test moves."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from support.registries import registry_of
from support.wires import Wire
from xformd import Transform, transform
from xformd.counting import CountingService
from xformd.limits import Limits
from xformd.protocol import TransformFactory, TransformProtocol
from xformd.service import TransformService
from xformd.spec import parse
from xformd.telemetry.access_log import AccessEntry, AccessLog
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.tracing import NO_TRACES, Tracer
from xformd.wire import session
from xformd.wire.netstring import Decoder
from xformd.wire.session import ControlRequest, Reply, Request

MIB = 1024 * 1024
HERE = IPv4Address("TCP", "127.0.0.1", 1)
ELSEWHERE = IPv4Address("TCP", "192.0.2.7", 1)


@transform(inline=True)
def upper(poem: str) -> str:
    return poem.upper()


@transform
def grow(poem: str) -> str:
    return poem * 1_000_000


class MemoryAccessLog(AccessLog):
    """An access log that keeps what its lines would have."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, entry: AccessEntry) -> None:
        self.lines.append(json.loads(json.dumps(entry.fields())))

    def take(self, *fields: str) -> list[tuple[Any, ...]]:
        """Return these fields of each line so far, None for one that it does not have, and forget the lines."""
        found = [tuple(map(line.get, fields)) for line in self.lines]
        self.lines.clear()
        return found


def count_in(factory: TransformFactory, metrics: Metrics, access_log: AccessLog | None = None) -> None:
    """Let a factory count its requests from now on."""
    assert isinstance(factory.service, TransformService)
    factory.metrics = metrics
    factory.access_log = access_log
    factory.counting = {
        "classic": CountingService(factory.service, metrics, "classic", access_log),
        "session": CountingService(factory.service, metrics, "session", access_log),
    }


class MemoryServer:
    """A factory with a few transforms, and ``later``, whose results the test decides.

    Args:
        counts: whether it counts its requests.
        access_log: gets a line for each request, if it counts them.
        transforms: that it has besides ``later``.
        version: of the plugin with its transforms.
        stopwatch: measures how long things take; the clock, unless the test says otherwise.
        tracer: says which requests are traced.
        is_deterministic: what ``later`` says of itself.
        limits: of the server.
    """

    def __init__(
        self,
        *,
        counts: bool = False,
        access_log: AccessLog | None = None,
        transforms: Sequence[Transform] = (upper, grow),
        version: str = "1.0",
        stopwatch: Callable[[], float] | None = None,
        tracer: Tracer = NO_TRACES,
        is_deterministic: bool = False,
        **limits: Any,
    ) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.results: list[Deferred[str]] = []
        self.cancelled = 0

        @transform(deterministic=is_deterministic)
        def later(poem: str) -> Deferred[str]:
            self.results.append(Deferred(self._cancel))
            return self.results[-1]

        self.limits = Limits(**limits)
        registry = registry_of(*transforms, later, version=version)
        self.service = TransformService.inline(registry, self.limits, self.clock, stopwatch or self.clock.seconds)
        self.factory = TransformFactory(self.service, self.limits, self.clock, tracer=tracer)
        if counts:
            count_in(self.factory, self.metrics, access_log)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    @property
    def requests(self) -> dict[tuple[str, str, str], int]:
        """How many requests there were, by transform, front and code."""
        self.metrics.fold()
        return dict(self.metrics.requests)

    def connect(self, peer: IAddress = HERE, wire: Wire | None = None) -> tuple[TransformProtocol, Wire]:
        """Open a connection; return the server's protocol and its transport."""
        protocol = self.factory.buildProtocol(peer)
        assert isinstance(protocol, TransformProtocol)
        wire = wire or Wire()
        protocol.makeConnection(wire)
        return protocol, wire

    def receive(self, data: bytes) -> tuple[TransformProtocol, Wire]:
        """Open a connection on which this data arrives."""
        protocol, wire = self.connect()
        protocol.dataReceived(data)
        return protocol, wire


class MemorySession:
    """The client's side of a session."""

    def __init__(self, server: MemoryServer, *, opened: bool = True, peer: IAddress = HERE) -> None:
        self.protocol, self.wire = server.connect(peer)
        self._decoder = Decoder(20 * MIB)
        if opened:
            self.send(session.encode_opening())
            self.hello = session.decode_hello(self.strings()[0])

    def send(self, data: bytes) -> None:
        """Send, unless the server does not read."""
        if not self.protocol._is_paused:
            self.protocol.dataReceived(data)

    def ask(self, request_id: int, spec: str = "upper", poem: bytes = b"a", timeout_ms: int | None = None) -> None:
        """Send a request."""
        self.send(session.encode_request(Request(request_id, parse(spec), poem, timeout_ms)))

    def control(self, request_id: int, control: session.Control) -> None:
        """Send a control message."""
        self.send(session.encode_control(ControlRequest(request_id, control)))

    def strings(self) -> list[bytes]:
        """Return what the server has sent since the last time."""
        data = self.wire.value()
        self.wire.clear()
        return self._decoder.decode(data)

    def replies(self) -> dict[int, Any]:
        """Return what has been answered since the last time: a poem, or the error's class."""
        replies = map(session.decode_reply, self.strings())
        return {reply.id: reply.poem if isinstance(reply, Reply) else type(reply.error) for reply in replies}

    def lose(self, reason: Exception | None = None) -> None:
        """Lose the connection."""
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))
