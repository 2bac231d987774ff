"""Who is gone is noticed, also where nobody reads; who has only ended its side is not."""

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from support.session_client import abort
from xformd.net.disconnects import PERIOD_S, DisconnectWatcher


class Watched:
    """A connection with something to read, and its peer."""

    def __init__(self, disconnects: DisconnectWatcher) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname())
            self.socket, _ = listening.accept()
        self.peer.sendall(b"not read")
        self.aborted = 0
        disconnects.watch(self, self.socket.fileno())

    def abort(self) -> None:
        self.aborted += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def disconnects(clock: Clock) -> DisconnectWatcher:
    return DisconnectWatcher(clock)


@pytest.fixture
def pair(disconnects: DisconnectWatcher) -> Iterator[tuple[Watched, Watched]]:
    pair = Watched(disconnects), Watched(disconnects)
    yield pair
    for watched in pair:
        watched.peer.close()
        watched.socket.close()


def test_a_reset_is_noticed_once_and_no_other_connection_suffers(
    clock: Clock, disconnects: DisconnectWatcher, pair: tuple[Watched, Watched]
) -> None:
    gone, there = pair
    clock.advance(PERIOD_S)
    assert gone.aborted == 0
    abort(gone.peer)
    for _ in range(2):
        clock.advance(PERIOD_S)
        assert (gone.aborted, there.aborted) == (1, 0)


def test_a_peer_that_has_only_ended_its_side_may_still_read(
    clock: Clock, disconnects: DisconnectWatcher, pair: tuple[Watched, Watched]
) -> None:
    pair[0].peer.shutdown(socket.SHUT_WR)
    clock.advance(PERIOD_S)
    assert pair[0].aborted == 0


def test_what_is_not_watched_any_more_is_left_alone_and_costs_no_timer(
    clock: Clock, disconnects: DisconnectWatcher, pair: tuple[Watched, Watched]
) -> None:
    for watched in pair:
        disconnects.forget(watched)
        abort(watched.peer)
    clock.advance(PERIOD_S)
    assert [watched.aborted for watched in pair] == [0, 0]
    assert clock.getDelayedCalls() == []
    disconnects.watch(pair[0], pair[0].socket.fileno())
    clock.advance(PERIOD_S)
    assert pair[0].aborted == 1
