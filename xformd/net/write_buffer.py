"""Buffer the output of a connection, with a deadline for a peer that does not read, or too slowly.

The transport gets one part at a time. Invariant: every byte leaves once and in order, and what waits takes no more
memory than ``unread_bytes`` says.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from xformd.limits import Limits
from xformd.net.deadline import Deadline
from xformd.net.plain import bytes_in_system

PART_BYTES = 64 * 1024

MERGED_BYTES = 4 * 1024  # pieces that wait are joined up to this: each costs 240 bytes, and an answer may have 13


@implementer(IPushProducer)
@attrs.define(eq=False, slots=False)
class WriteBuffer:
    """The output of one connection; a ``send_now`` of the transport is tried first."""

    _transport: Any  # of a stream connection in Twisted
    _clock: IReactorTime
    _limits: Limits
    _give_up: Callable[[], None]  # called when the peer has read less than it must for ``write_timeout_s``
    _drained: Callable[[], None]  # called when it has become empty again

    def __attrs_post_init__(self) -> None:
        transport = self._transport
        self._deadline = Deadline(self._clock, self._deadline_passed)
        self._progress = ReadProgress(transport, self._limits)  # since the deadline was set
        # Looked up on the class: TLS forwards unknown attributes to the socket under it, which would send plain text.
        own = getattr(type(transport), "send_now", None)
        self._send_now: Callable[[bytes | memoryview], int] = partial(own, transport) if own else lambda _: 0
        self._waiting: deque[tuple[memoryview, int]] = deque()  # the rest of each piece, and the whole piece's length
        self._is_blocked = False  # the transport holds a part that the peer has not read
        self.unread_bytes = 0  # of whole pieces: what has left of one is in memory until all of it has
        transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Send, or keep until the peer has read what was written before."""
        if self._is_blocked:
            self.unread_bytes += len(data)
            if self._waiting and self._waiting[-1][1] + len(data) <= MERGED_BYTES:
                data = bytes(self._waiting.pop()[0]) + data
            self._waiting.append((memoryview(data), len(data)))
        elif len(data) <= PART_BYTES:
            self._transport.write(data)
        elif (sent := self._send_now(data)) < len(data):
            self.unread_bytes += len(data)
            self._waiting.append((memoryview(data)[sent:], len(data)))
            self.resumeProducing()

    def close(self) -> None:
        """Drop the rest: the connection is gone, or about to be."""
        self._waiting.clear()
        self._deadline.close()

    def pauseProducing(self) -> None:
        """Start the deadline: the transport holds a part that the peer has not read."""
        self._is_blocked = True
        if not self._deadline.is_set or self._progress.passed_bytes >= self._progress.least_bytes:
            self._set_deadline()

    def resumeProducing(self) -> None:
        """Pass on the next part: the peer has read the last one."""
        self._is_blocked = False
        while self._waiting and not self._is_blocked:
            data, piece_bytes = self._waiting.popleft()
            sent = self._send_now(data)
            part, rest = data[sent : sent + PART_BYTES], data[sent + PART_BYTES :]
            if rest:
                self._waiting.appendleft((rest, piece_bytes))
            else:
                self.unread_bytes -= piece_bytes
            self._progress.passed_bytes += sent + len(part)
            if part:
                self._transport.write(bytes(part))
        if not self._is_blocked:
            self._deadline.clear()
            self._drained()

    def _set_deadline(self) -> None:
        self._progress = ReadProgress(self._transport, self._limits)
        self._deadline.set(self._limits.write_timeout_s)

    def _deadline_passed(self) -> None:
        if self._progress.is_enough:
            self._set_deadline()
        else:
            self._give_up()

    stopProducing = close


class ReadProgress:
    """What a peer takes of its output from now on, to be judged after ``write_timeout_s``.

    It shows at the socket, of TLS at that beneath, once the peer's system acknowledges it, in steps of up to 64 KiB.
    The transport learns of it much later: the system holds megabytes. ``passed_bytes`` is what it was given since.
    """

    def __init__(self, transport: Any, limits: Limits) -> None:
        self._transport = transport
        self.least_bytes = limits.min_read_rate_bytes_per_s * limits.write_timeout_s
        self._unread_bytes = _bytes_below(transport)
        self.passed_bytes = 0

    @property
    def is_enough(self) -> bool:
        """Whether the peer has taken as much as it must, or all that there was."""
        unread_bytes = self._unread_bytes + self.passed_bytes
        return unread_bytes - _bytes_below(self._transport) >= max(1, min(self.least_bytes, unread_bytes))


def _bytes_below(transport: Any) -> int:
    """Return how much output the transport and the system hold, as far as they say."""
    unsent = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    return unsent + getattr(transport, "_tempDataLen", 0) + bytes_in_system(transport)
