"""Our end of a worker's socket, with a reactor that does what the test says."""

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.main import CONNECTION_LOST
from twisted.python.failure import Failure

from support.live import DEADLINE_S
from support.reactors import FakeReactor
from xformd.net.channel import Channel


class End:
    """A channel, the other end of its socket, and what the channel tells."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        self.received: list[bytes] = []
        self.lost = 0
        self.reactor = FakeReactor()
        self.channel = Channel(ours, self.received.append, self._lose, self.reactor)

    def _lose(self) -> None:
        self.lost += 1


@pytest.fixture
def end() -> Iterator[End]:
    made = End()
    yield made
    made.channel.close()
    made.socket.close()


def test_what_arrives_is_handed_over(end: End) -> None:
    end.socket.sendall(b"abc")
    assert end.channel.doRead() is None
    assert end.received == [b"abc"]
    assert end.channel.doRead() is None  # there is nothing
    assert end.received == [b"abc"]


def test_what_is_sent_leaves_at_once(end: End) -> None:
    end.channel.send(b"abc")
    assert end.socket.recv(10) == b"abc"
    assert not end.reactor.writers


def test_what_the_system_does_not_take_follows_in_order(end: End) -> None:
    poem = bytes(range(256)) * 50_000
    end.channel.send(poem)
    end.channel.send(b"the end")
    assert end.reactor.writers == {end.channel}
    received = b""
    while end.reactor.writers:
        received += end.socket.recv(1_000_000)
        assert end.channel.doWrite() is None
    end.channel.close()
    while data := end.socket.recv(1_000_000):
        received += data
    assert received == poem + b"the end"


def test_a_full_system_is_no_fault(end: End) -> None:
    end.channel.send(b"x" * 10_000_000)
    assert end.channel.doWrite() is None
    assert end.reactor.writers == {end.channel}


def test_the_other_ends_close_is_told_once(end: End) -> None:
    end.socket.close()
    assert end.channel.doRead() is CONNECTION_LOST
    for _ in range(2):
        end.channel.connectionLost(Failure(ConnectionDone()))
    assert end.lost == 1
    assert not end.reactor.readers
    assert end.channel.fileno() == -1


def test_a_socket_that_breaks_is_lost(end: End) -> None:
    end.channel.send(b"unread")
    end.channel.send(b"x" * 10_000_000)
    end.socket.close()  # with something unread: a reset
    assert end.channel.doWrite() is CONNECTION_LOST
    assert end.channel.doRead() is CONNECTION_LOST


def test_sending_to_nobody_is_found_out_by_the_next_read(end: End) -> None:
    end.socket.close()
    end.channel.send(b"abc")
    assert not end.reactor.writers
    assert end.channel.doRead() is CONNECTION_LOST


def test_closing_tells_nobody_and_nothing_is_sent_after_it(end: End) -> None:
    end.channel.close()
    end.channel.close()
    end.channel.send(b"abc")
    end.channel.connectionLost(Failure(ConnectionDone()))
    assert end.lost == 0
    assert end.socket.recv(10) == b""
    assert not end.reactor.readers


def test_it_has_a_name_in_the_log(end: End) -> None:
    assert end.channel.logPrefix() == "worker"
