"""Buffer the output of a connection, with a deadline for a peer that does not read.

The transport gets one part at a time, so that it shows when the peer takes one, which moves the deadline. Invariant:
every byte leaves once and in order.
"""

import fcntl
import struct
import termios
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime, ITransport
from zope.interface import implementer

from xformd.net.deadline import Deadline

PART_BYTES = 64 * 1024


class IStreamTransport(ITransport, IConsumer):
    """The transport of a stream connection in Twisted."""


@implementer(IPushProducer)
class WriteBuffer:
    """The output of one connection.

    Args:
        transport: where it goes. If it has a ``send_now``, that is tried first.
        clock: a reactor, or a clock in its place.
        write_timeout_s: how long the peer may read nothing at all.
        give_up: called when it has read nothing for that long.
        drained: called when the buffer has become empty again.
    """

    def __init__(
        self,
        transport: IStreamTransport,
        clock: IReactorTime,
        write_timeout_s: float,
        give_up: Callable[[], None],
        drained: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._write_timeout_s = write_timeout_s
        self._deadline = Deadline(clock, self._deadline_passed)
        self._give_up = give_up
        self._unread_by_peer = 0  # of what the system holds, when the deadline was set
        self._drained = drained
        # Looked up on the class: TLS forwards unknown attributes to the socket under it, which would send plain text.
        own = getattr(type(transport), "send_now", None)
        self._send_now: Callable[[bytes | memoryview], int] = partial(own, transport) if own else _send_nothing
        self._waiting: deque[memoryview] = deque()
        self._is_blocked = False  # the transport holds a part that the peer has not read
        self.unread_bytes = 0
        transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Send, or keep until the peer has read what was written before."""
        if self._is_blocked:
            self._keep(memoryview(data))
        elif len(data) <= PART_BYTES:
            self._transport.write(data)
        elif (sent := self._send_now(data)) < len(data):
            self._keep(memoryview(data)[sent:])
            self.resumeProducing()

    def _keep(self, data: memoryview) -> None:
        self._waiting.append(data)
        self.unread_bytes += len(data)

    def close(self) -> None:
        """Drop the rest: the connection is gone, or about to be."""
        self._waiting.clear()
        self._deadline.close()

    def pauseProducing(self) -> None:
        """Start the deadline: the transport holds a part that the peer has not read."""
        self._is_blocked = True
        if not self._deadline.is_set:
            self._set_deadline()

    def resumeProducing(self) -> None:
        """Pass on the next part: the peer has read the last one."""
        self._is_blocked = False
        self._deadline.clear()
        while self._waiting and not self._is_blocked:
            data = self._waiting.popleft()
            sent = self._send_now(data)
            part, rest = data[sent : sent + PART_BYTES], data[sent + PART_BYTES :]
            if rest:
                self._waiting.appendleft(rest)
            self.unread_bytes -= sent + len(part)
            if part:
                self._transport.write(bytes(part))
        if not self._is_blocked:
            self._drained()

    def _set_deadline(self) -> None:
        self._unread_by_peer = bytes_in_system(self._transport)
        self._deadline.set(self._write_timeout_s)

    def _deadline_passed(self) -> None:
        """Abort, unless the peer reads what the system holds: the transport learns of that only much later."""
        if bytes_in_system(self._transport) < self._unread_by_peer:
            self._set_deadline()
        else:
            self._give_up()

    def stopProducing(self) -> None:
        """Drop the rest: the connection is gone."""
        self.close()


def bytes_in_system(transport: Any) -> int:
    """Return how much of a connection's output its peer has not acknowledged; 0 where the system does not say."""
    fileno = getattr(transport, "fileno", None)
    if fileno is None:
        return 0
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(fileno(), termios.TIOCOUTQ, bytes(4)))  # as SIOCOUTQ, tcp(7)
    except (OSError, ValueError):
        return 0
    return int(count)


def _send_nothing(_: bytes | memoryview) -> int:
    return 0
