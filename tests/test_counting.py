"""What is asked of a service is counted once, by what it was, how it came and what became of it."""

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from dialects.test_fast_path import OPENING, STREAMS, Side, pieces
from dialects.test_session import Client
from support.deferreds import error_of, result_of
from support.fakes import REGISTRY as ISOLATED
from support.fakes import Pool
from support.logs import captured
from support.wires import Server
from xformd import Busy, Cancelled
from xformd.counting import CountingService
from xformd.limits import Limits
from xformd.protocol import TransformFactory
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.spec import parse
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming
from xformd.wire.netstring import encode

MIB = 1024 * 1024


def count_in(factory: TransformFactory, metrics: Metrics) -> None:
    """Let a factory count from now on."""
    service = factory.service
    assert isinstance(service, TransformService)
    factory.metrics = metrics
    factory.counting = {
        "classic": CountingService(service, metrics, "classic"),
        "session": CountingService(service, metrics, "session"),
    }


class Counting(Server):
    """A server that counts."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.metrics = Metrics()
        count_in(self.factory, self.metrics)

    @property
    def requests(self) -> dict[tuple[str, str, str], int]:
        self.metrics.fold()
        return dict(self.metrics.requests)


@pytest.fixture
def server() -> Counting:
    return Counting(max_in_flight=3, idle_timeout_s=300)


def total(histogram: Any) -> int:
    return int(histogram.cumulative[-1][1])


def test_a_classic_request_is_counted_and_measured(server: Counting) -> None:
    protocol, _ = server.connect()
    protocol.dataReceived(b"9:upper.abc,")
    assert server.requests == {("upper", "classic", "ok"): 1}
    assert (server.metrics.poem_bytes.sum, server.metrics.result_bytes.sum) == (3, 3)
    assert [(name, total(histogram)) for name, histogram in server.metrics.run_seconds] == [("upper", 1)]
    assert total(server.metrics.queue_seconds) == 0  # nothing has waited for a worker


def test_the_hot_path_of_a_session_is_counted_and_measured(server: Counting) -> None:
    client = Client(server)
    client.say(encode(b"1 upper.abc") + encode(b"2 upper.defg") + encode(b"3 grow.a"))
    client.say(encode(b"4 upper.h"))
    assert server.requests == {("upper", "session", "ok"): 3, ("grow", "session", "ok"): 1}
    assert (server.metrics.poem_bytes.sum, server.metrics.result_bytes.sum) == (9, 1_000_008)
    assert [(name, total(histogram)) for name, histogram in server.metrics.run_seconds] == [("grow", 1), ("upper", 3)]


def test_what_comes_later_is_counted_when_it_comes(server: Counting) -> None:
    client = Client(server)
    client.ask(1, "later")
    client.ask(2, "later")
    assert server.requests == {}
    server.results[0].callback("result")
    client.control(2, "cancel")
    assert server.requests == {("later", "session", "ok"): 1, ("later", "session", "cancelled"): 1}
    assert server.metrics.result_bytes.sum == len("result")


def test_who_goes_away_has_given_up_what_runs(server: Counting) -> None:
    client = Client(server)
    client.ask(1, "later")
    client.lose(ConnectionDone())
    protocol, _ = server.connect()
    protocol.dataReceived(b"7:later.a,")
    protocol.connectionLost(Failure(ConnectionDone()))
    assert server.requests == {("later", "session", "cancelled"): 1, ("later", "classic", "cancelled"): 1}


def test_names_of_clients_are_no_labels(server: Counting) -> None:
    client = Client(server)
    for number, spec in enumerate(["nope", "upper+nope", "upper+upper", "x" * 60, "upper:k=v"], start=1):
        client.ask(number, spec)
    assert server.requests == {
        ("(unknown)", "session", "no-such-transform"): 2,
        ("(several)", "session", "no-such-transform"): 1,
        ("(several)", "session", "ok"): 1,
        ("upper", "session", "bad-options"): 1,
    }


@pytest.mark.parametrize(
    ("sent", "front", "code"),
    [
        (b"01:x,", "netstring", "bad-frame"),
        (b"99999999:", "netstring", "too-large"),
        (b"5:upper,", "classic", "bad-request"),
        (OPENING + encode(b"nonsense"), "session", "bad-frame"),
        (OPENING + encode(b"1 Upper.a"), "session", "bad-request"),
        (OPENING + b"99999999:", "session", "too-large"),
        (OPENING + b"5:1 upp;", "session", "bad-frame"),
        (OPENING + encode(b"1 later.a") + encode(b"1 later.b"), "session", "bad-request"),
    ],
)
def test_what_never_reaches_the_service_is_counted(server: Counting, sent: bytes, front: str, code: str) -> None:
    protocol, _ = server.connect()
    protocol.dataReceived(sent)
    requests = server.requests
    requests.pop(("later", "session", "cancelled"), None)
    assert requests == {("(none)", front, code): 1}


def test_a_stream_that_ends_too_early_is_counted_once(server: Counting) -> None:
    for opening in (b"", OPENING):
        protocol, _ = server.connect()
        protocol.dataReceived(opening + b"9:upper")
        protocol.readConnectionLost()
    assert server.requests == {("(none)", "netstring", "bad-frame"): 1, ("(none)", "session", "bad-frame"): 1}


def test_a_session_at_rest_that_is_closed_has_refused_nothing(server: Counting) -> None:
    Client(server)
    server.clock.advance(300)
    assert server.requests == {}


def test_connections_that_are_refused_or_cut_off_are_counted() -> None:
    server = Counting(max_connections=1, request_timeout_s=30)
    protocol, _ = server.connect()
    for _ in range(2):
        assert server.factory.buildProtocol(None) is None
    assert (server.factory.connection_stats.open, dict(server.factory.connection_stats.refused)) == (1, {"total": 2})
    assert server.factory.connection_stats.cut_off == 0
    protocol.dataReceived(b"9:up")
    server.clock.advance(30)
    assert server.factory.connection_stats.cut_off == 1


class Site:
    """A service with one fake worker, that counts."""

    def __init__(self, clock: Clock, **limits: Any) -> None:
        self.pool = Pool(clock, **limits).start()
        generation = Generation(ISOLATED, InlineRunner(MIB, clock), self.pool.pool)
        self.metrics = Metrics()
        self.service = CountingService(TransformService(generation, Limits(), clock), self.metrics, "http")
        self.clock = clock


def test_the_time_in_the_queue_is_measured_apart_from_the_run(clock: Clock) -> None:
    site = Site(clock)
    traces = (RequestTiming(clock=clock.seconds), RequestTiming(clock=clock.seconds))
    results: list[Any] = [site.service.xform(parse("upper"), b"%d" % n, timing=t) for n, t in enumerate(traces, 1)]
    clock.advance(3)
    site.pool.worker_of(b"1").answer()
    clock.advance(4)
    site.pool.worker_of(b"2").answer()
    assert [*map(result_of, results)] == [b"1", b"2"]
    assert site.metrics.queue_seconds.sum == 3
    assert dict(site.metrics.run_seconds)["upper"].sum == 3 + 4
    assert site.metrics.requests == {("upper", "http", "ok"): 2}


def test_what_never_ran_has_no_run_time(clock: Clock) -> None:
    site = Site(clock, max_queue=1)
    ended = site.service.xform(parse("upper"), b"1")
    waits: Any = site.service.xform(parse("upper"), b"2")
    with pytest.raises(Busy):
        site.service.xform(parse("upper"), b"3")
    waits.cancel()
    error_of(waits, Cancelled)
    assert ended is not None
    assert [*site.metrics.run_seconds] == []
    assert site.metrics.requests == {("upper", "http", "busy"): 1, ("upper", "http", "cancelled"): 1}


@given(STREAMS, st.lists(st.integers(0, 5_000), max_size=5), st.sampled_from([100, 100_000]))
def test_the_hot_path_counts_what_the_careful_path_does(
    stream: tuple[list[bytes], bytes], cuts: list[int], max_unread_output_bytes: int
) -> None:
    seen = []
    data = OPENING + b"".join(stream[0]) + stream[1]
    for is_careful in (False, True):
        side = Side(is_careful=is_careful, max_unread_output_bytes=max_unread_output_bytes, max_result_bytes=100)
        metrics = Metrics()
        count_in(side.protocol.factory, metrics)
        with captured():
            for piece in pieces(data, cuts):
                side.say(piece)
            side.end()
        metrics.fold()
        sizes = [(each.cumulative, each.sum) for each in (metrics.poem_bytes, metrics.result_bytes)]
        ran = [(name, total(histogram)) for name, histogram in metrics.run_seconds]
        seen.append((metrics.requests, sizes, [pair for pair in ran if pair[1]]))
    assert seen[0] == seen[1]


def test_every_request_of_a_long_session_is_counted_once(server: Counting) -> None:
    client = Client(server)
    sent: Counter[str] = Counter()
    numbers = itertools.count(1)
    for size in (1, 7, 300, 1, 600):
        for name in ("upper", "nope", "upper"):
            sent[name] += size
            client.say(b"".join(encode(b"%d %b.a" % (next(numbers), name.encode())) for _ in range(size)))
            while (
                server.clock.getDelayedCalls() and server.clock.getDelayedCalls()[0].getTime() <= server.clock.seconds()
            ):
                server.clock.advance(0)
    assert server.requests == {
        ("upper", "session", "ok"): sent["upper"],
        ("(unknown)", "session", "no-such-transform"): sent["nope"],
    }


def test_what_is_asked_reaches_the_service_as_it_was(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        takes_results = True

    seen: list[dict[str, Any]] = []
    caller = Reader()
    service = TransformService.inline(ISOLATED, Limits(), clock)
    monkeypatch.setattr(service, "xform", lambda *_, **asked: seen.append(asked) or b"")
    timing = RequestTiming()
    counted = CountingService(service, Metrics(), "session")
    counted.xform(parse("upper"), b"", timeout_s=2.0, caller=caller, timing=timing)
    assert seen == [{"timeout_s": 2.0, "caller": caller, "timing": timing}]
