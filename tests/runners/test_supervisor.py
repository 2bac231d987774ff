"""The supervisor: enough workers, each proven, worn ones replaced, and a pause after starts that fail."""

import errno
import os
from typing import Any

import pytest
from twisted.internet.task import Clock

from support.deferreds import has_fired, result_of
from support.fakes import SELF_TEST, FakeWorker, Launcher
from support.logs import Log
from xformd import TransformDied
from xformd.limits import Limits
from xformd.runners.messages import WorkerHello
from xformd.runners.slot import WorkerSlot
from xformd.runners.supervisor import MAX_STRANGERS, MEASURE_EVERY_S, START_TIMEOUT_S, NotReady, Supervisor
from xformd.telemetry.status import WorkerHistory
from xformd.wire.session import Refusal, Reply, Request


class User:
    """Takes workers when the test says so, and notes what it hears."""

    def __init__(self) -> None:
        self.idle = 0
        self.heard: list[tuple[Any, ...]] = []

    def worker_idle(self) -> None:
        self.idle += 1

    def worker_began(self, slot: WorkerSlot, step: int) -> None:
        self.heard.append(("began", slot, step))

    def worker_answered(self, slot: WorkerSlot, answer: Reply | Refusal) -> None:
        self.heard.append(("answered", slot, answer))

    def worker_died(self, slot: WorkerSlot, reason: str) -> None:
        self.heard.append(("died", slot, reason))


class Staff:
    """A supervisor of fake workers."""

    def __init__(self, clock: Clock, count: int = 2, **options: Any) -> None:
        self.user = User()
        self.launcher = Launcher()
        self.history = WorkerHistory()
        self.supervisor = Supervisor(
            count=count,
            launch=self.launcher,
            self_test=options.pop("self_test", SELF_TEST),
            events=self.user,
            limits=Limits(**options),
            clock=clock,
            history=self.history,
        )
        self.supervisor.start()

    @property
    def workers(self) -> list[FakeWorker]:
        return self.launcher.workers

    def take(self) -> WorkerSlot:
        slot = self.supervisor.take()
        assert slot is not None
        return slot


@pytest.fixture
def staff(clock: Clock) -> Staff:
    return Staff(clock)


def test_a_worker_is_idle_once_it_has_proved_itself(clock: Clock, staff: Staff) -> None:
    first, second = staff.workers
    assert staff.supervisor.take() is None
    first.report()
    assert first.sent == [SELF_TEST.request]
    assert staff.user.idle == 0
    first.answer(SELF_TEST.result)
    assert staff.user.idle == 1
    assert staff.take().worker is first
    assert staff.supervisor.take() is None
    second.be_ready()
    assert clock.getDelayedCalls() == []


def test_the_first_that_is_ready_tells_what_there_is(staff: Staff) -> None:
    assert not has_fired(staff.supervisor.ready)
    staff.workers[1].be_ready()
    staff.workers[0].be_ready()
    assert result_of(staff.supervisor.ready) == WorkerHello(101, {})


def test_who_hears_that_the_first_is_ready_may_stop_at_once(clock: Clock, staff: Staff) -> None:
    staff.supervisor.ready.addCallback(lambda _: staff.supervisor.stop())
    staff.workers[0].be_ready()
    assert staff.supervisor.take() is None
    assert clock.getDelayedCalls() == []


def test_without_an_example_a_report_will_do(clock: Clock) -> None:
    staff = Staff(clock, self_test=None)
    staff.workers[0].report()
    assert staff.take().worker is staff.workers[0]
    assert staff.workers[0].sent == []


def test_a_worker_whose_example_comes_out_wrong_gets_no_work(clock: Clock, staff: Staff, log: Log) -> None:
    first, second = staff.workers
    first.report()
    first.answer(b"owl")
    assert first.killed == ["answered the example upper with something else"]
    first.end()
    assert log.lines == [
        "a worker answered the example upper with something else before it was ready; the next start is in 0.1 s"
    ]
    second.report()
    second.refuse(TransformDied("no memory"))
    assert second.killed == ["answered the example upper with no memory"]
    assert staff.user.idle == 0


def test_a_worker_that_answers_before_it_is_asked_is_not_ready(staff: Staff) -> None:
    staff.workers[0].answer(b"owl")
    assert staff.workers[0].killed


def test_a_worker_that_is_not_ready_in_time_is_given_up(clock: Clock, staff: Staff, log: Log) -> None:
    first, second = staff.workers
    second.be_ready()
    first.report()
    clock.advance(START_TIMEOUT_S)
    assert first.killed == ["was not ready after 60 s"]
    assert not second.killed
    first.end()
    assert "a worker was not ready after 60 s before it was ready" in log.lines[0]
    clock.advance(0.1)
    assert len(staff.workers) == 3


def test_starts_that_fail_come_further_and_further_apart_until_one_is_ready(clock: Clock, log: Log) -> None:
    staff = Staff(clock, count=1)
    delays = []
    for _ in range(9):
        staff.workers[-1].end("ended with exit status 1")
        (timer,) = clock.getDelayedCalls()
        delays.append(round(timer.getTime() - clock.seconds(), 3))
        clock.advance(delays[-1])
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert log.lines[0] == ("a worker ended with exit status 1 before it was ready; the next start is in 0.1 s")
    staff.workers[-1].be_ready()
    staff.workers[-1].end()  # idle: the next starts at once, and what was is forgotten
    staff.workers[-1].end()
    assert log.lines[-1].endswith("the next start is in 0.1 s")


def test_workers_that_fail_together_count_as_one_failure(clock: Clock, log: Log) -> None:
    staff = Staff(clock, count=9)
    for worker in [*staff.workers]:
        worker.end()
    assert len(log.lines) == 1
    clock.advance(0.1)
    assert len(staff.launcher.alive) == 9
    staff.workers[-1].end()
    assert log.lines[-1].endswith("the next start is in 0.2 s")


def test_a_start_that_the_system_refuses_is_tried_again(clock: Clock, log: Log) -> None:
    staff = Staff(clock, count=2)
    staff.workers[0].be_ready()
    staff.launcher.error = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    staff.workers[0].end()
    assert log.lines[-1] == ("a worker cannot be started: Resource temporarily unavailable; the next start is in 0.1 s")
    clock.advance(0.1)
    staff.launcher.error = OSError("odd")
    clock.advance(0.2)
    assert log.lines[-1] == "a worker cannot be started: odd; the next start is in 0.4 s"
    staff.launcher.error = None
    clock.advance(0.4)
    assert len(staff.launcher.alive) == 2


def test_a_start_that_is_to_come_is_not_brought_forward(clock: Clock, staff: Staff) -> None:
    first, second = staff.workers
    first.be_ready()
    second.end()
    first.end()
    assert staff.launcher.alive == []
    clock.advance(0.1)
    assert len(staff.launcher.alive) == 2


def test_an_idle_worker_that_ends_is_replaced_at_once_and_logged(clock: Clock, staff: Staff, log: Log) -> None:
    first, _ = staff.workers
    first.be_ready()
    first.end("was killed by SIGKILL")
    assert staff.supervisor.take() is None
    assert len(staff.workers) == 3
    assert log.lines == ["worker 100 was killed by SIGKILL while it had nothing to do"]


def test_an_idle_worker_that_hangs_up_gets_no_more_work(staff: Staff, log: Log) -> None:
    first, second = staff.workers
    first.be_ready()
    first.on_sighup()
    second.on_sighup()
    assert staff.supervisor.take() is None
    first.end()
    assert len(log.lines) == 1
    first.on_sighup()


@pytest.mark.parametrize("request_id", [0, 1, 77])
def test_an_idle_worker_that_answers_gets_no_more_work(staff: Staff, request_id: int) -> None:
    first, _ = staff.workers
    first.be_ready()
    first.answer(b"x", request_id)
    assert first.killed == ["answered what nobody had asked"]
    assert staff.supervisor.take() is None
    first.end()
    assert staff.user.heard == []


def test_what_a_busy_worker_tells_is_passed_on(staff: Staff) -> None:
    first, _ = staff.workers
    first.be_ready()
    slot = staff.take()
    first.send(Request(slot.request_id, SELF_TEST.request.spec, b"x"))
    first.begin(1)
    first.answer(b"X")
    assert staff.user.heard == [("began", slot, 1), ("answered", slot, Reply(2, b"X"))]


def test_a_busy_worker_that_answers_something_else_is_ended_and_so_is_its_job(staff: Staff) -> None:
    first, _ = staff.workers
    first.be_ready()
    slot = staff.take()
    first.answer(b"X", 1)  # to the example, once more
    assert first.killed
    assert staff.user.heard == []
    first.end()
    assert staff.user.heard == [("died", slot, "answered what nobody had asked")]


def test_what_comes_from_a_worker_that_was_discarded_means_nothing(clock: Clock, staff: Staff) -> None:
    first, _ = staff.workers
    first.be_ready()
    slot = staff.take()
    staff.supervisor.discard(slot, "was given up")
    staff.supervisor.discard(slot, "again")
    assert first.killed == ["was given up"]
    assert len(staff.workers) == 3
    first.report()
    first.begin(1)
    first.answer(b"x", 1)
    first.on_sighup()
    first.end()
    assert staff.user.heard == []
    assert len(staff.workers) == 3


def test_a_worker_makes_room_after_so_many_jobs(clock: Clock) -> None:
    staff = Staff(clock, max_jobs_per_worker=2)
    worker = staff.workers[0]
    worker.be_ready()
    for jobs in (1, 2):
        slot = staff.take()
        assert slot.jobs == jobs
        staff.supervisor.release(slot)
    assert worker.killed == ["has done 2 jobs"]
    assert len(staff.launcher.alive) == 2


def test_a_worker_makes_room_when_it_has_grown(clock: Clock) -> None:
    staff = Staff(clock, max_worker_growth_bytes=1_000)
    worker = staff.workers[0]
    worker.be_ready()
    clock.advance(MEASURE_EVERY_S)
    worker.memory_bytes = 2_000
    staff.supervisor.release(staff.take())
    assert not worker.killed
    worker.memory_bytes = 2_001
    staff.supervisor.release(staff.take())
    assert not worker.killed  # it was looked at a moment ago
    clock.advance(MEASURE_EVERY_S)
    staff.supervisor.release(staff.take())
    assert worker.killed == ["has grown by 1001 bytes"]


def test_growth_is_noticed_soon_however_much_a_worker_has_to_do(clock: Clock) -> None:
    staff = Staff(clock, max_worker_growth_bytes=1_000)
    worker = staff.workers[0]
    worker.be_ready()
    worker.memory_bytes = 1_000_000
    while not worker.killed:
        clock.advance(0.001)
        staff.supervisor.release(staff.take())
    assert clock.seconds() < 0.1


def test_stopping_waits_for_those_that_are_ending_already(clock: Clock, staff: Staff) -> None:
    first, second = staff.workers
    first.be_ready()
    staff.supervisor.discard(staff.take(), "is worn")
    stopped = staff.supervisor.stop()
    third = staff.workers[2]
    second.end()
    third.end()
    assert not has_fired(stopped)
    first.end()
    assert has_fired(stopped)
    assert len(staff.workers) == 3
    assert clock.getDelayedCalls() == []


def test_after_three_failed_starts_it_says_that_none_gets_ready_and_goes_on(clock: Clock, staff: Staff) -> None:
    for _ in range(3):
        assert not has_fired(staff.supervisor.ready)
        staff.workers[-1].end("ended with exit status 1")
        clock.advance(1)
    assert result_of(staff.supervisor.ready) == NotReady("a worker ended with exit status 1 before it was ready")
    staff.workers[-1].be_ready()
    assert staff.supervisor.take() is not None


def listing_of(*versions: str) -> dict[str, Any]:
    return {"transforms": [{"name": name, "distribution": name, "version": "1"} for name in versions]}


def test_a_worker_with_other_plugins_than_the_first_is_not_taken_while_they_may_be_being_installed(
    clock: Clock, staff: Staff, log: Log
) -> None:
    first, second = staff.workers
    for worker in (first, second):
        worker.listed = listing_of("owl", "cat")
        worker.be_ready()
    second.end()
    for _ in range(MAX_STRANGERS):
        stranger = staff.workers[-1]
        stranger.listed = listing_of("owl")
        stranger.report()
        assert stranger.killed == ["has other plugins than those before (cat from nowhere, not from cat 1)"]
        stranger.end()
        clock.advance(10)
    last = staff.workers[-1]
    last.listed = listing_of("owl")
    last.be_ready()
    assert log.lines[-1] == "a worker has cat from nowhere, not from cat 1; SIGHUP makes all alike"
    assert {staff.take().worker for _ in range(2)} == {first, last}
