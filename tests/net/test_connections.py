"""How many connections may be open, which idle one is evicted, and when a peer is known to be gone."""

import socket
from collections.abc import Iterator

import attrs
import pytest
from twisted.internet.task import Clock

from support.logs import Log
from support.session_client import abort
from xformd.limits import Limits
from xformd.net.connections import (
    DISCONNECT_POLL_S,
    EVICTION_CANDIDATES,
    Connections,
    DisconnectWatcher,
    IdleConnections,
    RefusalLog,
)


@pytest.mark.parametrize(
    ("limits", "peers", "peer", "kind"),
    [
        (Limits(max_connections=2), ["1.1.1.1"], "1.1.1.1", None),
        *((Limits(max_connections=2), ["1.1.1.1", None], peer, "total") for peer in ("1.1.1.1", "1.1.1.2", None)),
        (Limits(max_connections_per_peer=1), ["1.1.1.1"], "1.1.1.1", "peer"),
        (Limits(max_connections_per_peer=1), ["1.1.1.1"], "::ffff:1.1.1.1", "peer"),
        (Limits(max_connections_per_peer=1), ["1.1.1.1"], "1.1.1.2", None),
        (Limits(max_connections_per_peer=1), ["2001:db8::1"], "2001:db8::ffff:2", "peer"),
        (Limits(max_connections_per_peer=1), ["2001:db8::1"], "2001:db8:0:1::1", None),
        (Limits(max_connections_per_peer=1), [None] * 5, None, None),
    ],
)
def test_the_total_and_each_known_peer_are_limited(
    limits: Limits, peers: list[str | None], peer: str | None, kind: str | None
) -> None:
    connections: Connections[int] = Connections(limits)
    for number, each in enumerate(peers):
        connections.add(number, each)
    reached = connections.limit_reached(peer)
    assert (reached and reached.kind) == kind
    connections.discard(0)
    assert connections.limit_reached(peer) is None


def test_nothing_is_remembered_about_a_peer_without_connections() -> None:
    connections: Connections[int] = Connections(Limits(max_connections_per_peer=2))
    for number in range(100):
        connections.add(number, f"10.0.0.{number // 2}")
    assert (len(connections), len(connections._by_share)) == (100, 50)
    for number in connections:
        connections.discard(number)
        connections.discard(number)
    assert (len(connections), connections._by_share) == (0, {})


@pytest.mark.parametrize(
    ("most", "peer", "own", "may_come"),
    [(2, "::1", 0, True), (1, "::1", 0, False), (3, "::1", 1, True), (2, "::1", 1, False), (2, None, 0, True)],
)
def test_the_peer_with_the_most_gives_way_to_one_that_has_less_even_then(
    most: int, peer: str | None, own: int, may_come: bool
) -> None:
    connections: Connections[int] = Connections(Limits(max_connections=4))
    for number, each in enumerate(["10.0.0.1"] * most + [peer] * own):
        connections.add(number, each)
    assert [*connections.to_evict(peer)] == [*range(most)] * may_come
    assert not connections.to_evict("10.0.0.1")


def test_what_a_trusted_proxy_has_gives_way_to_nobody() -> None:
    connections: Connections[int] = Connections(Limits(), is_uncounted=lambda peer: peer == "10.0.0.1")
    for number in range(9):
        connections.add(number, "10.0.0.1")
    assert not connections.to_evict("10.0.0.2")
    connections.add(9, "10.0.0.2")
    connections.add(10, "10.0.0.2")
    assert [*connections.to_evict("10.0.0.1")] == [9, 10]


def test_refused_connections_are_counted_and_logged_once_a_second(clock: Clock, log: Log) -> None:
    refusals = RefusalLog(clock)
    for number in range(4):
        refusals.refused("total", f"reason {number}")
    clock.advance(1)
    assert log.lines == [
        "closed a new connection: reason 0",
        "closed a new connection: reason 3 (the last of 3 within a second)",
    ]
    assert refusals.counts == {"total": 4}


@attrs.define(eq=False)
class Idle:
    """An idle connection, with or without input that nobody has read."""

    unread: bool = False
    is_aborted: bool = False

    def has_input(self) -> bool:
        return self.unread

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(
    ("unread", "evicted"),
    [([False, False], 0), ([True, False], 1), ([True, True], 0), ([True] * EVICTION_CANDIDATES + [False], 0)],
)
def test_the_longest_idle_connection_is_evicted_unless_it_has_input(unread: list[bool], evicted: int) -> None:
    idle = IdleConnections()
    connections = [Idle(each) for each in unread]
    for connection in connections:
        idle[connection] = None
    assert not idle.evict([])
    assert idle.evict(connections)
    assert [index for index, each in enumerate(connections) if each.is_aborted] == [evicted]


def test_a_connection_is_evicted_once_and_only_while_it_is_idle() -> None:
    idle, busy, other = IdleConnections(), Idle(), Idle()
    for connection in (busy, other):
        idle[connection] = None
    del idle[busy]
    assert [idle.evict([busy, other]), idle.evict([busy, other])] == [True, False]
    assert (busy.is_aborted, other.is_aborted) == (False, True)


class Watched:
    """A connection with something to read, and its peer."""

    def __init__(self, watcher: DisconnectWatcher) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.peer = socket.create_connection(listening.getsockname())
            self.socket, _ = listening.accept()
        self.peer.sendall(b"not read")
        self.aborted = 0
        self.watcher = watcher
        self.watch()

    def has_input(self) -> bool:
        return True

    def watch(self) -> None:
        self.watcher.watch(self, self.socket.fileno())

    def abort(self) -> None:
        self.aborted += 1


@pytest.fixture
def pair(clock: Clock) -> Iterator[tuple[Watched, Watched]]:
    watcher = DisconnectWatcher(clock)
    pair = Watched(watcher), Watched(watcher)
    yield pair
    for watched in pair:
        watched.peer.close()
        watched.socket.close()


def test_a_reset_aborts_that_connection_once(clock: Clock, pair: tuple[Watched, Watched]) -> None:
    gone, half_closed = pair
    half_closed.peer.shutdown(socket.SHUT_WR)
    clock.advance(DISCONNECT_POLL_S)
    assert gone.aborted == 0
    abort(gone.peer)
    for _ in range(2):
        clock.advance(DISCONNECT_POLL_S)
        assert (gone.aborted, half_closed.aborted) == (1, 0)


def test_without_watched_connections_no_timer_runs(clock: Clock, pair: tuple[Watched, Watched]) -> None:
    for watched in pair:
        watched.watcher.forget(watched)
        abort(watched.peer)
    clock.advance(DISCONNECT_POLL_S)
    assert [watched.aborted for watched in pair] == [0, 0]
    assert clock.getDelayedCalls() == []
    pair[0].watch()
    clock.advance(DISCONNECT_POLL_S)
    assert pair[0].aborted == 1
