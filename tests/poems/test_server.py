"""The poem server: its file, its rate, what clients get, and how connections end."""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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
from xformd.net import run
from xformd.poems import PoemFactory, PoemService, server
from xformd.poems.server import CHUNK_BYTES, TICK_S, RateLimiter, _is_racy, make_poem_server


class Wire(StringTransport):
    """A connection whose client takes everything at once, until the test says otherwise."""

    is_half_closed = False
    takes = True
    protocol: Any

    def write(self, data: bytes) -> None:
        super().write(data)
        if not self.takes:
            self.stall()

    def stall(self) -> None:
        """Let what has been written wait for the client."""
        if self.producer is not None:
            self.producer.pauseProducing()

    def take(self) -> None:
        """Have the client take what waits."""
        if self.producer is not None:
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True
        if self.takes:
            self.protocol.writeConnectionLost()

    def abortConnection(self) -> None:
        super().abortConnection()
        self.lose()

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


@implementer(IHalfCloseableDescriptor)
class HalfCloseableWire(Wire):
    """The same over TCP."""

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...


class Source:
    """A source whose poem, Deferred or error the test chooses."""

    def __init__(self, poem: Any) -> None:
        self.poem = poem

    def get_poem(self) -> Any:
        if isinstance(self.poem, Exception):
            raise self.poem
        return self.poem


def connect(
    factory: PoemFactory, kind: Callable[[], Wire] = Wire, *, takes: bool = True, peer: IPv4Address | None = None
) -> Wire:
    protocol = factory.buildProtocol(peer)
    assert protocol is not None
    wire = kind()
    wire.takes, wire.protocol = takes, protocol
    protocol.makeConnection(wire)
    return wire


def make(clock: Clock, poem: Any = b"The Owl", **options: Any) -> PoemFactory:
    return PoemFactory(PoemService(poem) if isinstance(poem, bytes | Path) else Source(poem), clock, **options)


# What a client gets


def test_a_client_gets_the_poem_and_the_close(clock: Clock) -> None:
    wire = connect(make(clock))
    assert (wire.value(), wire.disconnecting, wire.disconnected) == (b"The Owl", True, False)


@pytest.mark.parametrize("is_silent", [False, True])
def test_over_tcp_the_server_ends_its_side_and_lets_the_client_finish_in_5_s(clock: Clock, is_silent: bool) -> None:
    wire = connect(make(clock), HalfCloseableWire)
    wire.protocol.dataReceived(b"GET / HTTP/1.1\r\n\r\n")
    clock.advance(4.9)
    assert (wire.value(), wire.is_half_closed, wire.disconnecting) == (b"The Owl", True, False)
    if is_silent:
        clock.advance(0.1)
    else:
        wire.protocol.readConnectionLost()
    assert wire.disconnecting


def test_a_client_that_ends_its_side_first_reads_the_whole_poem(clock: Clock) -> None:
    wire = connect(make(clock, b"x" * (CHUNK_BYTES + 1)), HalfCloseableWire, takes=False)
    wire.protocol.readConnectionLost()
    assert (len(wire.value()), wire.disconnecting, wire.disconnected) == (CHUNK_BYTES, False, False)
    wire.takes = True
    wire.take()
    assert (len(wire.value()), wire.disconnecting) == (CHUNK_BYTES + 1, True)


def test_a_poem_that_is_not_there_yet_is_sent_when_it_is(clock: Clock) -> None:
    poem: Deferred[bytes] = Deferred()
    wire = connect(make(clock, poem))
    assert wire.value() == b""
    poem.callback(b"The Owl")
    assert (wire.value(), wire.disconnecting) == (b"The Owl", True)


@pytest.mark.parametrize("leave", [Wire.lose, lambda wire: wire.protocol.readConnectionLost()])
def test_a_client_that_leaves_while_it_waits_cancels_its_wait(
    clock: Clock, leave: Callable[[Wire], None], log: Log
) -> None:
    cancelled: list[object] = []
    leave(connect(make(clock, Deferred(cancelled.append))))
    assert (len(cancelled), log) == (1, [])


@pytest.mark.parametrize("how", [fail, lambda error: error], ids=["later", "at once"])
def test_without_a_poem_the_connection_is_reset_and_the_log_says_why_once_a_second(
    clock: Clock, log: Log, how: Callable[[Exception], Any]
) -> None:
    source = Source(None)
    factory = PoemFactory(source, clock)
    for _ in range(3):
        source.poem = how(xformd.ConnectionFailed("no upstream"))
        wire = connect(factory)
        assert (wire.value(), wire.disconnected) == (b"", True)
    assert log.lines == ["closed a new connection: no poem: connection-failed: no upstream"]
    clock.advance(1)
    assert log.lines[1].endswith("no poem: connection-failed: no upstream (the last of 2 within a second)")


@pytest.mark.parametrize("poem", [ZeroDivisionError(), "a text is not a poem", None, succeed(None)])
def test_a_broken_source_is_logged_with_its_traceback(clock: Clock, log: Log, poem: object) -> None:
    assert connect(make(clock, poem)).disconnected
    assert len(log.tracebacks) == 1


# Clients that stall


@pytest.mark.parametrize(
    ("peer", "name"), [(None, "a local client"), (IPv4Address("TCP", "192.0.2.7", 1), "192.0.2.7")]
)
def test_a_client_that_takes_nothing_gets_one_piece_and_is_cut_off(
    clock: Clock, log: Log, peer: IPv4Address | None, name: str
) -> None:
    wire = connect(make(clock, b"x" * 10 * CHUNK_BYTES, stall_timeout_s=300), takes=False, peer=peer)
    clock.advance(299)
    assert not wire.disconnected
    clock.advance(1)
    assert (len(wire.value()), wire.disconnected) == (CHUNK_BYTES, True)
    assert log.lines == [f"cut off {name}: it takes nothing"]
    clock.advance(1)  # in which others would be counted
    assert clock.getDelayedCalls() == []


def test_a_client_that_takes_a_piece_now_and_then_is_not_cut_off(clock: Clock) -> None:
    wire = connect(make(clock, b"x" * 3 * CHUNK_BYTES, stall_timeout_s=300), takes=False)
    for _ in range(3):
        clock.advance(299)
        wire.take()
    assert (len(wire.value()), wire.disconnected, wire.disconnecting) == (3 * CHUNK_BYTES, False, True)


def test_a_client_that_takes_what_the_system_holds_is_not_cut_off_until_it_stops(clock: Clock) -> None:
    class FullWire(Wire):
        dataBuffer, offset = bytes(1_000_000), 0  # noqa: N815 - Twisted's name

    wire: Any = connect(make(clock, b"x" * 2 * CHUNK_BYTES, stall_timeout_s=300), FullWire, takes=False)
    wire.offset = 500_000
    clock.advance(300)
    assert not wire.disconnected
    clock.advance(300)
    assert wire.disconnected


def test_a_stall_that_is_over_is_forgotten(clock: Clock) -> None:
    wire = connect(make(clock, b"x" * 400, bytes_per_s=1, stall_timeout_s=300))
    wire.stall()
    clock.advance(1)
    wire.take()
    clock.pump([1] * 350)
    assert not wire.disconnected


def test_a_client_that_does_not_take_the_end_is_cut_off(clock: Clock) -> None:
    wire = connect(make(clock, stall_timeout_s=300), HalfCloseableWire, takes=False)
    wire.take()
    assert (wire.is_half_closed, wire.producer) == (True, None)
    clock.advance(299)
    assert not wire.disconnected
    clock.advance(1)
    assert wire.disconnected


# The limits of a server, and its end


def test_a_client_over_the_limit_is_reset(clock: Clock, log: Log) -> None:
    factory = make(clock, max_connections=1)
    wire = connect(factory, takes=False)
    refused = connect(factory)
    assert (refused.disconnected, refused.value()) == (True, b"")  # a clean close would be an empty poem to many
    assert "1 are open" in log.lines[0]
    wire.lose()
    assert connect(factory).value() == b"The Owl"


def test_a_server_that_stops_lets_its_clients_read_to_the_end(clock: Clock) -> None:
    factory = make(clock)
    first, last = connect(factory, takes=False), connect(factory, takes=False)
    drained = factory.drain()
    assert connect(factory).disconnected  # reset: a clean close would be an empty poem to many
    first.lose()
    last.take()
    assert (last.disconnecting, has_fired(drained)) == (True, False)
    last.lose()
    assert has_fired(drained)
    assert clock.getDelayedCalls() == []


def test_a_client_that_still_reads_after_the_grace_period_is_cut_off(clock: Clock, log: Log) -> None:
    factory = make(clock, shutdown_grace_s=30)
    wire = connect(factory, takes=False)
    drained = factory.drain()
    clock.pump([30, 0])
    assert (wire.disconnected, has_fired(drained)) == (True, True)
    assert log.lines == ["connections still open after the grace period of 30 s, closed now: 1"]


# Rate limits


def test_a_slow_server_sends_by_the_clock(clock: Clock) -> None:
    wire = connect(make(clock, b"x" * 200, bytes_per_s=100))
    assert wire.value() == b""
    for expected in range(5, 205, 5):
        clock.advance(0.05)
        assert abs(len(wire.value()) - expected) <= 5
    clock.advance(0.01)
    assert (len(wire.value()), wire.disconnecting) == (200, True)


def test_a_client_that_leaves_a_slow_server_leaves_no_timer(clock: Clock) -> None:
    factory = make(clock, b"x" * 200, bytes_per_s=100)
    wire = connect(factory)
    clock.advance(0.5)
    wire.lose()
    assert clock.getDelayedCalls() == []
    assert len(factory.connections) == 0


def pieces_of(poem: bytes, bytes_per_s: float) -> Iterator[tuple[bytes, float]]:
    """Yield each piece and the time at which it is sent, to a client that takes everything at once."""
    limiter, sent_bytes, now_s = RateLimiter(bytes_per_s, 0.0), 0, 0.0
    while sent_bytes < len(poem):
        size_bytes, wait_s = limiter.next(poem, sent_bytes, now_s)
        now_s += wait_s
        yield poem[sent_bytes : sent_bytes + size_bytes], now_s
        sent_bytes += size_bytes


@pytest.mark.parametrize(
    ("bytes_per_s", "total_bytes", "expected_s"),
    [(100, 200, 2.0), (1, 3, 3.0), (3, 10, 10 / 3), (1e6, 2_000_000, 2.0), (1e9, 1_000_000, 0.001)],
)
def test_a_poem_takes_its_size_divided_by_the_rate(bytes_per_s: float, total_bytes: int, expected_s: float) -> None:
    pieces = [*pieces_of(b"x" * total_bytes, bytes_per_s)]
    assert pieces[-1][1] == pytest.approx(expected_s)
    assert max(len(piece) for piece, _ in pieces) <= CHUNK_BYTES


@pytest.mark.parametrize("bytes_per_s", [1, 20, 60, 100, 200])
@pytest.mark.parametrize("character", "o\u00fc\u6797\U0001f989")
def test_each_piece_of_a_text_can_be_decoded(character: str, bytes_per_s: float) -> None:
    text = ("The Owl" + character * 5) * 10
    poem = text.encode()
    pieces = [*pieces_of(poem, bytes_per_s)]
    assert "".join(piece.decode() for piece, _ in pieces) == text
    assert pieces[-1][1] == pytest.approx(len(poem) / bytes_per_s)


@pytest.mark.parametrize(
    "poem", [b"\x80" * 300, b"\xff\xfe" * 150, b"The Owl" + b"\xf0" * 50 + b"\xbf"], ids=["goes on", "UTF-16", "begins"]
)
def test_what_is_no_text_is_sent_as_it_is(poem: bytes) -> None:
    pieces = [piece for piece, _ in pieces_of(poem, 100)]
    assert b"".join(pieces) == poem
    assert max(map(len, pieces)) <= 5 + 3


@pytest.mark.parametrize(("bytes_per_s", "size_bytes"), [(1000, 1000 * TICK_S), (5, 1)])
def test_a_piece_is_what_is_due_in_a_tick(bytes_per_s: float, size_bytes: int) -> None:
    assert RateLimiter(bytes_per_s, 0.0).next(b"x" * 10_000, 0, 0.0)[0] == size_bytes


def test_what_a_stalled_client_missed_does_not_come_at_once() -> None:
    limiter, poem = RateLimiter(100, 0.0), b"x" * 1000
    assert limiter.next(poem, 0, 0.0)[1] == pytest.approx(0.05)
    assert limiter.next(poem, 5, 60.0)[1] == 0
    assert limiter.next(poem, 10, 60.0)[1] == pytest.approx(0.05)


# The file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "owl.txt"
    path.write_bytes(b"The Owl")
    return path


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(xformd.ConfigError, match=r"cannot serve .*owl.txt: No such file or directory"):
        PoemService(tmp_path / "owl.txt")


def test_each_client_reads_one_version_of_the_file_to_its_end(path: Path, clock: Clock) -> None:
    large = b"The Owl" * CHUNK_BYTES
    path.write_bytes(large)
    factory = make(clock, path)
    before = connect(factory, takes=False)
    path.write_bytes(b"x" * len(large))
    assert connect(factory).value() == b"x" * len(large)
    path.unlink()
    before.takes = True
    before.take()
    assert before.value() == large


def test_a_file_that_has_not_changed_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(server, "RACY_NS", 0)
    file = PoemService(path)
    assert file.get_poem() is file.get_poem()
    path.write_bytes(b"The Pussy-cat")
    assert file.get_poem() == b"The Pussy-cat"
    assert log == []


@pytest.mark.parametrize(("racy_ns", "expected"), [(10**15, b"The Cat"), (0, b"The Owl")])
def test_a_file_that_was_young_is_read_again_though_no_change_can_be_seen(
    path: Path, monkeypatch: pytest.MonkeyPatch, racy_ns: int, expected: bytes
) -> None:
    monkeypatch.setattr(server, "file_fingerprint", lambda file: (1,))
    monkeypatch.setattr(server, "RACY_NS", racy_ns)
    file = PoemService(path)
    path.write_bytes(b"The Cat")
    assert file.get_poem() == expected


@pytest.mark.parametrize(
    ("mtime_ns", "ctime_ns", "age_ns", "is_racy"),
    [(10**18, 10**18, 1, True), (1, 10**18, 1, True), (10**18, 10**18, 10**9, False)],
)
def test_a_file_that_has_just_changed_is_racy(mtime_ns: int, ctime_ns: int, age_ns: int, is_racy: bool) -> None:
    status = Mock(st_mtime_ns=mtime_ns, st_ctime_ns=ctime_ns)
    assert _is_racy(status, 10**18 + age_ns) is is_racy


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (Path.touch, "it is empty"),
        (Path.mkdir, "Is a directory"),
        (os.mkfifo, "it is not a regular file"),
    ],
)
def test_while_a_file_cannot_be_read_the_last_good_poem_stays_and_the_log_says_so_once(
    path: Path, log: Log, break_it: Callable[[Path], object], reason: str
) -> None:
    file = PoemService(path)
    for _ in range(2):  # each time is logged
        path.unlink()
        break_it(path)
        for _ in range(3):
            assert file.get_poem() == b"The Owl"
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(b"The Owl")
        assert [file.get_poem(), file.get_poem()] == [b"The Owl"] * 2
    once = [f"cannot read {path}: {reason}; the last good poem stays", f"{path} can be read again"]
    assert log.lines == once * 2


def test_at_the_start_there_must_be_a_poem() -> None:
    # It says that it has no bytes, and has some.
    with pytest.raises(xformd.ConfigError, match="cannot serve /proc/version: it changed while it was read"):
        PoemService(Path("/proc/version"))


def test_a_poem_may_be_empty(path: Path, clock: Clock, log: Log) -> None:
    path.write_bytes(b"")
    for poem in (b"", path):
        wire = connect(make(clock, poem))
        assert (wire.value(), wire.disconnecting, wire.disconnected) == (b"", True, False)
    assert log == []


@pytest.mark.parametrize("poem", [None, "owl.txt", 5])
def test_what_is_no_poem_is_an_error_at_once(poem: Any) -> None:
    says = f"a poem is bytes, or the pathlib.Path of a file; not {type(poem).__name__}"
    with pytest.raises(TypeError, match=re.escape(says)):
        PoemService(poem)


@pytest.mark.parametrize("source", [None, b"The Owl", "The Owl"])
def test_what_has_no_poem_is_an_error_at_once(source: Any, clock: Clock) -> None:
    says = f"PoemFactory takes an object with get_poem(), such as a PoemService; not {type(source).__name__}"
    with pytest.raises(TypeError, match=re.escape(says)):
        PoemFactory(source, clock)


def test_the_global_reactor_is_the_default(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", clock)
    monkeypatch.setattr("twisted.internet.reactor", clock, raising=False)
    assert PoemFactory(PoemService(b"The Owl")).clock is clock


def test_a_file_that_changes_while_it_is_read_gives_nobody_a_mixture(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PoemService(path)
    path.write_bytes(b"a" * 100)
    os.utime(path, ns=(0, 0))  # so that it differs from what comes, however coarse the file system's clock is
    fstat, calls = os.fstat, itertools.count()

    def changed_before_the_second(descriptor: int) -> os.stat_result:
        if next(calls) == 1:
            path.write_bytes(b"b" * 100)
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", changed_before_the_second)
    assert file.get_poem() == b"The Owl"
    monkeypatch.undo()
    assert file.get_poem() == b"b" * 100


@pytest.mark.parametrize(("limit", "lines"), [(100, 1), (1_000_000, 0)])
def test_a_low_limit_on_descriptors_is_logged(
    clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch, limit: int, lines: int
) -> None:
    monkeypatch.setattr(run, "raise_limit", lambda wanted: limit)
    make_poem_server(PoemService(b"The Owl"), ("tcp:0",), clock)
    assert [line.partition(" and has room")[0] for line in log.lines] == ["ulimit -n is 100"] * lines
