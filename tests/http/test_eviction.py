"""An idle HTTP connection gives way to a new one; a connection with a request never does."""

import contextlib
import socket

from twisted.internet.address import IPv4Address

from support.http_front import Client, Front, request


def is_accepted(front: Front) -> bool:
    return front.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 2)) is not None


def aborted(*clients: Client) -> list[bool]:
    """Return which clients the server has disconnected, and let those leave."""
    found = [client.wire.disconnected for client in clients]
    for client in clients:
        if client.wire.disconnected and client.protocol in client.protocol.factory.connections:
            client.leave()
    return found


async def test_the_longest_idle_connection_is_evicted_and_none_that_waits_for_an_answer() -> None:
    front = Front(max_connections=3)
    busy, used, fresh = (front.connect() for _ in range(3))
    await busy.send(request("/transform/later", b"owl"))
    await used.ask(request("/transform/upper", b"owl"))
    assert is_accepted(front)
    assert aborted(busy, used, fresh) == [False, False, True]
    front.connect()
    await used.ask(request("/transform/upper", b"owl"))
    await used.send(request("/transform/later", b"owl"))
    assert is_accepted(front)
    assert aborted(busy, used) == [False, False]


async def test_a_new_connection_is_refused_when_all_others_are_busy_or_gone() -> None:
    front = Front(max_connections=1)
    gone = front.connect()
    gone.leave()
    busy = front.connect()
    await busy.send(request("/transform/later", b"owl"))
    assert not is_accepted(front)
    assert not gone.wire.disconnected


async def test_a_connection_whose_request_is_still_unread_is_spared() -> None:
    with contextlib.ExitStack() as ends:
        ours, theirs = map(ends.enter_context, socket.socketpair())
        theirs.sendall(b"G")
        front = Front(max_connections=2)
        first, second = front.connect(), front.connect()
        first.wire.fileno = ours.fileno  # type: ignore[attr-defined]
        assert is_accepted(front)
        assert aborted(first, second) == [False, True]
        assert is_accepted(front)
        assert aborted(first) == [False]


async def test_nothing_is_evicted_for_a_peer_over_its_own_limit() -> None:
    front = Front(max_connections_per_peer=1)
    idle = front.connect()
    assert not is_accepted(front)
    assert not idle.wire.disconnected
