"""A timing adds up what a request waits and runs, and names the request in the log."""

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from support.deferreds import error_of, outcome_of, result_of
from support.fakes import REGISTRY, Pool
from support.logs import Log
from support.registries import registry_of
from xformd import Cancelled, InternalError, TransformDied, TransformFailed, TransformTimeout, transform
from xformd.limits import Limits
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.spec import parse_readable
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import SafeTraceback


class Site:
    """A service with one fake worker, and inline transforms whose time the test decides."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waiting: list[Deferred[str]] = []
        self.pool = Pool(clock).start()

        @transform(inline=True)
        def slow(poem: str) -> str:
            clock.advance(2)
            return poem

        @transform(inline=True)
        def broken(poem: str) -> str:
            raise ValueError(poem)

        @transform
        def later(poem: str) -> "Deferred[str]":
            self.waiting.append(Deferred())
            return self.waiting[-1]

        registry = registry_of(slow, broken, later, *(entry.transform for entry in REGISTRY.entries.values()))
        generation = Generation(registry, InlineRunner(1_000, clock), self.pool.pool)
        self.service = TransformService(generation, Limits(), clock)

    def ask(
        self, spec: str, poem: bytes = b"a", request_id: str | None = None, timeout_s: float | None = None
    ) -> tuple[RequestTiming, Deferred[bytes]]:
        timing = RequestTiming(request_id, clock=self.clock.seconds)
        result = self.service.xform(parse_readable(spec), poem, timing=timing, timeout_s=timeout_s)
        return timing, result if isinstance(result, Deferred) else succeed(result)


def times(timing: RequestTiming) -> tuple[float, float]:
    return timing.queue_s, timing.run_s


@pytest.fixture
def site(clock: Clock) -> Site:
    return Site(clock)


def test_an_asynchronous_transform_runs_until_its_result(site: Site) -> None:
    timing, result = site.ask("later")
    site.clock.advance(3)
    site.waiting[0].callback("done")
    site.clock.advance(3)
    assert (result_of(result), times(timing)) == (b"done", (0, 3))


def test_a_job_waits_for_its_worker_and_then_runs(site: Site) -> None:
    (first, _), (second, result) = site.ask("upper", b"1"), site.ask("upper", b"2")
    site.clock.advance(3)
    site.pool.worker_of(b"1").answer()
    site.clock.advance(4)
    site.pool.worker_of(b"2").answer()
    site.clock.advance(5)
    second.ends()
    assert (result_of(result), times(first), times(second)) == (b"2", (0, 3), (3, 4))


def test_the_steps_of_a_pipeline_add_up(site: Site) -> None:
    timing, result = site.ask("slow+upper+slow+lower")
    site.clock.advance(0)  # the others have their turn
    site.clock.advance(3)
    site.pool.worker_of(b"a").answer(b"b")
    site.clock.advance(0)
    site.clock.advance(5)
    site.pool.worker_of(b"b").answer(b"c")
    assert (result_of(result), times(timing)) == (b"c", (0, 2 + 3 + 2 + 5))


@pytest.mark.parametrize("spec", ["upper", "later"])
def test_a_request_that_times_out_has_its_times_when_it_fails(site: Site, spec: str) -> None:
    timing, result = site.ask(spec, timeout_s=2)
    failed = result.addErrback(lambda failure: (failure.type, times(timing)))
    site.clock.advance(2)
    assert outcome_of(failed) == (TransformTimeout, (0, 2))


def test_a_job_cancelled_in_the_queue_has_only_waited(site: Site) -> None:
    site.ask("upper", b"1")
    timing, result = site.ask("upper", b"2")
    site.clock.advance(3)
    result.cancel()
    error_of(result, Cancelled)
    assert times(timing) == (3, 0)


def test_the_log_of_a_death_names_the_request(site: Site, log: Log) -> None:
    _, result = site.ask("upper", request_id="7e57")
    site.pool.worker_of(b"a").end("was killed by SIGSEGV")
    error_of(result, TransformDied)
    (line,) = [line for line in log.lines if "SIGSEGV" in line]
    assert line.endswith(" (request 7e57)")
    assert [event["request_id"] for event in log if "request_id" in event] == ["7e57"]


@pytest.mark.parametrize(("request_id", "suffix"), [("7e57", " (request 7e57)"), (None, "")])
def test_the_log_of_a_failure_names_the_request(site: Site, log: Log, request_id: str | None, suffix: str) -> None:
    with pytest.raises(TransformFailed):
        site.ask("broken", request_id=request_id)
    assert log.lines == [f"transform broken of plugin xformd-verses 1.0 (verses) failed{suffix}"]
    assert log[0].get("request_id") == request_id


def test_the_log_of_a_failure_in_a_worker_names_the_step(site: Site, log: Log) -> None:
    _, result = site.ask("upper+lower", request_id="7e57")
    worker = site.pool.worker_of(b"a")
    worker.begin(1)
    worker.raised(SafeTraceback("ValueError", "Traceback:\n  there"))
    worker.refuse(TransformFailed("lower raised ValueError"))
    error_of(result, TransformFailed)
    assert log.lines == ["transform lower of plugin xformd-verses 1.0 (verses) failed (request 7e57)"]
    (event,) = log
    assert (event["request_id"], event["error"]) == ("7e57", "ValueError")
    assert event["traceback"] == "Traceback:\n  there"


def test_a_self_test_that_fails_is_logged_with_its_traceback(clock: Clock, log: Log) -> None:
    pool = Pool(clock)
    pool.pool.start()
    worker = pool.workers[0]
    worker.say_hello()
    worker.raised(SafeTraceback("ValueError", "there"))
    assert log.lines == ["the self-test upper failed"]
    assert (log[0]["error"], log[0]["traceback"]) == ("ValueError", "there")


def test_an_internal_error_has_the_id_of_the_request(clock: Clock, log: Log) -> None:
    class Runner(InlineRunner):
        def run(self, *_: object, **__: object) -> bytes:
            raise ValueError

    service = TransformService(Generation(REGISTRY, Runner(1, clock)), Limits(), clock)
    with pytest.raises(InternalError, match=r"^7e57$"):
        service.xform(parse_readable("upper"), b"", timing=RequestTiming("7e57"))
    assert log.lines == ["internal error 7e57"]
