"""A server's connections in memory, with a clock that only the test moves."""

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHalfCloseableDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from support.registries import registry_of
from xformd import transform
from xformd.limits import Limits
from xformd.protocol import TransformFactory, TransformProtocol
from xformd.service import TransformService

HERE = IPv4Address("TCP", "127.0.0.1", 1)


@implementer(IHalfCloseableDescriptor)
class Wire(StringTransport):
    """A transport that remembers how it was closed, and whose peer reads when the test says so."""

    write_closed = False
    held_bytes = 0

    def write(self, data: bytes) -> None:
        super().write(data)  # type: ignore[no-untyped-call]
        self.held_bytes += len(data)
        if self.held_bytes > 65_536 and self.producer is not None:
            self.producer.pauseProducing()

    def taken(self) -> None:
        """Let the peer read all that is held."""
        was_full, self.held_bytes = self.held_bytes > 65_536, 0
        if was_full and self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def abortConnection(self) -> None:
        super().abortConnection()  # type: ignore[no-untyped-call]
        self.disconnected = True

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...


@transform(inline=True)
def upper(poem: str) -> str:
    return poem.upper()


@transform
def grow(poem: str) -> str:
    return poem * 1_000_000


class Server:
    """A factory with a transform whose results the test decides."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.results: list[Deferred[str]] = []
        self.cancelled = 0

        @transform
        def later(poem: str) -> Deferred[str]:
            self.results.append(Deferred(self._cancel))
            return self.results[-1]

        all_limits = Limits(**limits)
        service = TransformService.inline(
            registry_of(upper, grow, later), all_limits, self.clock, stopwatch=self.clock.seconds
        )
        self.factory = TransformFactory(service, all_limits, self.clock)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def connect(self, peer: IAddress = HERE, wire: Wire | None = None) -> tuple[TransformProtocol, Wire]:
        protocol = self.factory.buildProtocol(peer)
        assert isinstance(protocol, TransformProtocol)
        wire = wire or Wire()
        protocol.makeConnection(wire)
        return protocol, wire
