"""The supervisor: enough workers, each tested, worn ones replaced, and a pause after starts that fail."""

import errno
import os
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import Mock

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import has_fired, result_of
from support.fakes import SELF_TEST, FakeWorker, Launcher, RecordingJob, listing_of
from support.logs import Log
from xformd import TransformDied
from xformd.limits import Limits
from xformd.runners.launcher import SLOW_AFTER_S
from xformd.runners.messages import WorkerHello
from xformd.runners.supervisor import (
    MAX_DIFFERING_WORKERS,
    MEASURE_EVERY_S,
    START_TIMEOUT_S,
    WATCH_MEMORY_EVERY_S,
    NotReady,
    Supervisor,
    WorkerSlot,
)
from xformd.spec import parse
from xformd.telemetry.status import WorkerHistory
from xformd.wire.session import Reply, Request


def run(slot: WorkerSlot, spec: str, job: RecordingJob) -> None:
    slot.group = cast(Any, job)
    slot.run([Request(slot.jobs + 2, parse(spec), b"x")], [job])


class Supervised:
    """A supervisor of fake workers."""

    def __init__(self, clock: Clock, count: int = 2, **options: Any) -> None:
        self.on_idle = Mock()
        self.launcher = Launcher()
        self.launcher.is_loading = options.pop("is_loading", False)
        self.workers = self.launcher.workers
        self.supervisor = Supervisor(
            count=count,
            launcher=cast(Any, self.launcher),
            self_test=options.pop("self_test", SELF_TEST),
            on_idle=self.on_idle,
            limits=Limits(**options),
            clock=clock,
            history=WorkerHistory(),
        )
        self.supervisor.start()

    def take(self) -> WorkerSlot:
        return self.supervisor.take()

    def take_worker(self) -> object:
        return self.take().worker

    def take_with_job(self) -> tuple[WorkerSlot, RecordingJob]:
        slot, job = self.take(), RecordingJob()
        run(slot, "upper", job)
        return slot, job


@pytest.fixture
def supervised(clock: Clock) -> Supervised:
    return Supervised(clock)


@pytest.fixture
def first(supervised: Supervised) -> FakeWorker:
    """The first worker, which is ready."""
    supervised.workers[0].be_ready()
    return supervised.workers[0]


def test_a_worker_is_idle_once_it_has_passed_its_self_test(clock: Clock, supervised: Supervised) -> None:
    first, second = supervised.workers
    assert supervised.supervisor.idle == 0
    first.say_hello()
    assert first.sent == [SELF_TEST.request]
    supervised.on_idle.assert_not_called()
    first.answer(SELF_TEST.result)
    supervised.on_idle.assert_called_once_with()
    assert supervised.take_worker() is first
    assert supervised.supervisor.idle == 0
    second.be_ready()
    (timer,) = clock.getDelayedCalls()  # no start is timed any more, only the next look at the memory of the busy
    assert timer.getTime() == WATCH_MEMORY_EVERY_S


def test_the_first_ready_worker_tells_its_plugins(supervised: Supervised) -> None:
    ready = supervised.supervisor.ready
    assert not has_fired(ready)
    supervised.workers[1].be_ready()
    supervised.workers[0].be_ready()
    assert result_of(ready) == WorkerHello(101, listing_of())


def test_a_callback_of_ready_may_stop_at_once(clock: Clock, supervised: Supervised) -> None:
    supervised.supervisor.ready.addCallback(lambda _: supervised.supervisor.stop())
    supervised.workers[0].be_ready()
    assert supervised.supervisor.idle == 0
    assert clock.getDelayedCalls() == []


def test_without_a_self_test_a_hello_is_enough(clock: Clock) -> None:
    supervised = Supervised(clock, self_test=None)
    supervised.workers[0].say_hello()
    assert supervised.take_worker() is supervised.workers[0]
    assert supervised.workers[0].sent == []


def test_a_worker_that_fails_its_self_test_gets_no_work(supervised: Supervised, log: Log) -> None:
    first, second = supervised.workers
    first.say_hello()
    first.answer(b"owl")
    assert first.killed == ["answered the self-test upper with a wrong result"]
    first.end()
    assert log.lines == [
        "a worker answered the self-test upper with a wrong result before it was ready; the next start is in 0.1 s"
    ]
    second.say_hello()
    second.refuse(TransformDied("no memory"))
    assert second.killed == ["answered the self-test upper with no memory"]
    supervised.on_idle.assert_not_called()


def test_a_worker_that_is_not_ready_in_time_is_killed(clock: Clock, supervised: Supervised, log: Log) -> None:
    first, second = supervised.workers
    second.be_ready()
    first.say_hello()
    clock.advance(START_TIMEOUT_S)
    assert first.killed == ["was killed after 60 s"]
    assert not second.killed
    first.end()
    assert "a worker was killed after 60 s before it was ready" in log.lines[0]
    clock.advance(0.1)
    assert len(supervised.workers) == 3


def test_failing_starts_back_off_until_one_is_ready(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, count=1)
    delays = []
    for _ in range(9):
        supervised.workers[-1].end("ended with exit status 1")
        (timer,) = clock.getDelayedCalls()
        delays.append(round(timer.getTime() - clock.seconds(), 3))
        clock.advance(delays[-1])
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert log.lines[0] == "a worker ended with exit status 1 before it was ready; the next start is in 0.1 s"
    supervised.workers[-1].be_ready()
    supervised.workers[-1].end()  # idle: the next starts at once, without a delay
    supervised.workers[-1].end()
    assert log.lines[-1].endswith("the next start is in 0.1 s")


def test_workers_that_fail_together_are_one_failure(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, count=9)
    for worker in [*supervised.workers]:
        worker.end()
    assert len(log.lines) == 1
    clock.advance(0.1)
    assert len(supervised.launcher.alive) == 9
    supervised.workers[-1].end()
    assert log.lines[-1].endswith("the next start is in 0.2 s")


def test_a_start_that_the_system_refuses_is_retried(
    clock: Clock, supervised: Supervised, first: FakeWorker, log: Log
) -> None:
    supervised.launcher.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    first.end()
    assert log.lines[-1] == "a worker cannot be started: Resource temporarily unavailable; the next start is in 0.1 s"
    clock.advance(0.1)
    supervised.launcher.error = OSError("odd")
    clock.advance(0.2)
    assert log.lines[-1] == "a worker cannot be started: odd; the next start is in 0.4 s"
    supervised.launcher.error = None
    clock.advance(0.4)
    assert len(supervised.launcher.alive) == 2


def test_a_delayed_start_is_not_brought_forward(clock: Clock, supervised: Supervised, first: FakeWorker) -> None:
    supervised.workers[1].end()
    first.end()
    assert supervised.launcher.alive == []
    clock.advance(0.1)
    assert len(supervised.launcher.alive) == 2


@pytest.mark.parametrize(
    ("leave", "why"),
    [
        (FakeWorker.end, "was killed by SIGSEGV"),
        (FakeWorker.disconnect, "was killed by SIGSEGV"),
        (FakeWorker.send_rubbish, "sent an invalid message"),
    ],
)
def test_an_idle_worker_that_is_gone_is_replaced_and_logged(
    supervised: Supervised, first: FakeWorker, log: Log, leave: Callable[[FakeWorker], None], why: str
) -> None:
    leave(first)
    assert supervised.supervisor.idle == 0
    if not first.has_ended:
        first.end()
    first.disconnect()
    assert len(supervised.workers) == 3
    assert log.lines == [f"worker 100 {why} while it was idle"]


def test_a_worker_that_ends_with_its_answer_gets_no_more_work(
    supervised: Supervised, first: FakeWorker, log: Log
) -> None:
    second = supervised.workers[1]
    slot, job = supervised.take_with_job()
    first.disconnect()
    first.answer(b"X")
    supervised.supervisor.release(slot)
    assert supervised.supervisor.idle == 0
    first.end()
    assert job.heard == [("answered", Reply(2, b"X"))]
    second.say_hello()
    second.disconnect()
    second.answer(SELF_TEST.result)
    assert supervised.supervisor.idle == 0
    second.end()
    assert [line.partition(";")[0] for line in log.lines] == [
        "worker 100 was killed by SIGSEGV while it was idle",
        "a worker was killed by SIGSEGV before it was ready",
    ]


def test_a_busy_worker_that_ends_tells_its_job(supervised: Supervised, first: FakeWorker) -> None:
    _, job = supervised.take_with_job()
    first.send_rubbish()
    assert job.heard == []
    first.end()
    assert job.heard == [("died", "sent an invalid message")]


def test_a_discarded_worker_is_replaced_and_forgotten(supervised: Supervised, first: FakeWorker) -> None:
    slot, job = supervised.take_with_job()
    supervised.supervisor.discard(slot, "was given up")
    supervised.supervisor.discard(slot, "again")
    assert first.killed == ["was given up"]
    assert len(supervised.workers) == 3
    first.say_hello()
    first.disconnect()
    first.end()
    assert job.heard == []
    assert len(supervised.workers) == 3


def test_a_worker_is_replaced_after_its_last_job(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, max_jobs_per_worker=2)
    worker = supervised.workers[0]
    worker.be_ready()
    for jobs in (1, 2):
        slot, _ = supervised.take_with_job()
        assert slot.jobs == jobs
        worker.answer()
        supervised.supervisor.release(slot)
    assert worker.retired == ["has done 2 jobs"]
    assert log.lines == ["worker 100 has done 2 jobs: it is replaced"]
    assert len(supervised.launcher.alive) == 2


def test_a_worker_is_replaced_when_it_has_grown(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, max_worker_growth_bytes=1_000)
    worker = supervised.workers[0]
    worker.be_ready()
    for memory_bytes, seconds in ((2_000, MEASURE_EVERY_S), (2_001, 0), (2_001, MEASURE_EVERY_S)):
        assert not worker.killed  # it has not grown, or was measured a moment ago
        clock.advance(seconds)
        worker.memory_bytes = memory_bytes
        supervised.supervisor.release(supervised.take())
    assert worker.retired == ["has grown by 1001 bytes"]
    assert log.lines == ["worker 100 has grown by 1001 bytes: it is replaced"]


def test_growth_is_noticed_however_short_the_jobs_are(clock: Clock) -> None:
    supervised = Supervised(clock, max_worker_growth_bytes=1_000)
    worker = supervised.workers[0]
    worker.be_ready()
    worker.memory_bytes = 1_000_000
    while not worker.killed:
        clock.advance(0.001)
        supervised.supervisor.release(supervised.take())
    assert clock.seconds() < 0.1


def test_what_a_transform_loads_on_its_first_run_is_no_growth(clock: Clock) -> None:
    """Else a model that is loaded on first use would have a new worker started for every request."""
    supervised = Supervised(clock, max_worker_growth_bytes=1_000)
    worker = supervised.workers[0]
    worker.be_ready()
    for names, memory_bytes in (("upper", 500_000), ("lower", 900_000), ("upper+lower", 901_000), ("upper", 901_001)):
        assert not worker.killed
        clock.advance(MEASURE_EVERY_S)
        slot = supervised.take()
        run(slot, names, RecordingJob())
        worker.memory_bytes = memory_bytes
        worker.answer()
        supervised.supervisor.release(slot)
    assert worker.retired == ["has grown by 1001 bytes"]


def test_a_job_that_uses_too_much_memory_by_any_means_is_killed(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, worker_memory_bytes=5_000)
    worker = supervised.workers[0]
    worker.be_ready()
    _, job = supervised.take_with_job()
    worker.memory_bytes = 6_000  # 1,000 more than the limit, and 1,000 were there before
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert not worker.killed
    worker.memory_bytes += 1
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert worker.killed == ["used 5001 bytes of memory; worker_memory_bytes is 5000"]
    worker.end()
    assert job.heard == [("died", "used 5001 bytes of memory; worker_memory_bytes is 5000")]


def test_memory_is_looked_at_only_while_a_worker_is_busy(clock: Clock, supervised: Supervised) -> None:
    for worker in supervised.workers:
        worker.be_ready()
    assert clock.getDelayedCalls() == []
    slots = [supervised.take() for _ in range(2)]
    assert len(clock.getDelayedCalls()) == 1
    supervised.supervisor.release(slots[0])
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert len(clock.getDelayedCalls()) == 1
    supervised.supervisor.release(slots[1])
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert clock.getDelayedCalls() == []


def test_stopping_waits_for_workers_that_are_ending(clock: Clock, supervised: Supervised, first: FakeWorker) -> None:
    supervised.supervisor.discard(supervised.take(), "is worn")
    stopped = supervised.supervisor.stop()
    for worker in supervised.workers[1:]:
        worker.end()
    assert not has_fired(stopped)
    first.end()
    assert has_fired(stopped)
    assert len(supervised.workers) == 3
    assert clock.getDelayedCalls() == []


def test_three_failed_starts_are_reported_and_then_the_first_worker_that_is_ready(
    clock: Clock, supervised: Supervised
) -> None:
    failed = supervised.supervisor.ready
    for _ in range(3):
        assert not has_fired(failed)
        supervised.workers[-1].end("ended with exit status 1")
        clock.advance(1)
    assert result_of(failed) == NotReady("a worker ended with exit status 1 before it was ready")
    ready = supervised.supervisor.ready
    supervised.workers[-1].be_ready()
    assert result_of(ready) == WorkerHello(supervised.workers[-1].pid or 0, supervised.workers[-1].listing)
    assert supervised.supervisor.idle == 1


def test_stopping_ends_idle_workers_in_order_and_the_others_at_once(clock: Clock) -> None:
    supervised = Supervised(clock, count=3)
    for worker in supervised.workers[:2]:
        worker.be_ready()
    _, job = supervised.take_with_job()  # the second runs it
    stopped = supervised.supervisor.stop()
    assert [bool(worker.killed) for worker in supervised.workers] == [True] * 3
    assert [worker.retired for worker in supervised.workers] == [
        ["the server is stopping"],
        [],
        ["the server is stopping"],
    ]
    supervised.launcher.end_all()
    assert has_fired(stopped)
    assert job.heard == []  # the pool has answered it


def test_stopping_waits_for_what_starts_the_workers_after_the_last_of_them(supervised: Supervised) -> None:
    ended: Deferred[None] = Deferred()
    supervised.launcher.stop = Mock(return_value=ended)  # type: ignore[method-assign]
    stopped = supervised.supervisor.stop()
    assert not supervised.launcher.stop.called
    supervised.launcher.end_all()
    assert supervised.launcher.stop.called
    assert not has_fired(stopped)
    ended.callback(None)
    assert has_fired(stopped)


def test_fewer_workers_are_kept_and_the_others_end_in_order(supervised: Supervised) -> None:
    for worker in supervised.workers:
        worker.be_ready()
    supervised.supervisor.resize(1)
    (kept,) = supervised.launcher.alive
    (gone,) = (worker for worker in supervised.workers if worker is not kept)
    assert gone.retired == ["is not needed any more"]
    assert supervised.take_worker() is kept


# While plugins are loaded.


def test_workers_are_started_once_the_plugins_are_loaded(clock: Clock) -> None:
    supervised = Supervised(clock, is_loading=True)
    clock.advance(START_TIMEOUT_S)
    assert (supervised.workers, clock.getDelayedCalls()) == ([], [])
    supervised.launcher.is_loading = False
    supervised.supervisor.can_launch()
    assert len(supervised.workers) == 2
    supervised.supervisor.can_launch()
    assert len(supervised.workers) == 2


def test_a_loader_that_is_ready_again_does_not_bring_a_delayed_start_forward(
    clock: Clock, supervised: Supervised, log: Log
) -> None:
    supervised.supervisor.cannot_launch("the fork server was killed by SIGKILL")
    assert log.lines == ["the fork server was killed by SIGKILL; the next start is in 0.1 s"]
    for worker in [*supervised.workers]:
        worker.end()  # together with it: that is one failure
    supervised.supervisor.can_launch()
    assert supervised.launcher.alive == []
    clock.advance(0.1)
    assert len(supervised.launcher.alive) == 2
    assert len(log.lines) == 1


def test_a_plugin_in_whose_import_a_worker_ends_is_left_out(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, count=1)
    (first,) = supervised.workers
    first.load("x-owl", "owl")
    first.load("x-cat", "cat")
    supervised.launcher.is_loading = True  # anew
    first.end("was killed by SIGABRT")
    assert supervised.launcher.left_out == {("x-cat", "cat"): "was killed by SIGABRT when it was imported in a worker"}
    assert log.lines == []  # the launcher says it, and starts again
    assert clock.getDelayedCalls() == []


def test_a_plugin_that_another_worker_is_importing_then_is_not_left_out_too(
    clock: Clock, supervised: Supervised, log: Log
) -> None:
    """All workers end with the fork server, which starts again without the first."""
    first, second = supervised.workers
    second.load("x-cat", "cat")
    first.load("x-owl", "owl")
    supervised.launcher.is_loading = True
    first.end()
    second.end("has ended together with its reaper")
    assert [*supervised.launcher.left_out] == [("x-owl", "owl")]
    supervised.launcher.is_loading = False
    supervised.supervisor.can_launch()
    assert len(supervised.launcher.alive) == 2
    assert log.lines == []


def test_a_plugin_that_fails_in_a_replacement_is_left_out_only_once_no_other_worker_is_left(
    clock: Clock, supervised: Supervised, first: FakeWorker, log: Log
) -> None:
    """All workers end with the fork server, and the transforms of their jobs would be blamed."""
    _, job = supervised.take_with_job()
    first.listing = listing_of(owl="1")
    supervised.workers[1].load("x-owl", "owl")
    supervised.workers[1].end()
    assert (supervised.launcher.left_out, job.heard, first.killed) == ({}, [], [])
    assert log.lines == ["a worker was killed by SIGSEGV when it imported x-owl (owl); the next start is in 0.1 s"]
    first.end()
    clock.advance(0.1)
    for worker in supervised.launcher.alive[:1]:
        worker.load("x-owl", "owl")
        worker.end()
    assert [*supervised.launcher.left_out] == [("x-owl", "owl")]


def test_without_a_plugin_that_was_left_out_workers_are_not_taken_for_others(clock: Clock, log: Log) -> None:
    supervised = Supervised(clock, count=1)
    supervised.workers[0].listing = listing_of(owl="1", cat="1")
    supervised.workers[0].be_ready()
    supervised.workers[0].end()
    log.clear()
    supervised.workers[1].load("x-owl", "owl")
    supervised.workers[1].end()
    supervised.supervisor.can_launch()
    supervised.workers[-1].listing = listing_of(cat="1")
    supervised.workers[-1].be_ready()
    assert supervised.take_worker() is supervised.workers[-1]
    assert log.lines == []


def test_a_plugin_in_whose_warm_up_a_worker_ends_is_left_out(clock: Clock) -> None:
    supervised = Supervised(clock, count=1)
    (first,) = supervised.workers
    first.load("x-cat", "cat")
    first.warm_up("x-owl", "owl")
    supervised.launcher.is_loading = True
    first.end("was killed by SIGABRT")
    assert supervised.launcher.left_out == {("x-owl", "owl"): "was killed by SIGABRT when it was warmed up in a worker"}


def test_a_warm_up_that_fails_in_a_replacement_is_tried_again(
    clock: Clock, supervised: Supervised, first: FakeWorker, log: Log
) -> None:
    del first  # it is ready
    supervised.workers[1].warm_up("x-owl", "owl")
    clock.advance(START_TIMEOUT_S)
    supervised.workers[1].end(supervised.workers[1].killed[0])
    assert supervised.launcher.left_out == {}
    assert log.lines == ["a worker was killed after 60 s when it warmed up x-owl (owl); the next start is in 0.1 s"]


def test_what_holds_up_the_first_workers_is_named_and_what_holds_up_replacements_is_not(clock: Clock) -> None:
    supervised = Supervised(clock, self_test=None)
    first, second = supervised.workers
    first.load("x-owl", "owl")
    clock.advance(SLOW_AFTER_S - 0.1)
    first.warm_up("x-cat", "cat")
    clock.advance(SLOW_AFTER_S)
    assert supervised.launcher.slow == [(("x-cat", "cat"), "warmed up")]
    first.say_hello()
    second.warm_up("x-owl", "owl")
    clock.advance(SLOW_AFTER_S)
    assert len(supervised.launcher.slow) == 1


def test_a_plugin_that_has_asked_for_time_once_has_it_in_every_worker(clock: Clock) -> None:
    supervised = Supervised(clock, count=2)
    first, second = supervised.workers
    first.load("x-owl", "owl")
    first.ask_for_time(300)
    second.warm_up("x-owl", "owl")
    clock.advance(299)
    assert not second.killed
    clock.advance(1)
    assert second.killed == ["was killed after 300 s"]


def test_a_worker_that_has_loaded_its_plugins_blames_none(clock: Clock, supervised: Supervised, log: Log) -> None:
    first = supervised.workers[0]
    first.load("x-owl", "owl")
    first.say_hello()
    first.end()
    assert supervised.launcher.left_out == {}
    assert log.lines == ["a worker was killed by SIGSEGV before it was ready; the next start is in 0.1 s"]


@pytest.mark.parametrize(
    ("setting_s", "asked_s", "expected_s"), [(90, None, 90), (5, None, START_TIMEOUT_S), (5, 7.5, 7.5), (5, 300, 300)]
)
def test_a_plugin_that_a_worker_imports_has_its_own_time(
    clock: Clock, setting_s: float, asked_s: float | None, expected_s: float
) -> None:
    supervised = Supervised(clock, count=1, plugin_load_timeout_s=setting_s)
    (worker,) = supervised.workers
    clock.advance(4)
    worker.load("x-owl", "owl")
    if asked_s is not None:
        worker.ask_for_time(asked_s)
    clock.advance(expected_s - 0.1)
    assert not worker.killed
    clock.advance(0.1)
    assert worker.killed == [f"was killed after {expected_s:g} s"]
    worker.end()
    assert supervised.launcher.left_out == {
        ("x-owl", "owl"): f"was killed after {expected_s:g} s when it was imported in a worker"
    }


def test_news_of_a_forgotten_worker_are_ignored(clock: Clock, supervised: Supervised) -> None:
    first = supervised.workers[0]
    supervised.supervisor.stop()
    first.load("x-owl", "owl")
    first.end()
    assert supervised.launcher.left_out == {}
    assert clock.getDelayedCalls() == []


# Workers that differ.


def test_workers_whose_plugins_differ_are_killed_a_few_times(clock: Clock, supervised: Supervised, log: Log) -> None:
    first, second = supervised.workers
    for worker in (first, second):
        worker.listing = listing_of(owl="1", cat="1")
        worker.be_ready()
    second.end()
    for _ in range(MAX_DIFFERING_WORKERS):
        worker = supervised.workers[-1]
        worker.listing = listing_of(owl="1")
        worker.say_hello()
        assert worker.killed == ["has other plugins than those before (it lacks cat (x-cat 1))"]
        worker.end()
        clock.advance(10)
    last = supervised.workers[-1]
    last.listing = listing_of(owl="1")
    last.be_ready()
    assert log.lines[-1] == "a worker has other plugins (it lacks cat (x-cat 1)); send SIGHUP to reload them all"
    assert {supervised.take_worker() for _ in range(2)} == {first, last}
    assert supervised.launcher.started_again == []  # the first would end with what it was forked from


def test_if_no_worker_is_left_the_plugins_are_loaded_again_when_they_differ(clock: Clock) -> None:
    """The fork server was started again while somebody installed."""
    supervised = Supervised(clock, count=1)
    (worker,) = supervised.workers
    worker.listing = listing_of(owl="1", cat="1")
    worker.be_ready()
    supervised.supervisor.cannot_launch("the fork server was killed by SIGKILL")
    worker.end()
    clock.advance(0.1)
    worker = supervised.workers[-1]
    worker.listing = listing_of(owl="1")
    worker.say_hello()
    assert worker.killed == ["has other plugins than those before (it lacks cat (x-cat 1))"]
    assert supervised.launcher.started_again == ["workers have other plugins than those before"]
