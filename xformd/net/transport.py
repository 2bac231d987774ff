"""Two transports that send at once what the operating system takes at once: to a client, and to a worker.

Twisted's own wait for the reactor's next turn with every write: two changes to the set of watched sockets and a turn of
the loop, for data that nearly always fits into the socket's buffer. Sending it at once took a small request from 19.6
to 16.6 us of CPU, a poem of 1 MiB from 3.0 to 2.5 ms. Invariant: every byte leaves once and in order, however much the
system takes.
"""

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IListeningPort, IReactorFDSet
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

LONG_READ_BYTES = 256 * 1024
"""How much to read at a time while a long string arrives. Not always: one such read of short requests would keep the
other connections waiting for a whole turn of the reactor."""

CHANNEL_BUFFER_BYTES = 1024 * 1024  # asked of the system for each direction: a poem that fits costs one system call

CHANNEL_READ_BYTES = 256 * 1024

_MORE_FOLLOWS: int = getattr(socket, "MSG_MORE", 0)  # Linux only

_BOTH_SIDES_CLOSED = Failure(CONNECTION_DONE)


class EagerServer(tcp.Server):
    """A server connection that tries to send before it queues. What does not fit is queued by Twisted."""

    _read_bytes = tcp.Server.bufferSize
    _send_flags = 0

    def doRead(self) -> Any:
        """Read once, as Twisted's own does, but more at a time inside a long string."""
        try:
            data = self.socket.recv(self._read_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            if not self._writeDisconnected:
                return CONNECTION_DONE
            # Returning CONNECTION_DONE would notify both halves separately: 4 more calls to epoll, and a new Failure.
            self.connectionLost(_BOTH_SIDES_CLOSED)
            return None
        self.protocol.dataReceived(data)
        return None

    def hint_read_size(self, count: int) -> None:
        """Set the length of the string that arrives: long strings are read in long pieces."""
        self._read_bytes = LONG_READ_BYTES if count > self.bufferSize else self.bufferSize

    def hint_close_after_write(self) -> None:
        """Expect this side to be closed right after the next write, so that both leave in one segment."""
        self._send_flags = _MORE_FOLLOWS

    def write(self, data: bytes) -> None:
        """Send what can be sent now; queue the rest."""
        if not data:
            return  # sending nothing would consume a pending socket error, and a reset would look like a clean close
        sent = self.send_now(data)
        if not sent:
            tcp.Server.write(self, data)
        elif sent < len(data):  # and nothing else waits: not copied
            self.dataBuffer, self.offset = data, sent
            self._maybePauseProducer()  # type: ignore[no-untyped-call]
            self.startWriting()  # type: ignore[no-untyped-call]

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what can be sent now, and return how many bytes that was: 0 while anything is queued."""
        if self.dataBuffer or self._tempDataBuffer or not self.connected or self.disconnecting or self.TLS:
            return 0
        try:
            return self.socket.send(data, self._send_flags)
        except OSError:  # full or broken: the reactor finds out which
            return 0

    def loseWriteConnection(self) -> None:
        """Close this side now if nothing is queued: Twisted's own waits for the reactor's next turn."""
        if self.dataBuffer or self._tempDataBuffer or self._writeDisconnected or not self.connected:
            tcp.Server.loseWriteConnection(self)
            return
        self._writeDisconnected = True
        self._shouldShutdown = False  # closing the socket does that
        self._closeWriteConnection()


def make_eager(port: IListeningPort) -> None:
    """Make the connections of a TCP port ``EagerServer``; leave any other port as it is."""
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = EagerServer
        # Accepted connections inherit this. Without it an answer in several segments waits until the client has
        # acknowledged the first one, which a client with nothing to send delays by 40 ms.
        port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def peer_uid(transport: Any) -> int:
    """Return the user id of the process at the other end of a Unix socket (unix(7), SO_PEERCRED); -1 if unknown."""
    connection, option = getattr(transport, "socket", None), getattr(socket, "SO_PEERCRED", None)
    if not isinstance(connection, socket.socket) or option is None:
        return -1
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, 12))
    return int(uid)


class Channel(EagerServer):
    """The server's end of a socket to a process of its own. Twisted's pipes to processes read only 8 KiB at a time."""

    _read_bytes = SEND_LIMIT = CHANNEL_READ_BYTES
    logstr = "worker"
    send = EagerServer.write

    def __init__(
        self,
        connection: socket.socket,
        receive: Callable[[bytes], None],
        lost: Callable[[], None],
        reactor: IReactorFDSet,
    ) -> None:
        protocol: Any = SimpleNamespace(dataReceived=receive, connectionLost=lambda _: lost())
        tcp.Connection.__init__(self, connection, protocol, reactor)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
        self.connected = True
        self.startReading()  # type: ignore[no-untyped-call]

    def writeSomeData(self, data: bytes) -> Any:  # noqa: N802 - Twisted's name
        """Drop what nobody can receive: the next read finds out too, after what was sent before the end."""
        sent = super().writeSomeData(data)
        return len(data) if isinstance(sent, Exception) else sent

    def send_descriptors(self, *descriptors: int) -> None:
        """Send descriptors with one byte that says so, at once; nothing may wait to be sent.

        Raises ``OSError`` if the other end is gone, or has many to take already.
        """
        if not self.connected:
            raise BrokenPipeError(errno.EPIPE, "its channel is closed")
        socket.send_fds(self.socket, [b"."], descriptors)

    def finish(self) -> None:
        """Tell the other end that no more will be sent; what it sends is still received."""
        if self.connected:
            with contextlib.suppress(OSError):  # the other end is gone
                self.socket.shutdown(socket.SHUT_WR)

    def read_rest(self) -> None:
        """Receive what has arrived and has not been read yet."""
        with contextlib.suppress(OSError):  # nothing more is there
            while self.connected and (data := self.socket.recv(CHANNEL_READ_BYTES)):
                self.protocol.dataReceived(data)

    def close(self) -> None:
        """Close, without calling ``lost``."""
        if self.connected:
            self.protocol = Protocol()
            self.connectionLost(_BOTH_SIDES_CLOSED)
