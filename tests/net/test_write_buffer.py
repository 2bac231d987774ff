"""Output: every byte in order, whatever the system takes at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from test_protocol import Wire
from xformd.net.write_buffer import PART_BYTES, WriteBuffer

SIZES = st.sampled_from([0, 1, 10, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])


class Socket(Wire):
    """A transport that sends at once what the system takes: so many bytes each time it is asked."""

    def __init__(self, takes: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._takes = takes

    def send_now(self, data: memoryview) -> int:
        taken = min(self._takes.pop(0), len(data)) if self._takes and not self.held_bytes else 0
        self.io.write(data[:taken])
        return taken


@given(st.lists(SIZES, max_size=6), st.lists(SIZES, max_size=12))
def test_what_is_sent_at_once_and_what_waits_make_one_stream(writes: list[int], takes: list[int]) -> None:
    socket = Socket(takes)
    drained: list[int] = []
    output = WriteBuffer(socket, Clock(), 30, lambda: pytest.fail("gave up"), lambda: drained.append(1))
    expected = b""
    for number, size in enumerate(writes):
        output.write(bytes([number]) * size)
        expected += bytes([number]) * size
        assert len(socket.value()) + output.unread_bytes == len(expected)
    while output.unread_bytes or socket.held_bytes > PART_BYTES:
        socket.taken()
        socket.held_bytes = 0 if socket.held_bytes <= PART_BYTES else socket.held_bytes
    assert socket.value() == expected
    output.close()


def test_what_leaves_at_once_has_not_waited() -> None:
    socket, drained = Socket([5 * PART_BYTES]), []
    output = WriteBuffer(socket, Clock(), 30, lambda: pytest.fail("gave up"), lambda: drained.append(1))
    output.write(b"x" * 5 * PART_BYTES)
    assert socket.value() == b"x" * 5 * PART_BYTES
    assert drained == []
    output.close()


def test_who_waits_for_room_is_not_told_before_there_is_any() -> None:
    socket, drained = Socket([]), []
    output = WriteBuffer(
        socket, Clock(), 30, lambda: pytest.fail("gave up"), lambda: drained.append(output.unread_bytes)
    )
    output.write(b"x" * 5 * PART_BYTES)
    socket.taken()
    assert output.unread_bytes == PART_BYTES
    assert drained == []
    socket.taken()
    assert drained == [0]


def test_a_transport_that_says_again_that_it_is_full_gains_no_time() -> None:
    clock, given_up = Clock(), []
    output = WriteBuffer(Socket([]), clock, 30, lambda: given_up.append(clock.seconds()), lambda: None)
    output.pauseProducing()
    for _ in range(4):
        clock.advance(10)
        output.pauseProducing()
    assert given_up == [30]
    output.close()


class Encrypting(Wire):
    """A transport over another, to which it hands on what it does not know, as Twisted's TLS does."""

    def __init__(self, below: Socket) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._below = below

    def __getattr__(self, name: str) -> object:
        return getattr(self._below, name)


def test_nothing_is_sent_past_a_transport_that_encrypts() -> None:
    below = Socket([1_000_000])
    encrypting = Encrypting(below)
    output = WriteBuffer(encrypting, Clock(), 30, lambda: None, lambda: None)
    output.write(b"x" * 2 * PART_BYTES)
    assert below.value() == b""
    assert encrypting.value()
    output.close()
