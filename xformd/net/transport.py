"""A server transport that sends at once what the system takes at once.

Twisted's own waits for the reactor's next turn with every write: two changes to the set of watched sockets and a turn
of the loop, for an answer that nearly always fits into the socket's buffer. What does not fit goes Twisted's way.
"""

import socket
from typing import Any

from twisted.internet import main, tcp
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

LONG_READ_BYTES = 256 * 1024
"""Taken from a socket at a time while one string is longer than a common read."""

_MORE_FOLLOWS: int = getattr(socket, "MSG_MORE", 0)  # Linux has it

_BOTH_ENDED = Failure(main.CONNECTION_DONE)


class EagerServer(tcp.Server):
    """A connection that tries to send before it queues."""

    _read_bytes = tcp.Server.bufferSize
    _send_flags = 0

    def doRead(self) -> Any:
        """Read once, as Twisted's own does, but more at a time inside a long poem: it comes in fewer pieces."""
        try:
            data = self.socket.recv(self._read_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        if not data:
            if not self._writeDisconnected:
                return main.CONNECTION_DONE
            self.connectionLost(_BOTH_ENDED)  # without asking around what is to become of the other side
            return None
        self.protocol.dataReceived(data)
        return None

    def hint_read_size(self, count: int) -> None:
        """Be told how long one string is. Unless it is long itself, a long read is many requests at once."""
        self._read_bytes = LONG_READ_BYTES if count > self.bufferSize else self.bufferSize

    def hint_close_after_write(self) -> None:
        """Be told that this side ends right after the next write: the system sends both in one segment."""
        self._send_flags = _MORE_FOLLOWS

    def write(self, data: bytes) -> None:
        """Send what can be sent now; queue the rest."""
        if not data:
            return  # a broken socket tells of its error once, and sending nothing would be told, and tell nobody
        sent = self.send_now(data)
        if sent < len(data):
            tcp.Server.write(self, data[sent:])

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what can be sent now, and say how many bytes that was: none while anything is queued."""
        if self.dataBuffer or self._tempDataBuffer or not self.connected or self.disconnecting or self.TLS:
            return 0
        try:
            return self.socket.send(data, self._send_flags)
        except OSError:  # full, or broken: the reactor will see which
            return 0

    def loseWriteConnection(self) -> None:
        """End this side now where nothing is queued: Twisted's own waits for the reactor's next turn."""
        if self.dataBuffer or self._tempDataBuffer or self._writeDisconnected or not self.connected:
            tcp.Server.loseWriteConnection(self)
            return
        self._writeDisconnected = True
        self._shouldShutdown = False  # later, with the rest: closing the socket does that
        self._closeWriteConnection()


def make_eager(port: IListeningPort) -> None:
    """Let a TCP port's connections be prompt; any other port stays as it is."""
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = EagerServer
        # Its connections inherit this. An answer would wait for what was sent before it to be acknowledged, and a
        # client that has nothing to say puts that off for 40 ms.
        port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
