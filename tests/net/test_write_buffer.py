"""Every byte leaves once and in order, whatever the system takes at once; a peer that does not read has a deadline."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from support.wires import Wire
from xformd.net.write_buffer import PART_BYTES, WriteBuffer

SIZES = st.sampled_from([0, 1, 10, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])


class Socket(Wire):
    """A transport that sends as many bytes at once as the next number says, and 0 after the last."""

    def __init__(self, *takes: int) -> None:
        super().__init__()
        self._takes = [*takes]

    def send_now(self, data: memoryview) -> int:
        sent = min(self._takes.pop(0), len(data)) if self._takes and not self.held_bytes else 0
        self.io.write(data[:sent])
        return sent

    def sent(self) -> bytes:
        """Return what has been sent, or written to be sent."""
        return self.io.getvalue()


def buffer_of(wire: Any, drained: list[int] | None = None) -> WriteBuffer:
    """Make a buffer that notes how much is unread each time that it is drained, and never gives up."""
    notes = [] if drained is None else drained
    buffer = WriteBuffer(wire, Clock(), 30, lambda: pytest.fail("gave up"), lambda: notes.append(buffer.unread_bytes))
    return buffer


@given(st.lists(SIZES, max_size=6), st.lists(SIZES, max_size=12))
def test_what_is_sent_at_once_and_what_waits_are_one_stream(writes: list[int], takes: list[int]) -> None:
    socket = Socket(*takes)
    buffer = buffer_of(socket)
    expected = b""
    for number, size in enumerate(writes):
        buffer.write(bytes([number]) * size)
        expected += bytes([number]) * size
        assert len(socket.sent()) + buffer.unread_bytes == len(expected)
    while buffer.unread_bytes or socket.held_bytes > PART_BYTES:
        socket.taken()
        socket.held_bytes = 0 if socket.held_bytes <= PART_BYTES else socket.held_bytes
    assert socket.sent() == expected
    buffer.close()


def test_drained_is_called_once_all_that_had_to_wait_has_left() -> None:
    socket, drained = Socket(5 * PART_BYTES), list[int]()
    buffer = buffer_of(socket, drained)
    buffer.write(b"x" * 5 * PART_BYTES)
    assert socket.sent() == b"x" * 5 * PART_BYTES
    assert drained == []
    buffer.write(b"x" * 5 * PART_BYTES)
    socket.taken()
    assert (buffer.unread_bytes, drained) == (PART_BYTES, [])
    socket.taken()
    assert drained == [0]


def test_a_second_pause_does_not_move_the_deadline() -> None:
    clock, given_up = Clock(), list[float]()
    socket: Any = Socket()
    buffer = WriteBuffer(socket, clock, 30, lambda: given_up.append(clock.seconds()), lambda: None)
    buffer.pauseProducing()
    for _ in range(4):
        clock.advance(10)
        buffer.pauseProducing()
    assert given_up == [30]
    buffer.close()


class Encrypting(Wire):
    """A transport that forwards unknown attributes to the one under it, as Twisted's TLS does."""

    def __init__(self, below: Socket) -> None:
        super().__init__()
        self._below = below

    def __getattr__(self, name: str) -> object:
        return getattr(self._below, name)


def test_nothing_is_sent_past_a_transport_that_encrypts() -> None:
    below = Socket(1_000_000)
    encrypting = Encrypting(below)
    buffer = buffer_of(encrypting)
    buffer.write(b"x" * 2 * PART_BYTES)
    assert below.sent() == b""
    assert encrypting.io.getvalue()
    buffer.close()
