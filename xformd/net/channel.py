"""Our end of the socket to a worker. It sends at once, and reads as much as there is.

Twisted's own pipes to processes read 8 KiB at a time, and write in another turn of the reactor.
"""

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFDSet, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

BUFFER_BYTES = 1024 * 1024
"""Asked of the system for each direction: a poem that fits costs one system call."""

RECEIVE_BYTES = 256 * 1024


@implementer(IReadWriteDescriptor)
class Channel:
    """One connected socket.

    Args:
        connection: the socket.
        receive: is called with what arrives.
        lost: is called when the other end has closed it.
        reactor: says when there is something to read, and room to write.
    """

    def __init__(
        self,
        connection: socket.socket,
        receive: Callable[[bytes], None],
        lost: Callable[[], None],
        reactor: IReactorFDSet,
    ) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._socket = connection
        self._receive = receive
        self._lost = lost
        self._reactor = reactor
        self._unsent = memoryview(b"")
        self._is_open = True
        reactor.addReader(self)

    def send(self, data: bytes) -> None:
        """Send as much as the system takes now, and the rest when it takes more."""
        if self._is_open:
            self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)
            self.doWrite()
            if self._unsent:
                self._reactor.addWriter(self)

    def close(self) -> None:
        """Close, and tell nobody."""
        if self._is_open:
            self._is_open = False
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()

    # What the reactor calls. It takes an exception for an answer, as Twisted's own streams give it.

    def fileno(self) -> int:
        """Give the descriptor; -1 once it is closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Say what the log calls it."""
        return "worker"

    def doRead(self) -> Any:
        """Take what is there."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_LOST
        self._receive(data)
        return None

    def doWrite(self) -> Any:
        """Send what is left, as far as there is room."""
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return None
        except OSError:
            self._unsent = memoryview(b"")
            return CONNECTION_LOST  # from ``send`` nobody looks at this: the next read tells the same
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._reactor.removeWriter(self)
        return None

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Close, and tell."""
        if self._is_open:
            self.close()
            self._lost()
