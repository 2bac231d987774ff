"""The server's side of the protocol: pieces, pace, ends in order and ends that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

import xformd
from support.deferreds import has_fired
from support.logs import Log
from xformd.poems import PoemFactory, PoemService
from xformd.poems.server import CHUNK_BYTES, TICK_S, RateLimiter


class Wire(StringTransport):
    """A connection whose client takes everything at once, until the test says otherwise."""

    is_half_closed = False
    takes = True
    protocol: Any

    def write(self, data: bytes) -> None:
        super().write(data)
        if not self.takes:
            assert self.producer is not None
            self.producer.pauseProducing()

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True
        if self.takes:
            self.protocol.writeConnectionLost()

    def abortConnection(self) -> None:
        super().abortConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))


@implementer(IHalfCloseableDescriptor)
class HalfCloseableWire(Wire):
    """The same over TCP."""

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...


class Given:
    """A source whose poem, or Deferred, the test chooses."""

    def __init__(self, poem: Any) -> None:
        self.poem = poem

    def get_poem(self) -> Any:
        if isinstance(self.poem, Exception):
            raise self.poem
        return self.poem


def connect(factory: PoemFactory, kind: Callable[[], Wire] = Wire, *, takes: bool = True) -> Wire:
    protocol = factory.buildProtocol(None)
    assert protocol is not None
    wire = kind()
    wire.takes, wire.protocol = takes, protocol
    protocol.makeConnection(wire)
    return wire


def test_the_poem_and_the_close(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"The Owl"), clock))
    assert (wire.value(), wire.disconnecting, wire.disconnected) == (b"The Owl", True, False)


def test_over_tcp_the_server_ends_its_side_and_lets_the_client_say_what_it_has_to_say(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"The Owl"), clock), HalfCloseableWire)
    assert (wire.value(), wire.is_half_closed, wire.disconnecting) == (b"The Owl", True, False)
    wire.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
    assert wire.value() == b"The Owl"
    wire.protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_never_closes_is_closed_upon(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"The Owl"), clock), HalfCloseableWire)
    clock.advance(5)
    assert wire.disconnecting


def test_a_client_that_ends_its_side_first_reads_the_whole_poem(clock: Clock) -> None:
    factory = PoemFactory(PoemService(b"x" * (CHUNK_BYTES + 1)), clock)
    wire = connect(factory, HalfCloseableWire, takes=False)
    wire.protocol.readConnectionLost()
    assert (len(wire.value()), wire.disconnecting, wire.disconnected) == (CHUNK_BYTES, False, False)
    wire.takes = True
    assert wire.producer is not None
    wire.producer.resumeProducing()
    assert (len(wire.value()), wire.disconnecting) == (CHUNK_BYTES + 1, True)


def test_a_client_that_takes_nothing_gets_one_piece_and_is_cut_off_in_the_end(clock: Clock, log: Log) -> None:
    factory = PoemFactory(PoemService(b"x" * 10 * CHUNK_BYTES), clock, stall_timeout_s=300)
    wire = connect(factory, takes=False)
    assert len(wire.value()) == CHUNK_BYTES
    clock.advance(299)
    assert not wire.disconnected
    clock.advance(1)
    assert (len(wire.value()), wire.disconnected) == (CHUNK_BYTES, True)
    assert log.lines == ["cut off a local client: it takes nothing"]
    assert clock.getDelayedCalls() == []


def test_a_client_that_takes_a_piece_now_and_then_is_not_cut_off(clock: Clock) -> None:
    factory = PoemFactory(PoemService(b"x" * 3 * CHUNK_BYTES), clock, stall_timeout_s=300)
    wire = connect(factory, takes=False)
    for _ in range(3):
        clock.advance(299)
        assert wire.producer is not None
        wire.producer.resumeProducing()
    assert (len(wire.value()), wire.disconnected, wire.disconnecting) == (3 * CHUNK_BYTES, False, True)


def test_a_client_that_takes_what_comes_is_not_cut_off_for_a_stall_that_is_over(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"x" * 400), clock, bytes_per_s=1, stall_timeout_s=300))
    wire.protocol.pauseProducing()
    clock.advance(1)
    wire.protocol.resumeProducing()
    clock.pump([1] * 350)
    assert not wire.disconnected


def test_what_the_transport_has_done_with_gets_no_more(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"x" * 200), clock, bytes_per_s=100))
    assert (wire.producer, wire.streaming) == (wire.protocol, True)
    wire.protocol.stopProducing()
    assert clock.getDelayedCalls() == []
    wire.protocol.resumeProducing()
    clock.advance(1)
    assert wire.value() == b""


def test_who_is_cut_off_is_named(clock: Clock, log: Log) -> None:
    factory = PoemFactory(PoemService(b"The Owl"), clock, stall_timeout_s=300)
    protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
    assert protocol is not None
    wire = Wire()
    wire.takes, wire.protocol = False, protocol
    protocol.makeConnection(wire)
    clock.advance(300)
    assert log.lines == ["cut off 192.0.2.7: it takes nothing"]


def test_a_client_that_does_not_take_the_end_is_cut_off_in_the_end(clock: Clock, log: Log) -> None:
    wire = connect(PoemFactory(PoemService(b"The Owl"), clock, stall_timeout_s=300), HalfCloseableWire, takes=False)
    wire.protocol.resumeProducing()
    assert (wire.is_half_closed, wire.producer) == (True, None)
    clock.advance(299)
    assert not wire.disconnected
    clock.advance(1)
    assert wire.disconnected
    assert log.lines == ["cut off a local client: it takes nothing"]


def test_a_slow_server_sends_by_the_clock(clock: Clock) -> None:
    wire = connect(PoemFactory(PoemService(b"x" * 200), clock, bytes_per_s=100))
    assert wire.value() == b""
    for expected in range(5, 205, 5):
        clock.advance(0.05)
        assert abs(len(wire.value()) - expected) <= 5
    clock.advance(0.01)
    assert (len(wire.value()), wire.disconnecting) == (200, True)


def test_a_client_that_leaves_a_slow_server_leaves_no_timer(clock: Clock) -> None:
    factory = PoemFactory(PoemService(b"x" * 200), clock, bytes_per_s=100)
    wire = connect(factory)
    clock.advance(0.5)
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []
    assert len(factory.connections) == 0


def test_a_poem_that_is_not_there_yet_is_sent_when_it_is(clock: Clock) -> None:
    poem: Deferred[bytes] = Deferred()
    wire = connect(PoemFactory(Given(poem), clock))
    assert wire.value() == b""
    poem.callback(b"The Owl")
    assert (wire.value(), wire.disconnecting) == (b"The Owl", True)


@pytest.mark.parametrize("leave", ["closes its side", "is gone"])
def test_who_leaves_while_it_waits_cancels_its_wait(clock: Clock, leave: str, log: Log) -> None:
    cancelled: list[object] = []
    wire = connect(PoemFactory(Given(Deferred(cancelled.append)), clock))
    if leave == "is gone":
        wire.protocol.connectionLost(Failure(ConnectionDone()))
    else:
        wire.protocol.readConnectionLost()
    assert len(cancelled) == 1
    assert log == []


@pytest.mark.parametrize("how", [fail, lambda error: error], ids=["later", "at once"])
def test_without_a_poem_the_connection_is_reset_and_the_log_says_why_once_a_second(
    clock: Clock, log: Log, how: Callable[[Exception], Any]
) -> None:
    factory = PoemFactory(Given(None), clock)
    for _ in range(3):
        factory.source.poem = how(xformd.ConnectionFailed("no upstream"))  # type: ignore[attr-defined]
        wire = connect(factory)
        assert (wire.value(), wire.disconnected) == (b"", True)
    assert log.lines == ["closed a new connection: no poem: connection-failed: no upstream"]
    clock.advance(1)
    assert log.lines[1].startswith("closed 2 new connections in the last second: no poem: connection-failed")


@pytest.mark.parametrize(
    "poem", [ZeroDivisionError(), "a text is no poem", succeed(None)], ids=["raises", "text", "nothing"]
)
def test_a_source_that_is_broken_is_shown_with_its_traceback(clock: Clock, log: Log, poem: object) -> None:
    wire = connect(PoemFactory(Given(poem), clock))
    assert wire.disconnected
    assert len(log.tracebacks) == 1


def test_there_is_an_end_to_the_connections(clock: Clock, log: Log) -> None:
    factory = PoemFactory(PoemService(b"x"), clock, max_connections=1)
    wire = connect(factory, takes=False)
    refused = connect(factory)
    assert (refused.disconnected, refused.value()) == (True, b"")  # not closed in order: that is an empty poem to many
    assert "1 are open" in log.lines[0]
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    assert connect(factory).value() == b"x"


def test_a_server_that_stops_lets_its_clients_read_to_the_end(clock: Clock) -> None:
    factory = PoemFactory(PoemService(b"The Owl"), clock)
    wire = connect(factory, takes=False)
    drained = factory.drain()
    assert factory.buildProtocol(None) is None
    assert not has_fired(drained)
    assert wire.producer is not None
    wire.producer.resumeProducing()
    wire.protocol.connectionLost(Failure(ConnectionDone()))
    assert has_fired(drained)
    assert clock.getDelayedCalls() == []


def test_a_server_that_stops_waits_for_the_last_of_its_clients(clock: Clock) -> None:
    factory = PoemFactory(PoemService(b"The Owl"), clock)
    first, last = connect(factory, takes=False), connect(factory, takes=False)
    drained = factory.drain()
    first.protocol.connectionLost(Failure(ConnectionDone()))
    assert not has_fired(drained)
    last.protocol.connectionLost(Failure(ConnectionDone()))
    assert has_fired(drained)


def test_who_still_reads_after_the_grace_period_is_cut_off(clock: Clock, log: Log) -> None:
    factory = PoemFactory(PoemService(b"The Owl"), clock, shutdown_grace_s=30)
    wire = connect(factory, takes=False)
    drained = factory.drain()
    clock.advance(30)
    assert wire.disconnected
    assert has_fired(drained)
    assert log.lines == ["cut off 1 clients after the grace period"]


def test_a_server_without_clients_stops_at_once(clock: Clock) -> None:
    assert has_fired(PoemFactory(PoemService(b"x"), clock).drain())


def test_a_file_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(xformd.ConfigError, match=r"cannot serve .*owl.txt: No such file or directory"):
        PoemService(tmp_path / "owl.txt")


def test_a_service_of_a_file_gives_what_is_in_the_file_now(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "owl.txt"
    path.write_bytes(b"The Owl")
    factory = PoemFactory(PoemService(path), clock)
    assert connect(factory).value() == b"The Owl"
    path.write_bytes(b"The Pussy-cat")
    assert connect(factory).value() == b"The Pussy-cat"


def time_to_send(bytes_per_s: float, total_bytes: int) -> float:
    """Give the seconds until the last byte is sent, to a client that takes everything at once."""
    pace, sent_bytes, now_s = RateLimiter(bytes_per_s, 0.0), 0, 0.0
    while sent_bytes < total_bytes:
        step = pace.next(sent_bytes, total_bytes, now_s)
        assert 0 < step.size_bytes <= CHUNK_BYTES
        sent_bytes += step.size_bytes
        now_s += step.wait_s
    return now_s


@pytest.mark.parametrize(
    ("bytes_per_s", "total_bytes", "expected_s"),
    [(100, 200, 2.0), (1, 3, 3.0), (3, 10, 10 / 3), (1e6, 2_000_000, 2.0), (1e9, 1_000_000, 0.001)],
)
def test_a_poem_takes_its_size_divided_by_the_speed(bytes_per_s: float, total_bytes: int, expected_s: float) -> None:
    assert time_to_send(bytes_per_s, total_bytes) == pytest.approx(expected_s)


def test_a_piece_is_that_of_a_moment_so_that_a_poem_is_seen_to_come() -> None:
    assert RateLimiter(1000, 0.0).next(0, 10_000, 0.0).size_bytes == 1000 * TICK_S
    assert RateLimiter(5, 0.0).next(0, 10_000, 0.0).size_bytes == 1


def test_what_a_client_missed_while_it_stood_still_does_not_come_at_once() -> None:
    pace = RateLimiter(100, 0.0)
    assert pace.next(0, 1000, 0.0).wait_s == pytest.approx(0.05)
    late = pace.next(5, 1000, 60.0)
    assert late.wait_s == 0
    assert pace.next(10, 1000, 60.0).wait_s == pytest.approx(0.05)
