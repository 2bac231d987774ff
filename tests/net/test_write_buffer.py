"""Every byte leaves once and in order, whatever the system takes at once; a peer that does not read has a deadline."""

import socket
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from support.wires import Wire
from xformd.limits import Limits
from xformd.net.write_buffer import PART_BYTES, ReadProgress, WriteBuffer

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
    buffer = WriteBuffer(
        wire, Clock(), Limits(), lambda: pytest.fail("gave up"), lambda: notes.append(buffer.unread_bytes)
    )
    return buffer


@given(st.lists(SIZES, max_size=6), st.lists(SIZES, max_size=12))
def test_what_is_sent_at_once_and_what_waits_are_one_stream(writes: list[int], takes: list[int]) -> None:
    wire = Socket(*takes)
    buffer = buffer_of(wire)
    expected = b""
    for number, size in enumerate(writes):
        buffer.write(bytes([number]) * size)
        expected += bytes([number]) * size
        assert len(wire.sent()) + buffer.unread_bytes >= len(expected)
        assert (buffer.unread_bytes == 0) == (wire.sent() == expected)
    while buffer.unread_bytes or wire.held_bytes > PART_BYTES:
        wire.taken()
        wire.held_bytes = 0 if wire.held_bytes <= PART_BYTES else wire.held_bytes
    assert wire.sent() == expected
    buffer.close()


def test_drained_is_called_once_all_that_had_to_wait_has_left() -> None:
    wire, drained = Socket(5 * PART_BYTES), list[int]()
    buffer = buffer_of(wire, drained)
    buffer.write(b"x" * 5 * PART_BYTES)
    assert wire.sent() == b"x" * 5 * PART_BYTES
    assert drained == []
    buffer.write(b"x" * 5 * PART_BYTES)
    wire.taken()
    assert (buffer.unread_bytes, drained) == (5 * PART_BYTES, [])  # the whole piece is held
    wire.taken()
    assert drained == [0]


def test_a_second_pause_does_not_move_the_deadline() -> None:
    clock, given_up = Clock(), list[float]()
    wire: Any = Socket()
    buffer = WriteBuffer(wire, clock, Limits(), lambda: given_up.append(clock.seconds()), lambda: None)
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


def test_many_small_pieces_take_little_more_than_their_bytes() -> None:
    wire = Socket()
    buffer = buffer_of(wire)
    buffer.pauseProducing()
    tracemalloc.start()
    for _ in range(20_000):
        buffer.write(bytes(13))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert buffer.unread_bytes == 260_000
    assert taken < 300_000
    buffer.resumeProducing()
    for _ in range(3):
        wire.taken()
    assert (buffer.unread_bytes, wire.sent()) == (0, bytes(260_000))
    buffer.close()


class Slow(Wire):
    """A transport whose peer takes a few bytes of a part at a time, which the transport does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.dataBuffer = b""
        self.offset = 0

    def write(self, data: bytes) -> None:
        self.dataBuffer, self.offset = self.dataBuffer[self.offset :] + data, 0
        super().write(data)

    def take(self, count: int) -> None:
        """Let the peer take some, and tell the buffer only if that is all there is."""
        self.offset += count
        if self.offset == len(self.dataBuffer):
            self.taken()


@pytest.mark.parametrize(("bytes_per_s", "is_cut_off"), [(100, False), (99, True)])
def test_the_peer_must_take_so_much_in_each_period(bytes_per_s: int, is_cut_off: bool) -> None:
    clock, given_up, slow = Clock(), list[float](), Slow()
    limits = Limits(write_timeout_s=10, min_read_rate_bytes_per_s=100)
    buffer = WriteBuffer(slow, clock, limits, lambda: given_up.append(clock.seconds()), lambda: None)
    buffer.write(bytes(10 * PART_BYTES))
    for _ in range(100):
        slow.take(bytes_per_s)
        clock.advance(1)
    assert given_up == ([10] if is_cut_off else [])
    buffer.close()


def test_a_part_that_the_peer_took_long_ago_gains_no_time() -> None:
    clock, given_up, slow = Clock(), list[float](), Slow()
    limits = Limits(write_timeout_s=10, min_read_rate_bytes_per_s=100)
    buffer = WriteBuffer(slow, clock, limits, lambda: given_up.append(clock.seconds()), lambda: None)
    buffer.write(bytes(10 * PART_BYTES))
    clock.advance(9)
    for _ in range(3):
        slow.take(len(slow.dataBuffer))
    clock.pump([1] * 30)
    assert given_up == [19]
    buffer.close()


def test_what_the_system_holds_counts_until_the_peer_has_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.send(bytes(50_000))
        progress = ReadProgress(ours, Limits(write_timeout_s=1, min_read_rate_bytes_per_s=1_000))
        assert not progress.is_enough
        theirs.recv(50_000)
        assert progress.is_enough
        assert not ReadProgress(ours, Limits()).is_enough  # there is nothing to take
