"""What a connection has still to send: bounded, and with a deadline for a peer that does not read.

The transport is given a part at a time, so that each part the peer takes can be seen, and pushes the deadline back.
"""

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime, ITransport
from zope.interface import implementer

from xformd.net.deadline import Deadline

PART_BYTES = 64 * 1024


class IStreamTransport(ITransport, IConsumer):
    """What Twisted's streams hand to a protocol."""


@implementer(IPushProducer)
class WriteBuffer:
    """The output of one connection.

    Args:
        transport: where it goes. One that has a ``send_now`` is asked first how much the system takes at once.
        clock: a reactor, or a clock in its place.
        write_timeout_s: how long the peer may take nothing at all.
        give_up: is called when it has taken nothing for so long.
        drained: is called when all that was written has left, each time that something had to wait.
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
        self._deadline = Deadline(clock, give_up)
        self._drained = drained
        # Its own alone: TLS hands on what it does not know to the socket under it, and that would send plain text.
        own = getattr(type(transport), "send_now", None)
        self._send_now: Callable[[bytes | memoryview], int] = partial(own, transport) if own else _send_nothing
        self._waiting: deque[memoryview] = deque()
        self._is_blocked = False  # the transport holds a part that the peer has not taken
        self.unread_bytes = 0
        transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Send, or keep until the peer has taken what was before."""
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
        """Forget what is left: the connection is gone, or about to be."""
        self._waiting.clear()
        self._deadline.close()

    def pauseProducing(self) -> None:
        """Note that the transport holds more than the peer takes."""
        self._is_blocked = True
        if not self._deadline.is_set:
            self._deadline.set(self._write_timeout_s)

    def resumeProducing(self) -> None:
        """Hand over the next part: the peer has taken the last one."""
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

    def stopProducing(self) -> None:
        """Forget what is left: the connection is gone."""
        self.close()


def _send_nothing(_: bytes | memoryview) -> int:
    return 0
