"""A server transport that sends at once what the system takes at once.

Twisted's own waits for the reactor's next turn with every write: two changes to the set of watched sockets and a turn
of the loop, for an answer that nearly always fits into the socket's buffer. What does not fit goes Twisted's way.
"""

from twisted.internet import tcp
from twisted.internet.interfaces import IListeningPort


class PromptServer(tcp.Server):
    """A connection that tries to send before it queues."""

    def write(self, data: bytes) -> None:
        """Send what can be sent now; queue the rest."""
        if self.dataBuffer or self._tempDataBuffer or not self.connected or self.disconnecting or self.TLS:
            tcp.Server.write(self, data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:  # full, or broken: the reactor will see which
            sent = 0
        if sent < len(data):
            tcp.Server.write(self, data[sent:])

    def loseWriteConnection(self) -> None:
        """End this side now where nothing is queued: Twisted's own waits for the reactor's next turn."""
        if self.dataBuffer or self._tempDataBuffer or self._writeDisconnected or not self.connected:
            tcp.Server.loseWriteConnection(self)
            return
        self._writeDisconnected = True
        self._closeWriteConnection()


def make_prompt(port: IListeningPort) -> None:
    """Let a TCP port's connections be prompt; any other port stays as it is."""
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = PromptServer
