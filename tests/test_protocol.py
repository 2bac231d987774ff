"""The server's side of a connection, in memory: the classic dialect, the deadlines, the limits and the end."""

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, ISSLTransport
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from support.http_front import Front
from support.logs import Log, captured
from support.memory import ELSEWHERE, MemoryServer, MemorySession
from support.wires import Wire
from xformd.net.proxy_header import ProxyHeaderFactory
from xformd.net.write_buffer import PART_BYTES
from xformd.protocol import FLUSH_TIMEOUT_S, TransformFactory
from xformd.wire.netstring import encode

UPPER = b"7:upper.a,"
LATER = b"7:later.a,"
DONE = Failure(ConnectionDone())


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(request_timeout_s=30, idle_timeout_s=300, write_timeout_s=20, linger_timeout_s=5)


def single_bytes(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


def assert_ends_after(server: MemoryServer, wire: Wire, seconds: float) -> None:
    """Check that the connection is aborted after these seconds, and not before."""
    server.clock.advance(seconds - 0.1)
    assert not wire.disconnected
    assert server.factory.connection_stats.cut_off == 0
    server.clock.advance(0.1)
    assert wire.disconnected
    assert server.factory.connection_stats.cut_off == 1


# Long requests that arrive.


LONG = 200_000


def long_request(front: str) -> tuple[bytes, bytes]:
    """Return the begin of a long request, and its end."""
    head = {
        "classic": b"%d:upper." % (LONG + 6),
        "session": encode(b"xformd/2") + b"%d:1 upper." % (LONG + 8),
        "http": b"POST /transform/upper HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % LONG,
        "http-chunked": b"POST /transform/upper HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n" % LONG,
    }[front]
    return head + b"a" * (LONG - 1), b"a\r\n0\r\n\r\n" if front == "http-chunked" else b"a" + b"," * (front[0] != "h")


@pytest.mark.parametrize("front", ["classic", "session", "http", "http-chunked"])
def test_of_long_requests_that_arrive_those_of_one_address_leave_room_for_another(front: str) -> None:
    limits: dict[str, Any] = {"max_arriving_bytes": 4 * LONG, "max_request_bytes": LONG + 100, "request_timeout_s": 30}
    server: MemoryServer = Front(**limits) if front[0] == "h" else MemoryServer(**limits)
    begin, end = long_request(front)
    greedy = [server.receive(begin[:-1]) for _ in range(3)]
    protocol, wire = server.connect(ELSEWHERE)
    protocol.dataReceived(begin[:-1])
    for each in (*(each for each, _ in greedy), protocol):
        each.dataReceived(begin[-1:])
    protocol.dataReceived(end)
    server.clock.advance(0)
    assert b"AAAA" in wire.value()
    assert [wire.write_closed for _, wire in greedy] == [False, False, True]
    first, wire = greedy[0]
    first.dataReceived(end)
    assert b"AAAA" in wire.value()
    refusal = greedy[2][1].value()
    assert (b"busy" in refusal) is (front != "classic")


def test_a_long_request_that_has_arrived_by_then_is_not_refused_for_room() -> None:
    server = MemoryServer(max_arriving_bytes=2 * LONG, max_request_bytes=LONG + 100)
    begin, end = long_request("session")
    (_, other), (protocol, wire) = (server.receive(begin) for _ in range(2))
    protocol.dataReceived(end)
    server.clock.advance(0)
    while protocol.unread_bytes:
        wire.taken()
    sent = wire.value()
    assert b"AAAA" in sent
    assert b"busy" not in sent + other.value()


def test_what_has_arrived_or_is_gone_takes_no_room() -> None:
    server = MemoryServer(max_arriving_bytes=2 * LONG, max_request_bytes=LONG + 100)
    begin, end = long_request("session")
    for _ in range(10):
        protocol, wire = server.receive(begin)
        protocol.connectionLost(DONE)
        protocol, wire = server.receive(begin)
        protocol.dataReceived(end)
        server.clock.advance(0)
        assert b"AAAA" in wire.value()
    assert server.factory.cut_off == 0


def test_connections_that_have_sent_long_requests_take_no_room_between_them() -> None:
    server = MemoryServer(max_arriving_bytes=2 * LONG, max_request_bytes=LONG + 100)
    begin, end = long_request("session")
    sessions = []
    for _ in range(10):
        protocol, wire = server.receive(begin)
        protocol.dataReceived(end)
        server.clock.advance(0)
        while protocol.unread_bytes:
            wire.taken()
        sessions.append(wire)
    assert [b"busy" in wire.value() for wire in sessions] == [False] * 10


# Requests and replies.


def test_what_is_no_service_is_an_error_at_once() -> None:
    with pytest.raises(TypeError, match=r"object is no service: TransformService.from_functions\(\) makes one"):
        TransformFactory(object())  # type: ignore[arg-type]


def test_a_request_is_answered_and_the_connection_closed(server: MemoryServer) -> None:
    protocol, wire = server.receive(b"14:upper.The ")
    assert not wire.write_closed
    protocol.dataReceived(b"Owl!,")
    assert wire.value() == b"8:THE OWL!,"
    assert wire.write_closed


def test_a_reply_ends_the_servers_side_alone_and_nothing_more_is_executed(server: MemoryServer) -> None:
    # Closing both would reset the connection, with input unread, and the client could lose its reply.
    protocol, wire = server.receive(UPPER + b"7:upper.b,")
    assert (wire.write_closed, wire.disconnecting) == (True, False)
    protocol.dataReceived(b"7:upper.c,")
    assert wire.value() == b"1:A,"
    server.clock.advance(19.9)
    assert not wire.disconnected
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_half_closes_still_gets_its_reply(server: MemoryServer) -> None:
    protocol, wire = server.receive(LATER)
    protocol.readConnectionLost()
    assert not wire.disconnecting
    server.clock.advance(29)
    server.results[0].callback("done")
    assert wire.value() == b"4:done,"
    assert wire.disconnecting


@pytest.mark.parametrize(
    ("data", "code"),
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
def test_a_refused_request_gets_nothing_and_one_line_in_the_log(
    server: MemoryServer, log: Log, data: bytes, code: str
) -> None:
    protocol, wire = server.receive(data)
    assert (wire.value(), wire.write_closed, wire.disconnecting) == (b"", True, False)
    (line,) = log.lines
    assert f": {code}: " in line
    assert log.tracebacks == []
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_half_closes_inside_a_request_is_closed(server: MemoryServer) -> None:
    protocol, wire = server.receive(b"5:ab")
    protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_refused_client_may_finish_sending_but_not_forever(server: MemoryServer) -> None:
    protocol, wire = server.receive(b"99999999:the start of very much")
    for _ in range(4):
        server.clock.advance(1)
        protocol.dataReceived(b"and more")
    assert_ends_after(server, wire, 1)


@implementer(ISSLTransport)
class EncryptedWire(Wire):  # type: ignore[misc]  # only what is called
    def getPeerCertificate(self) -> None: ...


def test_an_encrypted_connection_is_closed_as_a_whole(server: MemoryServer) -> None:
    protocol, wire = server.connect(wire=EncryptedWire())
    protocol.dataReceived(UPPER)
    assert wire.value() == b"1:A,"
    assert (wire.write_closed, wire.disconnecting) == (False, True)


class ForwardingWire(Wire):
    """A transport that hands on what it does not have itself to the socket under it, as TLS does."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[bytes] = []
        self.is_held_back = False

    def __getattr__(self, name: str) -> Any:
        own = {"hint_read_size": str, "send_now": self._send_plain, "hint_close_after_write": self._hold_back}
        if name not in own:
            raise AttributeError(name)
        return own[name]

    def _hold_back(self) -> None:
        self.is_held_back = True

    def _send_plain(self, data: bytes) -> int:
        self.plain.append(data)
        return len(data)


def test_output_over_tls_never_passes_it_by(server: MemoryServer) -> None:
    wire = ForwardingWire()
    protocol, _ = server.connect(wire=wire)
    for data in (encode(b"xformd/2"), encode(b"1 upper.owl"), encode(b"2 grow.a")):
        protocol.dataReceived(data)
    assert b"1 ok.OWL" in wire.value()
    assert wire.plain == []


def test_a_client_that_leaves_before_it_asks_is_not_logged(server: MemoryServer, log: Log) -> None:
    protocol, wire = server.connect()
    protocol.readConnectionLost()
    assert wire.disconnecting
    protocol.connectionLost(DONE)
    assert log.lines == []
    assert not server.factory.connections
    assert server.clock.getDelayedCalls() == []


def test_a_lost_connection_cancels_its_request(server: MemoryServer, log: Log) -> None:
    protocol, wire = server.receive(LATER)
    protocol.connectionLost(Failure(ConnectionLost()))
    assert (server.cancelled, wire.value(), log.lines) == (1, b"", [])
    assert server.clock.getDelayedCalls() == []


# Deadlines.


@pytest.mark.parametrize("start", [b"1", b"14:", b"14:upper.The", b"14:upper.The Owl!"])
def test_no_byte_extends_the_deadline_of_a_request(server: MemoryServer, start: bytes) -> None:
    protocol, wire = server.connect()
    server.clock.advance(299)
    rest = single_bytes(b"14:upper.The Owl!"[len(start) :])
    protocol.dataReceived(start)
    for piece in rest:
        server.clock.advance(1)
        protocol.dataReceived(piece)
    assert_ends_after(server, wire, 30 - len(rest))


@pytest.mark.parametrize(("data", "seconds"), [(b"", 300), (UPPER, 20), (b"6:grow.a,", 20)])
def test_a_client_that_neither_sends_nor_reads_is_cut_off(server: MemoryServer, data: bytes, seconds: float) -> None:
    protocol, wire = server.receive(data) if data else server.connect()
    wire.taken()  # the first part of a long reply
    assert_ends_after(server, wire, seconds)
    protocol.connectionLost(Failure(ConnectionLost()))
    server.clock.advance(1)  # the log's period
    assert server.clock.getDelayedCalls() == []


def test_a_long_reply_goes_out_in_parts_and_each_part_read_moves_the_deadline(server: MemoryServer) -> None:
    _, wire = server.receive(b"6:grow.a,")
    parts = 0
    while not wire.disconnecting:
        server.clock.advance(19)
        assert wire.held_bytes <= 2 * PART_BYTES
        parts += 1
        wire.taken()
    assert parts >= 1_000_000 / PART_BYTES / 2
    assert len(wire.value()) == len(b"1000000:,") + 1_000_000


# Limits.


OTHERS = [IPv4Address("TCP", "192.0.2.2", 1), IPv6Address("TCP", "::1", 1), *[UNIXAddress(None)] * 3]


@pytest.mark.parametrize(
    ("limit", "kind", "says", "others"),
    [
        ("max_connections", "total", "2 are open; max_connections, or ulimit -n, allows no more", []),
        ("max_connections_per_peer", "peer", "2 are open from 192.0.2.1, which is max_connections_per_peer", OTHERS),
    ],
)
def test_a_connection_over_a_limit_is_closed_and_counted(
    log: Log, limit: str, kind: str, says: str, others: list[IAddress]
) -> None:
    limits: dict[str, Any] = {limit: 2}
    server = MemoryServer(**limits)
    first, second = (IPv4Address("TCP", "192.0.2.1", port) for port in (1, 2))
    protocol, _ = server.connect(first)
    server.connect(second)
    assert server.factory.buildProtocol(first) is None
    assert log.lines == [f"closed a new connection: {says}"]
    stats = server.factory.connection_stats
    assert (stats.open, dict(stats.refused)) == (2, {kind: 1})
    for peer in others:
        server.connect(peer)
    protocol.connectionLost(DONE)
    server.connect(first)
    assert server.factory.buildProtocol(first) is None


def test_no_address_keeps_others_out(log: Log) -> None:
    server = MemoryServer(max_connections=4)
    many, other = IPv4Address("TCP", "192.0.2.1", 1), IPv4Address("TCP", "192.0.2.2", 1)
    wires = [server.connect(many)[1] for _ in range(2)]
    sessions = [MemorySession(server, peer=many), MemorySession(server, peer=many)]
    sessions[0].ask(1, "later")
    wires += [each.wire for each in sessions]
    assert server.factory.buildProtocol(many) is None
    server.connect(other)
    assert [wire.disconnected for wire in wires] == [True, False, False, False]
    server.connect(other)
    assert [wire.disconnected for wire in wires] == [True, True, False, False]
    assert server.factory.buildProtocol(other) is None
    server.connect(IPv6Address("TCP", "2001:db8::1", 1))
    assert [wire.disconnected for wire in wires] == [True, True, False, True]  # the other one has a request in flight
    assert len(server.factory.connections) == 4
    server.clock.advance(1)
    assert log.lines[1].startswith("closed a long-standing connection: 192.0.2.1 has 4, and others need room")
    assert dict(server.factory.connection_stats.refused) == {"total": 2, "share": 3}


# The end.


@pytest.mark.parametrize("is_stopping_first", [True, False])
def test_a_stopping_server_closes_as_soon_as_a_reply_has_left(server: MemoryServer, is_stopping_first: bool) -> None:
    protocol, wire = server.receive(UPPER)
    acts: list[Callable[[], object]] = [server.factory.drain, protocol.writeConnectionLost]
    first, second = acts if is_stopping_first else reversed(acts)
    first()
    assert (wire.write_closed, wire.disconnecting) == (True, False)
    second()
    assert wire.disconnecting


def test_a_drain_answers_what_is_accepted_and_closes_the_rest(server: MemoryServer) -> None:
    idle, idle_wire = server.connect()
    reading, reading_wire = server.receive(b"7:upp")
    running, running_wire = server.receive(LATER)
    drained = server.factory.drain()
    assert [wire.write_closed for wire in (idle_wire, reading_wire, running_wire)] == [True, True, False]
    assert server.factory.buildProtocol(None) is None
    reading.dataReceived(b"er.a,")
    server.results[0].callback("done")
    assert (reading_wire.value(), running_wire.value()) == (b"", b"4:done,")
    for protocol in (idle, reading, running):
        assert not drained.called
        protocol.connectionLost(DONE)
    assert drained.called
    assert server.clock.getDelayedCalls() == []


def test_a_drain_ends_with_the_grace_period(log: Log) -> None:
    server = MemoryServer(shutdown_grace_s=3, transform_timeout_s=60)
    _, wire = server.receive(LATER)
    server.factory.drain()
    server.clock.advance(3)
    assert server.cancelled == 1
    assert (wire.write_closed, wire.disconnected) == (True, False)
    server.clock.advance(1)
    assert wire.disconnected
    assert log.lines[0] == "connections still open after the grace period of 3 s, closed now: 1"
    assert "shutting-down" in log.lines[1]


def test_a_drain_goes_well_with_a_connection_that_is_lost_at_once(server: MemoryServer) -> None:
    protocol, wire = server.connect()
    wire.loseWriteConnection = lambda: protocol.connectionLost(DONE)  # type: ignore[method-assign]
    assert server.factory.drain().called


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"7:", b"upper.", b"a,", b"1:", b"later.a,"]))))
def test_nothing_that_a_client_sends_makes_a_traceback(data: list[bytes]) -> None:
    server = MemoryServer(max_request_bytes=50)
    with captured() as log:
        protocol, wire = server.connect()
        for piece in data:
            protocol.dataReceived(piece)
        protocol.readConnectionLost()
        protocol.connectionLost(DONE)
    assert log.tracebacks == []
    server.clock.advance(1)  # the log's period
    assert server.clock.getDelayedCalls() == []
    assert not wire.value() or wire.value().endswith(b",")


@pytest.mark.parametrize(
    ("data", "code"),
    [(encode(b"uper.a"), "no-such-transform"), (b"owl", "bad-frame"), (encode(b"Up.a"), "bad-request")],
)
def test_refusals_in_floods_are_a_line_a_second_for_each_code(
    server: MemoryServer, log: Log, data: bytes, code: str
) -> None:
    for _ in range(1_000):
        protocol, _ = server.receive(data)
        protocol.connectionLost(DONE)
    server.receive(b"99999999999999:")
    assert [line.split(": ")[1] for line in log.lines] == [code, "too-large"]
    server.clock.advance(1)
    assert len(log.lines) == 3
    assert log.lines[2].endswith(" (the last of 999 within a second)")


def test_clients_that_are_cut_off_in_floods_are_a_line_a_second(server: MemoryServer, log: Log) -> None:
    for _ in range(1_000):
        server.receive(b"7:upper")
    server.clock.advance(30)
    server.clock.advance(1)
    assert len(log.lines) == 2
    assert log.lines[1].endswith("it took too long (the last of 999 within a second)")


# What wraps a transport.


def behind_a_proxy_header(
    server: MemoryServer,
    wire: Wire,
    layer: type[ProtocolWrapper] | None = None,
    header: bytes = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
) -> Any:
    """Open a connection to a ``haproxy:`` endpoint, perhaps over another layer; the header has arrived."""
    factory = ProxyHeaderFactory(server.factory, server.factory.identify, server.clock)
    protocol: Any = factory.buildProtocol(None)
    if layer is not None:
        protocol = layer(factory, protocol)
    protocol.makeConnection(wire)
    protocol.dataReceived(header)
    return protocol


def test_a_proxy_on_a_unix_socket_lends_its_clients_no_user(server: MemoryServer) -> None:
    here, there = socket.socketpair()
    with here, there:
        wire: Any = Wire()
        wire.socket, wire.peerAddr = here, UNIXAddress(None)
        direct: Any = server.factory.buildProtocol(wire.peerAddr)
        direct.makeConnection(wire)
        assert direct.credentials == (frozenset(), os.getuid())
        for header in (b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"):
            assert behind_a_proxy_header(server, wire, header=header).wrappedProtocol.credentials == (frozenset(), -1)


@implementer(ISSLTransport)
class WaitingTls(ProtocolWrapper):
    """TLS that waits for its peer's end."""

    def loseConnection(self) -> None: ...


def test_a_refused_client_behind_a_proxy_may_finish_sending_too(server: MemoryServer) -> None:
    wire = Wire()
    behind_a_proxy_header(server, wire).dataReceived(b"x")
    assert wire.write_closed
    assert not wire.disconnecting
    assert_ends_after(server, wire, 5)


def test_a_stopping_server_waits_for_no_end_of_tls_behind_a_proxy(server: MemoryServer) -> None:
    wire = Wire()
    behind_a_proxy_header(server, wire, WaitingTls).dataReceived(UPPER)
    server.factory.drain()
    assert not wire.disconnecting
    server.clock.advance(FLUSH_TIMEOUT_S)
    assert wire.disconnecting


def test_the_last_data_over_tls_is_not_held_back(server: MemoryServer) -> None:
    wire = ForwardingWire()
    protocol, _ = server.connect(wire=wire)
    protocol.dataReceived(UPPER)
    assert wire.value() == b"1:A,"
    assert not wire.is_held_back
