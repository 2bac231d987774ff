"""The server's side of a connection, in memory, with a clock that only the test moves."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from support.logs import Log, captured
from support.wires import Server, Wire
from xformd.net.write_buffer import PART_BYTES


@pytest.fixture
def server() -> Server:
    return Server(request_timeout_s=30, idle_timeout_s=300, write_timeout_s=20, linger_timeout_s=5)


def whole(data: bytes) -> list[bytes]:
    return [data]


def single_bytes(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


@pytest.mark.parametrize("split", [whole, single_bytes])
def test_a_request_is_answered_and_the_connection_closed(server: Server, split: Callable[[bytes], list[bytes]]) -> None:
    protocol, wire = server.connect()
    for piece in split(b"14:upper.The Owl!,"):
        assert not wire.write_closed
        protocol.dataReceived(piece)
    assert wire.value() == b"8:THE OWL!,"
    assert wire.write_closed


def test_what_follows_the_first_request_is_never_executed(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,7:upper.b,")
    protocol.dataReceived(b"7:upper.c,")
    assert wire.value() == b"1:A,"


def test_unread_input_does_not_cost_the_client_its_reply(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,and more")
    # A close now would reset the connection: only this side is ended, until the client ends its own.
    assert (wire.write_closed, wire.disconnecting) == (True, False)
    protocol.dataReceived(b"and more")
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_half_closes_still_gets_its_reply(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:later.a,")
    protocol.readConnectionLost()
    assert not wire.disconnecting
    server.clock.advance(29)
    server.results[0].callback("done")
    assert wire.value() == b"4:done,"
    assert wire.disconnecting


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "bad-frame"),
        (b"7:upper.ax", "bad-frame"),
        (b"5:upper,", "bad-request"),
        (b"2:.a,", "bad-request"),
        (b"8:Upper.ab,", "bad-request"),
        (b"6:nope.a,", "no-such-transform"),
        (b"14:upper:loud=1.a,", "bad-options"),
        (b"7:upper.\xff,", "gibberish"),
        (b"99999999", "too-large"),
        (b"16:grow.aaaaaaaaaaa,", "too-large"),
    ],
)
def test_a_request_that_is_refused_gets_nothing_and_the_log_says_why(server: Server, data: bytes, reason: str) -> None:
    with captured() as log:
        protocol, wire = server.connect()
        protocol.dataReceived(data)
    assert wire.value() == b""
    assert wire.write_closed
    assert len(log.lines) == 1
    assert f": {reason}: " in log.lines[0]
    assert log.tracebacks == []


def test_a_refused_client_may_finish_sending_but_not_forever(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"99999999:the start of very much")
    for _ in range(4):
        server.clock.advance(1)
        protocol.dataReceived(b"and more")
    assert not wire.disconnected
    server.clock.advance(1)
    assert wire.disconnected


def test_bytes_that_come_after_the_reply_cost_nobody_anything(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,")
    assert (wire.write_closed, wire.disconnecting) == (True, False)
    protocol.dataReceived(b"late")
    server.clock.advance(19.9)
    assert not wire.disconnected
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_server_that_stops_does_not_wait_for_those_who_have_their_reply(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,")
    protocol.writeConnectionLost()  # all has left
    assert not wire.disconnecting
    server.factory.drain()
    assert wire.disconnecting


def test_a_server_that_stops_closes_as_soon_as_a_reply_has_left(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,")
    server.factory.drain()
    assert (wire.write_closed, wire.disconnecting) == (True, False)  # the reply is on its way to the system
    protocol.writeConnectionLost()
    assert wire.disconnecting


@implementer(ISSLTransport)
class EncryptedWire(Wire):
    def getPeerCertificate(self) -> None: ...


def test_an_encrypted_connection_is_closed_as_a_whole(server: Server) -> None:
    protocol, wire = server.connect(wire=EncryptedWire())  # type: ignore[no-untyped-call]
    protocol.dataReceived(b"7:upper.a,")
    assert wire.value() == b"1:A,"
    assert (wire.write_closed, wire.disconnecting) == (False, True)


def test_a_refused_client_that_has_half_closed_is_simply_closed(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"5:ab")
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_leaves_without_a_word_is_no_news(server: Server, log: Log) -> None:
    protocol, wire = server.connect()
    protocol.readConnectionLost()
    assert wire.disconnecting
    protocol.connectionLost(Failure(ConnectionDone()))
    assert log.lines == []
    assert not server.factory.connections
    assert server.clock.getDelayedCalls() == []


def test_a_client_that_breaks_off_cancels_what_runs_for_it(server: Server, log: Log) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:later.a,")
    protocol.connectionLost(Failure(ConnectionLost()))
    assert server.cancelled == 1
    assert wire.value() == b""
    assert log.lines == []
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("start", [b"1", b"14:", b"14:upper.The", b"14:upper.The Owl!"])
def test_no_byte_extends_the_deadline_of_a_request(server: Server, start: bytes) -> None:
    protocol, wire = server.connect()
    server.clock.advance(299)
    rest = single_bytes(b"14:upper.The Owl!"[len(start) :])
    protocol.dataReceived(start)
    for piece in rest:
        server.clock.advance(1)
        protocol.dataReceived(piece)
    server.clock.advance(29.9 - len(rest))
    assert not wire.disconnected
    server.clock.advance(0.1)
    assert wire.disconnected


def test_a_connection_that_says_nothing_is_cut_off(server: Server) -> None:
    _, wire = server.connect()
    server.clock.advance(299.9)
    assert not wire.disconnected
    server.clock.advance(0.1)
    assert wire.disconnected


def test_a_client_that_does_not_take_its_reply_is_cut_off(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:upper.a,")
    server.clock.advance(19.9)
    assert not wire.disconnected
    server.clock.advance(0.1)
    assert wire.disconnected


def test_a_long_reply_goes_out_in_parts_and_each_part_taken_moves_the_deadline(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"6:grow.a,")
    parts = 0
    while not wire.disconnecting:
        server.clock.advance(19)
        assert wire.held_bytes <= 2 * PART_BYTES
        parts += 1
        wire.taken()
    assert parts >= 1_000_000 / PART_BYTES / 2
    assert len(wire.value()) == len(b"1000000:,") + 1_000_000


def test_a_long_reply_that_is_not_taken_is_cut_off(server: Server) -> None:
    protocol, wire = server.connect()
    protocol.dataReceived(b"6:grow.a,")
    wire.taken()
    server.clock.advance(20)
    assert wire.disconnected
    protocol.connectionLost(Failure(ConnectionLost()))
    assert server.clock.getDelayedCalls() == []


def test_connections_over_the_limit_are_closed_at_once(log: Log) -> None:
    server = Server(max_connections=2)
    first, _ = server.connect()
    server.connect()
    assert server.factory.buildProtocol(None) is None
    says = "closed a new connection: 2 are open; max_connections, or ulimit -n, allows no more"
    assert log.lines == [says]
    first.connectionLost(Failure(ConnectionDone()))
    server.connect()


def test_a_peer_has_no_more_connections_than_its_share(log: Log) -> None:
    server = Server(max_connections_per_peer=2)
    greedy = IPv4Address("TCP", "192.0.2.1", 1)
    first, _ = server.connect(greedy)
    server.connect(IPv4Address("TCP", "192.0.2.1", 2))
    assert server.factory.buildProtocol(greedy) is None
    says = "closed a new connection: 2 are open from 192.0.2.1, which is max_connections_per_peer"
    assert log.lines == [says]
    server.connect(IPv4Address("TCP", "192.0.2.2", 1))
    server.connect(IPv6Address("TCP", "::1", 1))
    for _ in range(3):
        server.connect(UNIXAddress(None))
    first.connectionLost(Failure(ConnectionDone()))
    server.connect(greedy)
    assert server.factory.buildProtocol(greedy) is None


def test_draining_answers_what_is_accepted_and_closes_the_rest(server: Server) -> None:
    idle, idle_wire = server.connect()
    reading, reading_wire = server.connect()
    running, running_wire = server.connect()
    reading.dataReceived(b"7:upp")
    running.dataReceived(b"7:later.a,")
    drained = server.factory.drain()
    assert idle_wire.write_closed
    assert reading_wire.write_closed
    assert not running_wire.write_closed
    assert server.factory.buildProtocol(None) is None
    reading.dataReceived(b"er.a,")
    server.results[0].callback("done")
    assert running_wire.value() == b"4:done,"
    for protocol in (idle, reading, running):
        assert not drained.called
        protocol.connectionLost(Failure(ConnectionDone()))
    assert drained.called
    assert reading_wire.value() == b""
    assert server.clock.getDelayedCalls() == []


def test_draining_ends_with_the_grace_period(log: Log) -> None:
    server = Server(shutdown_grace_s=3, transform_timeout_s=60)
    protocol, wire = server.connect()
    protocol.dataReceived(b"7:later.a,")
    server.factory.drain()
    server.clock.advance(3)
    assert server.cancelled == 1
    assert wire.write_closed
    assert not wire.disconnected
    server.clock.advance(1)
    assert wire.disconnected
    assert log.lines[0] == "connections still open after the grace period of 3 s, closed now: 1"
    assert "shutting-down" in log.lines[1]


def test_draining_a_server_without_connections_takes_no_time(server: Server) -> None:
    assert server.factory.drain().called


def test_draining_goes_well_with_a_connection_that_ends_here_and_now(server: Server) -> None:
    protocol, wire = server.connect()
    wire.loseWriteConnection = lambda: protocol.connectionLost(Failure(ConnectionDone()))  # type: ignore[method-assign]
    assert server.factory.drain().called


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"7:", b"upper.", b"a,", b"1:", b"later.a,"]))))
def test_nothing_that_a_client_sends_makes_a_traceback(pieces: list[bytes]) -> None:
    server = Server(max_request_bytes=50)
    with captured() as log:
        protocol, wire = server.connect()
        for piece in pieces:
            protocol.dataReceived(piece)
        protocol.readConnectionLost()
        protocol.connectionLost(Failure(ConnectionDone()))
    assert log.tracebacks == []
    assert server.clock.getDelayedCalls() == []
    assert not wire.value() or wire.value().endswith(b",")
