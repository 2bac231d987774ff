"""Which connection gives way where there are too many: the longest idle, and none that has a request."""

import contextlib
import socket

from twisted.internet.address import IPv4Address

from support.http_front import Client, Front, request, run


def is_taken(front: Front) -> bool:
    return front.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 2)) is not None


def aborted(*clients: Client) -> list[bool]:
    """Say which the server has ended; those are gone then."""
    found = [client.wire.disconnected for client in clients]
    for client in clients:
        if client.wire.disconnected and client.protocol in client.protocol.factory.connections:
            client.leave()
    return found


def test_the_one_that_has_been_idle_the_longest_gives_way_and_nobody_who_waits_for_an_answer() -> None:
    async def test() -> None:
        front = Front(max_connections=3)
        busy, used, fresh = (front.connect() for _ in range(3))
        await busy.send(request("/transform/later", b"owl"))
        await used.ask(request("/transform/upper", b"owl"))
        assert is_taken(front)
        assert aborted(busy, used, fresh) == [False, False, True]
        front.connect()
        await used.ask(request("/transform/upper", b"owl"))
        await used.send(request("/transform/later", b"owl"))
        assert is_taken(front)
        assert aborted(busy, used) == [False, False]

    run(test())


def test_each_gives_way_once_also_before_it_is_gone() -> None:
    async def test() -> None:
        front = Front(max_connections=2)
        first, second = front.connect(), front.connect()
        assert is_taken(front)
        assert [each.wire.disconnected for each in (first, second)] == [True, False]
        assert is_taken(front)
        assert second.wire.disconnected
        assert not is_taken(front)

    run(test())


def test_where_everybody_is_busy_or_gone_the_new_one_is_refused() -> None:
    async def test() -> None:
        front = Front(max_connections=1)
        gone = front.connect()
        gone.leave()
        busy = front.connect()
        await busy.send(request("/transform/later", b"owl"))
        assert not is_taken(front)
        assert not gone.wire.disconnected

    run(test())


def with_input(client: Client, ends: contextlib.ExitStack) -> None:
    """Let something wait in the client's socket that the server has not read yet."""
    ours, theirs = map(ends.enter_context, socket.socketpair())
    theirs.sendall(b"G")
    client.wire.fileno = ours.fileno


def test_one_whose_request_has_not_been_read_yet_does_not_give_way_to_others() -> None:
    async def test() -> None:
        front = Front(max_connections=2)
        first, second = front.connect(), front.connect()
        with_input(first, ends)
        assert is_taken(front)
        assert aborted(first, second) == [False, True]
        assert is_taken(front)
        assert aborted(first) == [False]

    with contextlib.ExitStack() as ends:
        run(test())


def test_where_all_have_sent_something_the_longest_idle_gives_way() -> None:
    async def test() -> None:
        front = Front(max_connections=2)
        first, second = front.connect(), front.connect()
        with_input(first, ends)
        with_input(second, ends)
        assert is_taken(front)
        assert aborted(first, second) == [True, False]

    with contextlib.ExitStack() as ends:
        run(test())


def test_nobody_gives_way_to_a_peer_that_has_too_many() -> None:
    async def test() -> None:
        front = Front(max_connections_per_peer=1)
        idle = front.connect()
        assert not is_taken(front)
        assert not idle.wire.disconnected

    run(test())
