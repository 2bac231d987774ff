"""Jobs on asyncio: many in one worker, which nothing but the job to blame may cost the others."""

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import Asker, FakeWorker, Pool
from support.logs import Log
from xformd import Cancelled, ShuttingDown, TransformDied, TransformTimeout, Unavailable
from xformd.runners import Caller
from xformd.runners.groups import CANCEL_S, IDLE_S, SUSPECT_S
from xformd.runners.policy import (
    JOBS_FOR_ANOTHER_CORE,
    MAX_DEATHS,
    MAX_WORKERS_ON_ASYNCIO,
    max_workers_on_asyncio,
    workers_on_asyncio,
)
from xformd.runners.supervisor import WATCH_MEMORY_EVERY_S

SEGFAULT = "was killed by SIGSEGV"


@pytest.fixture
def pool(clock: Clock) -> Pool:
    """A pool of one worker, and its spare."""
    return Pool(clock).start()


def begin(pool: Pool, spec: str = "look-up") -> tuple[FakeWorker, list[Deferred[bytes]]]:
    """Have a worker run three jobs of different shares; return it, and the results."""
    poems = (b"1", b"2", b"3") if spec == "look-up" else (b"1", b"2")
    results = [pool.run(spec, poem, Caller(poem.decode())) for poem in poems]
    return pool.worker_of(b"1"), results


def end_with(worker: FakeWorker, poem: bytes | None = None, held_s: float = 0.0) -> None:
    """End a worker while it runs the code of a job."""
    ids = [request.id for request in worker.sent if request.poem == poem]
    worker.last_step = (ids[0] if ids else 0), held_s
    worker.end()


# How many workers, and which.


@pytest.mark.parametrize(
    ("jobs", "concurrency", "workers"),
    [
        *((0, 100, 0), (1, 100, 1), (8, 100, 1), (9, 100, 2), (100, 100, 2), (200, 100, 2), (201, 100, 3)),
        *((1_000, 100, 10), (3, 1, 3), (40, 4, 10)),
    ],
)
def test_there_are_workers_for_all_jobs_and_for_every_core(jobs: int, concurrency: int, workers: int) -> None:
    assert workers_on_asyncio(jobs, concurrency, cores=2) == workers


def test_many_cores_have_as_many_workers_and_few_have_several() -> None:
    assert [max_workers_on_asyncio(cores) for cores in (1, 2, 4, 64)] == [8, 16, MAX_WORKERS_ON_ASYNCIO, 64]


def test_jobs_share_a_worker_and_leave_those_of_others_free(pool: Pool) -> None:
    _, results = begin(pool)
    other = pool.run("upper", b"other")
    assert pool.groups() == [[b"1", b"2", b"3"], [b"other"]]
    pool.worker_of(b"other").answer()
    assert result_of(other) == b"other"
    pool.worker_of(b"2").answer(of=b"2")
    assert [*map(has_fired, results)] == [False, True, False]


def test_the_workers_of_other_jobs_are_not_taken(clock: Clock) -> None:
    pool = Pool(clock, size=2).start()
    pool.run_all("call", *(b"%d" % number for number in range(10)))
    pool.run_all("upper", b"a", b"b", b"c")
    assert {b"a", b"b"} < {poem for group in pool.groups() for poem in group}
    pool.make_ready()
    assert pool.groups() == [[b"0", b"1"], [b"2", b"3"], [b"4", b"5"], [b"6", b"7"], [b"8", b"9"], [b"a"], [b"b"]]


def test_a_worker_without_room_holds_up_neither_other_transforms_nor_other_jobs(pool: Pool) -> None:
    caller = Caller("peer")
    pool.launcher.is_loading = True  # no more workers can be had
    waiting = [pool.run("call", b"%d" % number, caller) for number in range(5)]
    other = pool.run("upper", b"other", caller)
    pool.worker_of(b"other").answer()
    assert result_of(other) == b"other"
    assert pool.groups() == [[b"0", b"1"]]
    pool.worker_of(b"0").answer(of=b"0")
    assert pool.groups() == [[b"1", b"2"]]
    assert not any(map(has_fired, waiting[1:]))


def test_jobs_are_spread_when_there_are_several_for_each_core(clock: Clock) -> None:
    pool = Pool(clock, size=2).start()
    jobs = [pool.run("patiently", b"%d" % number) for number in range(JOBS_FOR_ANOTHER_CORE)]
    pool.make_ready()
    assert [len(group) for group in pool.groups()] == [JOBS_FOR_ANOTHER_CORE]
    jobs += [pool.run("patiently", b"later %d" % number) for number in range(4)]
    assert sorted(len(group) for group in pool.groups()) == [4, JOBS_FOR_ANOTHER_CORE]
    assert not any(map(has_fired, jobs))


def test_shares_take_turns(clock: Clock, pool: Pool) -> None:
    pool.launcher.is_loading = True
    for number in range(20):
        pool.run("call", b"%d" % number, Caller("greedy"))
    modest = pool.run("call", b"modest", Caller("modest"))
    clock.advance(1)
    pool.worker_of(b"0").answer(of=b"0")
    pool.worker_of(b"modest").answer(of=b"modest")
    assert result_of(modest) == b"modest"


def test_a_reader_without_room_has_no_job(pool: Pool) -> None:
    reader = Asker(takes_results=False)
    result = pool.run("call", b"1", reader.caller)
    assert pool.groups() == []
    reader.takes_results = True
    pool.pool.has_room(reader)
    pool.worker_of(b"1").answer()
    assert result_of(result) == b"1"


def test_an_idle_worker_ends_after_a_while_and_the_pool_is_as_before(clock: Clock, pool: Pool) -> None:
    worker, _ = begin(pool)
    pool.make_ready()
    assert len(pool.launcher.alive) == 3
    for poem in (b"1", b"2", b"3"):
        worker.answer(of=poem)
    assert pool.pool.supervisor.states["idle"] == 3
    clock.advance(IDLE_S)
    clock.advance(IDLE_S)
    assert worker.retired == ["has had nothing to do"]
    worker.end()
    assert len(pool.launcher.alive) == 2
    clock.advance(1)
    assert clock.getDelayedCalls() == []


def test_an_idle_worker_makes_room_for_one_of_another_transform(clock: Clock, pool: Pool) -> None:
    many = pool.run_all("call", *(b"%d" % number for number in range(40)))
    for _ in range(20):
        pool.make_ready()
    assert len(pool.launcher.alive) == 1 + 1 + max_workers_on_asyncio(1)
    for number in range(40):
        if not has_fired(many[number]):
            pool.worker_of(b"%d" % number).answer(of=b"%d" % number)
    pool.run_all("look-up", *(b"l%d" % number for number in range(12)))
    for _ in range(20):
        pool.make_ready()
    assert sorted(len(group) for group in pool.groups()) == [4, 4, 4]
    assert len(pool.launcher.alive) <= 1 + 1 + 1 + max_workers_on_asyncio(1)


def test_a_worn_worker_ends_with_its_last_job_and_no_request_is_lost(clock: Clock) -> None:
    pool = Pool(clock, max_jobs_per_worker=3).start()
    worker, results = begin(pool)
    pool.make_ready()
    worker.answer(of=b"1")
    later = pool.run("look-up", b"later")
    assert pool.worker_of(b"later") is not worker
    worker.answer(of=b"2")
    assert worker.retired == []
    worker.answer(of=b"3")
    assert worker.retired == ["has done 3 jobs"]
    pool.worker_of(b"later").answer()
    assert all(map(has_fired, (*results, later)))


def test_where_there_are_as_many_workers_as_there_may_be_a_worn_one_is_replaced_before_it_ends(clock: Clock) -> None:
    pool = Pool(clock, max_jobs_per_worker=5).start()
    pool.run_all("call", *(b"c%d" % number for number in range(40)))
    for _ in range(20):
        pool.make_ready()
    pool.run("look-up", b"1")
    pool.make_ready()
    worker = pool.worker_of(b"1")
    for poem in (b"2", b"3", b"4", b"5"):
        pool.run("look-up", poem)
        worker.answer(of=poem)
    later = pool.run("look-up", b"later")
    pool.make_ready()
    pool.worker_of(b"later").answer(of=b"later")
    assert result_of(later) == b"later"
    assert worker.running


def test_a_person_who_runs_it_at_home_has_one_worker(clock: Clock) -> None:
    pool = Pool(clock, spares=0).start()
    result = pool.run("call", b"1")
    pool.worker_of(b"1").answer()
    assert result_of(result) == b"1"
    assert len(pool.workers) == 1
    other = pool.run("upper", b"2")  # not on asyncio: that needs another one
    pool.make_ready()
    pool.worker_of(b"2").answer()
    assert result_of(other) == b"2"
    assert len(pool.workers) == 2


# What is cancelled.


def test_what_heeds_that_it_is_cancelled_costs_nothing(clock: Clock, pool: Pool, log: Log) -> None:
    worker, results = begin(pool)
    results[1].cancel()
    error_of(results[1], CancelledError)
    (cancelled,) = (request.id for request in worker.sent if request.poem == b"2")
    assert worker.cancelled == [cancelled]
    worker.refuse(Cancelled("it was cancelled"), of=b"2")
    clock.pump([SUSPECT_S, CANCEL_S])
    assert worker.killed == []
    worker.answer(of=b"1")
    assert result_of(results[0]) == b"1"
    assert log.lines == []


def test_its_own_time_limit_ends_a_job_and_no_other(clock: Clock, pool: Pool) -> None:
    first = pool.run("look-up", b"1")
    clock.advance(1)
    second = pool.run("look-up", b"2")
    clock.advance(1)
    assert error_of(first, TransformTimeout).message == "look-up took longer than its 2 s"
    worker = pool.worker_of(b"2")
    assert len(worker.cancelled) == 1
    worker.answer(of=b"2")
    assert result_of(second) == b"2"


def test_what_goes_on_counts_as_running_until_it_ends(clock: Clock, pool: Pool) -> None:
    pool.launcher.is_loading = True
    first, second, third = pool.run_all("call", b"1", b"2", b"3")
    first.cancel()
    error_of(first, CancelledError)
    assert pool.groups() == [[b"1", b"2"]]
    pool.worker_of(b"1").answer(of=b"1")
    assert pool.groups() == [[b"2", b"3"]]
    assert not has_fired(second)
    assert not has_fired(third)


@pytest.mark.parametrize("spec", ["look-up", "call"])
def test_what_goes_on_costs_the_worker_and_deterministic_companions_run_again(
    clock: Clock, pool: Pool, log: Log, spec: str
) -> None:
    worker, (first, *others) = begin(pool, spec)
    first.cancel()
    error_of(first, CancelledError)
    clock.pump([SUSPECT_S, CANCEL_S])
    assert worker.killed == [f"{spec} went on after it was cancelled"]
    end_with(worker, b"2", held_s=0.01)  # which was on its way
    pool.make_ready()
    assert log.lines[0].endswith(f"{spec} went on for 1 s after it was cancelled")
    if spec == "look-up":
        assert pool.groups() == [[b"2", b"3"]]  # together: they are innocent
        pool.worker_of(b"2").answer(of=b"2")
        assert result_of(others[0]) == b"2"
    else:
        message = "call went on for 1 s after it was cancelled, because of another request"
        assert error_of(others[0], TransformDied).message == message


def test_a_worker_that_may_be_blocked_gets_no_more_jobs_until_it_proves_otherwise(clock: Clock, pool: Pool) -> None:
    worker, (first, *_) = begin(pool)
    pool.make_ready()
    first.cancel()
    error_of(first, CancelledError)
    pool.run("look-up", b"4")
    assert pool.worker_of(b"4") is worker
    worker.answer(of=b"4")
    clock.advance(SUSPECT_S)
    pool.run("look-up", b"5")
    assert pool.worker_of(b"5") is not worker
    worker.answer(of=b"1")
    pool.run("look-up", b"6")
    assert pool.worker_of(b"6") is not worker  # which has more
    pool.run("look-up", b"7")
    assert pool.worker_of(b"7") is worker
    clock.pump([CANCEL_S])
    assert worker.killed == []


def test_what_blocks_the_loop_is_to_blame_and_not_what_was_cancelled(clock: Clock, pool: Pool, log: Log) -> None:
    worker, (first, second, third) = begin(pool)
    first.cancel()
    error_of(first, CancelledError)
    clock.pump([SUSPECT_S, CANCEL_S])
    end_with(worker, b"2", held_s=1.25)
    advice = "await what takes time, or run it with asyncio.to_thread"
    message = f"look-up blocked the event loop of its worker for 1.2 s: {advice}"
    assert error_of(second, TransformDied).message == message
    pool.make_ready()
    pool.worker_of(b"3").answer()
    assert result_of(third) == b"3"
    assert len(log.lines) == 1


def test_what_is_cancelled_when_its_worker_uses_too_much_memory_is_not_to_blame(clock: Clock, log: Log) -> None:
    pool = Pool(clock, worker_memory_bytes=5_000).start()
    worker, (first, *others) = begin(pool)
    worker.memory_bytes = 10_000
    first.cancel()
    error_of(first, CancelledError)
    clock.advance(WATCH_MEMORY_EVERY_S)
    clock.pump([SUSPECT_S, CANCEL_S])
    used = "used 9000 bytes of memory; worker_memory_bytes is 5000"
    assert set(worker.killed) == {used}
    assert pool.run("look-up", b"4")  # elsewhere
    end_with(worker, b"1")
    for _ in range(3):
        pool.make_ready()
    assert [b"2"] in pool.groups()
    assert [b"3"] in pool.groups()
    assert not any(map(has_fired, others))
    assert log.lines[0].endswith(f"the worker of look-up {used}, with 2 requests under way")


# Crashes.


@pytest.mark.parametrize("running", [None, b"1"])
def test_a_crash_with_one_job_is_its_fault(pool: Pool, running: bytes | None) -> None:
    result = pool.run("look-up", b"1")
    end_with(pool.worker_of(b"1"), running)
    assert error_of(result, TransformDied).message == f"the worker of look-up {SEGFAULT}"
    assert pool.history.deaths == 1


def test_after_a_crash_deterministic_jobs_run_again_each_in_a_worker_of_its_own(pool: Pool, log: Log) -> None:
    worker, results = begin(pool)
    end_with(worker, b"2")
    for _ in range(4):
        pool.make_ready()
    assert pool.groups() == [[b"1"], [b"2"], [b"3"]]
    pool.worker_of(b"2").end()
    for poem in (b"1", b"3"):
        pool.worker_of(poem).answer()
    assert error_of(results[1], TransformDied).message == f"the worker of look-up {SEGFAULT}"
    assert (result_of(results[0]), result_of(results[2])) == (b"1", b"3")
    who = "transform look-up of plugin xformd-verses 1.0 (verses): the worker of look-up"
    assert log.lines == [f"{who} {SEGFAULT}, with 3 requests under way"]
    assert pool.history.deaths == 2
    later = pool.run("look-up", b"later")  # together again
    pool.make_ready()
    pool.worker_of(b"later").answer()
    assert result_of(later) == b"later"


def test_after_a_crash_other_jobs_are_told_and_the_one_that_ran_is_to_blame(pool: Pool) -> None:
    for _ in range(MAX_DEATHS):
        worker, results = begin(pool, "call")
        end_with(worker, b"2")
        for result in results:
            assert error_of(result, TransformDied).message == f"the worker of call {SEGFAULT}"
        for _ in range(3):
            pool.make_ready()
    with pytest.raises(Unavailable):
        pool.run("call", b"x", Caller("2"))
    for share in ("1", "3"):
        pool.run("call", share.encode(), Caller(share))


def test_a_lack_of_memory_is_the_fault_of_a_job_that_is_alone(pool: Pool) -> None:
    alone = pool.run("look-up", b"1")
    worker = pool.worker_of(b"1")
    worker.refuse(TransformDied("look-up ran out of memory"), of=b"1")
    assert error_of(alone, TransformDied).message == "look-up ran out of memory"
    assert worker.killed
    pool.make_ready()
    other, _ = begin(pool)
    other.refuse(TransformDied("look-up ran out of memory"), of=b"1")
    for _ in range(4):
        pool.make_ready()
    assert pool.groups() == [[b"1"], [b"2"], [b"3"]]


def test_a_crash_while_a_worker_is_idle_harms_nobody(clock: Clock, pool: Pool, log: Log) -> None:
    worker, _ = begin(pool)
    for poem in (b"1", b"2", b"3"):
        worker.answer(of=poem)
    worker.end()
    assert log.lines == [f"worker {worker.pid} {SEGFAULT} while it was idle"]
    pool.make_ready()
    again, _ = begin(pool)
    assert again is not worker


# The end.


def test_a_pool_that_winds_down_finishes_its_jobs_and_takes_later_parts_of_requests(clock: Clock, pool: Pool) -> None:
    worker, results = begin(pool)
    pool.make_ready()
    pool.pool.wind_down()
    for poem in (b"1", b"2"):
        worker.answer(of=poem)
    assert worker.retired == []
    worker.answer(of=b"3")
    assert all(map(has_fired, results))
    assert worker.retired == ["is not needed any more"]
    later = pool.run("call", b"later")
    for _ in range(2):
        pool.make_ready()
    pool.worker_of(b"later").answer()
    assert result_of(later) == b"later"


def test_stopping_answers_every_job(clock: Clock, pool: Pool) -> None:
    worker, results = begin(pool)
    results[0].cancel()
    error_of(results[0], CancelledError)
    waiting = pool.run_all("call", *(b"w%d" % number for number in range(8)))
    stopped = pool.pool.stop()
    for result in (*results[1:], *waiting):
        error_of(result, ShuttingDown)
    pool.launcher.end_all()
    assert has_fired(stopped)
    assert clock.getDelayedCalls() == []
    assert worker.killed
