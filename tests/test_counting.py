"""What a server counts of its requests, whichever way they take."""

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from support.deferreds import error_of, result_of
from support.fakes import REGISTRY, Asker, Site
from support.logs import captured
from support.memory import MemoryServer, MemorySession, count_in
from support.sides import CUTS, OPENING, STREAMS, Side, pieces
from xformd.counting import CountingService
from xformd.errors import Busy, Cancelled
from xformd.limits import Limits
from xformd.service import TransformService
from xformd.spec import parse
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming
from xformd.wire.netstring import encode

DONE = Failure(ConnectionDone())


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(counts=True, max_in_flight=3, idle_timeout_s=300)


def total(histogram: Any) -> int:
    return int(histogram.cumulative[-1][1])


def run_counts(metrics: Metrics) -> dict[str, int]:
    """Return how many run times there are of each transform."""
    return {name: total(histogram) for name, histogram in metrics.run_seconds if total(histogram)}


def test_a_classic_request_is_counted_and_measured(server: MemoryServer) -> None:
    server.receive(b"9:upper.abc,")
    assert server.requests == {("upper", "classic", "ok"): 1}
    assert (server.metrics.poem_bytes.sum, server.metrics.result_bytes.sum) == (3, 3)
    assert run_counts(server.metrics) == {"upper": 1}
    assert total(server.metrics.queue_seconds) == 0  # nothing has waited for a worker


def test_the_fast_path_of_a_session_is_counted_and_measured(server: MemoryServer) -> None:
    client = MemorySession(server)
    client.send(encode(b"1 upper.abc") + encode(b"2 upper.defg") + encode(b"3 grow.a"))
    client.send(encode(b"4 upper.h"))
    assert server.requests == {("upper", "session", "ok"): 3, ("grow", "session", "ok"): 1}
    assert (server.metrics.poem_bytes.sum, server.metrics.result_bytes.sum) == (9, 1_000_008)
    assert run_counts(server.metrics) == {"grow": 1, "upper": 3}


def test_a_request_is_counted_when_it_ends(server: MemoryServer) -> None:
    client = MemorySession(server)
    client.ask(1, "later")
    client.ask(2, "later")
    assert server.requests == {}
    server.results[0].callback("result")
    client.control(2, "cancel")
    assert server.requests == {("later", "session", "ok"): 1, ("later", "session", "cancelled"): 1}
    assert server.metrics.result_bytes.sum == len("result")


def test_a_lost_connection_counts_as_cancelled(server: MemoryServer) -> None:
    client = MemorySession(server)
    client.ask(1, "later")
    client.lose()
    protocol, _ = server.receive(b"7:later.a,")
    protocol.connectionLost(DONE)
    assert server.requests == {("later", "session", "cancelled"): 1, ("later", "classic", "cancelled"): 1}


def test_names_that_clients_invent_are_no_labels(server: MemoryServer) -> None:
    client = MemorySession(server)
    for number, spec in enumerate(["nope", "upper+nope", "upper+upper", "x" * 60, "upper:k=v"], start=1):
        client.ask(number, spec)
    assert server.requests == {
        ("(unknown)", "session", "no-such-transform"): 2,
        ("(several)", "session", "no-such-transform"): 1,
        ("(several)", "session", "ok"): 1,
        ("upper", "session", "bad-options"): 1,
    }


@pytest.mark.parametrize(
    ("data", "front", "code"),
    [
        (b"9:upper", "netstring", "bad-frame"),
        (OPENING + b"9:upper", "session", "bad-frame"),
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
def test_a_request_that_never_reaches_the_service_is_counted_once(
    server: MemoryServer, data: bytes, front: str, code: str
) -> None:
    protocol, _ = server.receive(data)
    protocol.readConnectionLost()
    requests = server.requests
    requests.pop(("later", "session", "cancelled"), None)
    assert requests == {("(none)", front, code): 1}


def test_the_end_of_an_idle_session_counts_as_no_request(server: MemoryServer) -> None:
    MemorySession(server)
    server.clock.advance(300)
    assert server.requests == {}


def test_the_time_in_the_queue_is_measured_apart_from_the_run(clock: Clock) -> None:
    site, metrics = Site(clock), Metrics()
    site.service = CountingService(site.service, metrics, "http")  # type: ignore[assignment]
    results = [site.xform("upper", poem, timing=RequestTiming(clock=clock.seconds)) for poem in (b"1", b"2")]
    clock.advance(3)
    site.pool.worker_of(b"1").answer()
    clock.advance(4)
    site.pool.worker_of(b"2").answer()
    assert [*map(result_of, results)] == [b"1", b"2"]
    assert metrics.queue_seconds.sum == 3
    assert dict(metrics.run_seconds)["upper"].sum == 3 + 4
    assert metrics.requests == {("upper", "http", "ok"): 2}


def test_a_request_that_never_ran_has_no_run_time(clock: Clock) -> None:
    site, metrics = Site(clock, max_queue=1), Metrics()
    site.service = CountingService(site.service, metrics, "http")  # type: ignore[assignment]
    site.xform("upper", b"1")
    waiting = site.xform("upper", b"2")
    with pytest.raises(Busy):
        site.xform("upper", b"3")
    waiting.cancel()
    error_of(waiting, Cancelled)
    assert run_counts(metrics) == {}
    assert metrics.requests == {("upper", "http", "busy"): 1, ("upper", "http", "cancelled"): 1}


@given(STREAMS, CUTS, st.sampled_from([100, 100_000]))
def test_both_paths_of_a_session_count_the_same(
    stream: tuple[list[bytes], bytes], cuts: list[int], max_unread_output_bytes: int
) -> None:
    seen = []
    for has_fast_path in (True, False):
        side = Side(has_fast_path=has_fast_path, max_unread_output_bytes=max_unread_output_bytes, max_result_bytes=100)
        metrics = Metrics()
        count_in(side.factory, metrics)
        with captured():
            for piece in pieces(OPENING + b"".join(stream[0]) + stream[1], cuts):
                side.send(piece)
            side.end()
        metrics.fold()
        sizes = [(each.cumulative, each.sum) for each in (metrics.poem_bytes, metrics.result_bytes)]
        seen.append((metrics.requests, sizes, run_counts(metrics)))
    assert seen[0] == seen[1]


def test_every_request_of_a_long_session_is_counted_once(server: MemoryServer) -> None:
    client = MemorySession(server)
    sent: Counter[str] = Counter()
    numbers = itertools.count(1)
    for size, name in itertools.product((1, 7, 300, 1, 600), ("upper", "nope", "upper")):
        sent[name] += size
        client.send(b"".join(encode(b"%d %b.a" % (next(numbers), name.encode())) for _ in range(size)))
        while client.protocol._is_paused:
            server.clock.advance(0)
    assert server.requests == {
        ("upper", "session", "ok"): sent["upper"],
        ("(unknown)", "session", "no-such-transform"): sent["nope"],
    }


def test_a_request_reaches_the_service_behind_as_it_was(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    service = TransformService.inline(REGISTRY, Limits(), clock)

    def xform(*_: object, **given: Any) -> bytes:
        seen.append(given)
        return b""

    monkeypatch.setattr(service, "xform", xform)
    counting = CountingService(service, Metrics(), "session")
    asked = {"timeout_s": 2.0, "caller": Asker().caller, "timing": RequestTiming()}
    counting.xform(parse("upper"), b"", **asked)  # type: ignore[arg-type]
    assert seen == [asked]
    assert counting.listing() == service.listing()
    assert counting.registry is service.registry
