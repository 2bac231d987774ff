"""A server's transport in memory."""

from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.internet.testing import StringTransport
from zope.interface import implementer


@implementer(IHalfCloseableDescriptor)
class Wire(StringTransport):
    """A transport that remembers how it was closed, and whose peer reads when the test says so."""

    write_closed = False
    held_bytes = 0
    max_held_bytes = 65_536

    def write(self, data: bytes) -> None:
        super().write(data)
        self.held_bytes += len(data)
        if self.held_bytes > self.max_held_bytes and self.producer is not None:
            self.producer.pauseProducing()

    def taken(self) -> None:
        """Let the peer read all that is held."""
        was_full, self.held_bytes = self.held_bytes > self.max_held_bytes, 0
        if was_full and self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.write_closed = True

    def abortConnection(self) -> None:
        super().abortConnection()
        self.disconnected = True

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...
