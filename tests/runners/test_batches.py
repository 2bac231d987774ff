"""Batches: what several clients ask is one call, nobody waits longer than allowed, and the poisoned one fails alone."""

from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import Asker, FakeWorker, Pool
from support.logs import Log
from xformd import GibberishError, TransformDied, TransformTimeout, Unavailable
from xformd.runners import Caller
from xformd.runners.policy import MAX_DEATHS, QUARANTINE_S
from xformd.runners.pool import MAX_BATCH_BYTES
from xformd.telemetry.tracebacks import SafeTraceback

WAIT_S = 0.005


@pytest.fixture
def pool(clock: Clock) -> Pool:
    """A pool of one worker, and its spare."""
    return Pool(clock).start()


POEMS = (b"1", b"2", b"3", b"4")


def begin(pool: Pool) -> tuple[FakeWorker, list[Deferred[bytes]]]:
    """Have a worker run a batch of four; return it, and the results."""
    results = pool.run_all("together", *POEMS)
    return pool.worker_of(b"1"), results


# When a batch begins, and with whom.


def test_a_full_batch_begins_at_once_and_each_member_gets_its_own_result(clock: Clock, pool: Pool) -> None:
    results = pool.run_all("together", b"1", b"2", b"3")
    assert pool.groups() == []
    results.append(pool.run("together", b"4"))
    assert pool.groups() == [[b"1", b"2", b"3", b"4"]]
    pool.worker_of(b"1").answer_all()
    assert [*map(result_of, results)] == [b"1", b"2", b"3", b"4"]
    pool.run("upper", b"next")
    assert pool.groups() == [[b"next"]]


def test_one_that_is_not_full_begins_when_its_oldest_member_has_waited_long_enough(clock: Clock, pool: Pool) -> None:
    pool.run("together", b"1")
    clock.advance(0.75 * WAIT_S)
    pool.run("together", b"2")
    assert pool.groups() == []
    clock.advance(0.25 * WAIT_S)
    assert pool.groups() == [[b"1", b"2"]]


def test_what_is_left_of_a_full_batch_waits_for_its_own_oldest_member(clock: Clock) -> None:
    pool = Pool(clock, size=2).start()
    for number in range(3):
        pool.run("together", b"%d" % number)
        clock.advance(WAIT_S / 5)
    pool.run_all("together", b"3", b"4")
    clock.advance(0.9 * WAIT_S)
    assert pool.groups() == [[b"0", b"1", b"2", b"3"]]
    clock.advance(0.1 * WAIT_S)
    assert pool.groups() == [[b"0", b"1", b"2", b"3"], [b"4"]]


def test_a_held_batch_holds_up_nobody_else(clock: Clock, pool: Pool) -> None:
    caller = Caller("peer")
    held = pool.run("together", b"held", caller)
    own, other = pool.run("upper", b"own", caller), pool.run("lower", b"other", Caller("other"))
    for poem in (b"own", b"other"):
        pool.worker_of(poem).answer()
    assert [*map(has_fired, (held, own, other))] == [False, True, True]


def test_while_no_worker_is_free_a_batch_fills(clock: Clock, pool: Pool) -> None:
    pool.run("upper", b"busy")
    for number in range(6):
        pool.run("together", b"%d" % number)
        clock.advance(2 * WAIT_S)
    pool.worker_of(b"busy").answer()
    assert pool.groups() == [[b"0", b"1", b"2", b"3"]]
    pool.worker_of(b"0").answer_all()
    assert pool.groups() == [[b"4", b"5"]]


def test_only_poems_with_the_same_options_are_put_together(clock: Clock) -> None:
    pool = Pool(clock, size=3).start()
    for spec, poem in (("together", b"1"), ("together:width=2", b"2"), ("together:width=2", b"3"), ("hastily", b"4")):
        pool.run(spec, poem)
    clock.advance(WAIT_S)
    assert pool.groups() == [[b"1"], [b"2", b"3"], [b"4"]]


def test_every_share_has_a_member_in_the_next_batch(clock: Clock, pool: Pool) -> None:
    pool.run("upper", b"busy")
    pool.run_all("together", *(b"%d" % number for number in range(50)), caller=Caller("greedy"))
    for share in ("a", "b"):
        pool.run("together", share.encode(), Caller(share))
    pool.worker_of(b"busy").answer()
    ((*members,),) = pool.groups()
    assert {b"a", b"b"} < set(members)
    assert len(members) == 4


def test_a_batch_is_paid_for_by_its_members_in_equal_parts(clock: Clock, pool: Pool) -> None:
    for share in ("a", "a", "a", "b"):
        pool.run("together", b"x", Caller(share))
    clock.advance(8)
    (worker,) = (worker for worker in pool.workers if worker.running)
    worker.answer_all()
    shares = pool.pool._queue._shares
    assert {name: share.used_s for (_, name), share in shares.items()} == pytest.approx({"a": 6, "b": 2})
    assert pool.history.cpu_s == {"a": 0.75, "b": 0.25}


def test_a_reader_without_room_has_no_member(clock: Clock, pool: Pool) -> None:
    reader = Asker(takes_results=False)
    results = pool.run_all("together", b"1", b"2", caller=reader.caller)
    pool.run_all("together", b"3", b"4")
    clock.advance(WAIT_S)
    assert pool.groups() == [[b"3", b"4"]]
    pool.worker_of(b"3").answer_all()
    reader.takes_results = True
    pool.pool.has_room(reader)
    clock.advance(WAIT_S)
    pool.worker_of(b"1").answer_all()
    assert [*map(result_of, results)] == [b"1", b"2"]


def test_long_poems_make_small_batches(clock: Clock) -> None:
    pool = Pool(clock, max_request_bytes=MAX_BATCH_BYTES).start()
    results = pool.run_all("together", *[b"x" * (MAX_BATCH_BYTES // 2 + 1)] * 3)
    clock.advance(WAIT_S)
    assert [len(poems) for poems in pool.groups()] == [2]
    pool.launcher.end_all()
    assert not any(map(has_fired, results))


def test_nothing_is_left_of_a_batch_that_never_began(clock: Clock, pool: Pool) -> None:
    result = pool.run("together", b"1")
    result.cancel()
    error_of(result, CancelledError)
    clock.advance(1)
    assert pool.groups() == []
    assert clock.getDelayedCalls() == []


# When a member gives up.


def test_a_member_that_gives_up_is_answered_and_the_batch_goes_on(clock: Clock, pool: Pool) -> None:
    worker, results = begin(pool)
    results[1].cancel()
    error_of(results[1], CancelledError)
    assert worker.killed == []
    worker.answer_all()
    assert [result_of(results[index]) for index in (0, 2, 3)] == [b"1", b"3", b"4"]
    pool.run("upper", b"next")
    assert pool.groups() == [[b"next"]]


def test_a_batch_that_nobody_waits_for_costs_its_worker_and_is_nobodys_fault(pool: Pool, log: Log) -> None:
    worker, results = begin(pool)
    for result in results:
        assert worker.killed == []
        result.cancel()
        error_of(result, CancelledError)
    assert worker.killed == ["its job was cancelled"]
    assert log.lines == []
    pool.run("upper", b"next")
    assert pool.groups() == [[b"next"]]


# When a batch fails.


def run_apart(pool: Pool, poisoned: bytes, fail: Callable[[FakeWorker], object]) -> None:
    """Answer the members of a failed batch one by one; the poisoned one fails again."""
    for poem in POEMS:
        assert pool.groups() == [[poem]]
        worker = pool.worker_of(poem)
        if poem == poisoned:
            fail(worker)
            pool.make_ready()
        else:
            worker.answer()


@pytest.mark.parametrize("poisoned", [b"1", b"3", b"4"])
def test_after_a_batch_that_raises_the_poisoned_member_fails_alone(pool: Pool, log: Log, poisoned: bytes) -> None:
    worker, results = begin(pool)
    worker.raised(SafeTraceback("ValueError", "Traceback"))
    worker.return_all()
    assert worker.killed == []
    run_apart(pool, poisoned, lambda worker: worker.refuse(GibberishError("no")))
    for poem, result in zip(POEMS, results, strict=True):
        assert error_of(result, GibberishError) if poem == poisoned else result_of(result) == poem
    assert log.lines == [
        "transform together of plugin xformd-verses 1.0 (verses) failed",
        "transform together: a batch of 4 failed; they run one by one",
    ]


@pytest.mark.parametrize("poisoned", [b"1", b"3", b"4"])
def test_after_a_batch_that_kills_its_worker_the_poisoned_member_kills_one_alone(
    pool: Pool, log: Log, poisoned: bytes
) -> None:
    worker, results = begin(pool)
    worker.end()
    pool.make_ready()
    run_apart(pool, poisoned, lambda worker: worker.end())
    for poem, result in zip(POEMS, results, strict=True):
        if poem == poisoned:
            assert error_of(result, TransformDied).message == "the worker of together was killed by SIGSEGV"
        else:
            assert result_of(result) == poem
    assert log.lines[0].endswith("the worker of together was killed by SIGSEGV; its batch of 4 runs one by one")
    assert pool.history.deaths == 2


def test_after_a_batch_that_takes_too_long_the_members_have_the_time_alone(clock: Clock, pool: Pool, log: Log) -> None:
    results = pool.run_all("hastily", b"1", b"2", b"3", b"4")
    worker = pool.worker_of(b"1")
    clock.advance(2)
    assert worker.killed == ["took too long"]
    pool.worker_of(b"1").answer()
    clock.advance(1.9)
    pool.worker_of(b"2").answer()
    clock.advance(2)
    assert error_of(results[2], TransformTimeout).message == "hastily took longer than its 2 s"
    pool.make_ready()
    pool.worker_of(b"4").answer()
    assert [result_of(results[index]) for index in (0, 1, 3)] == [b"1", b"2", b"4"]
    assert log.lines == ["transform hastily: a batch of 4 took longer than its 2 s; they run one by one"]


def test_members_that_run_alone_are_not_put_together_with_others(clock: Clock, pool: Pool) -> None:
    worker, results = begin(pool)
    worker.return_all()
    later = pool.run_all("together", b"5", b"6", b"7", b"8")
    groups: list[list[bytes]] = []
    while pool.groups():
        groups += pool.groups()
        next(worker for worker in pool.workers if worker.running).answer_all()
    assert sorted(groups) == [[b"1"], [b"2"], [b"3"], [b"4"], [b"5", b"6", b"7", b"8"]]
    assert all(map(has_fired, (*results, *later)))


def test_a_member_that_gave_up_does_not_run_again(pool: Pool) -> None:
    worker, results = begin(pool)
    results[0].cancel()
    error_of(results[0], CancelledError)
    worker.end()
    pool.make_ready()
    assert pool.groups() == [[b"2"]]


def test_only_what_kills_alone_leads_to_quarantine(clock: Clock, pool: Pool) -> None:
    results: list[Deferred[bytes]] = []
    for death in range(1, MAX_DEATHS + 1):
        assert pool.pool.quarantine.names == frozenset()
        worker, results = begin(pool)
        worker.end()
        for poem in POEMS[: 4 if death < MAX_DEATHS else 3]:
            pool.make_ready()
            pool.worker_of(poem).end() if poem == b"3" else pool.worker_of(poem).answer()
        pool.make_ready()
        error_of(results[2], TransformDied)
    assert pool.pool.quarantine.names == {"together"}
    error_of(results[3], Unavailable)  # it waited


def test_the_trial_that_ends_a_quarantine_is_one_poem(clock: Clock, pool: Pool) -> None:
    pool.run("upper", b"busy")
    waiting = pool.run_all("together", b"1", b"2")
    for _ in range(MAX_DEATHS):
        pool.pool.quarantine.died("together", clock.seconds())
    clock.advance(QUARANTINE_S)
    pool.worker_of(b"busy").answer()
    assert pool.groups() == [[b"1"]]
    error_of(waiting[1], Unavailable)


def test_a_worker_that_returns_a_job_of_no_batch_is_killed(pool: Pool) -> None:
    result = pool.run("upper", b"x")
    worker = pool.worker_of(b"x")
    worker.return_all()
    assert worker.killed == ["returned a job that was in no batch"]
    worker.end()
    error_of(result, TransformDied)


def test_a_callback_of_a_members_result_may_cancel_the_others_or_stop_the_pool(clock: Clock, pool: Pool) -> None:
    worker, results = begin(pool)
    for result in results[1:]:
        result.addErrback(lambda _: None)
    stopped: list[object] = []

    def cancel_others(_: bytes) -> None:
        for result in results[1:3]:
            result.cancel()

    results[0].addCallback(cancel_others)
    results[3].addCallback(lambda _: stopped.append(pool.pool.stop()))
    worker.answer_all()
    pool.launcher.end_all()
    assert len(stopped) == 1
    assert clock.getDelayedCalls() == []


def test_time_that_is_left_goes_to_the_worker(clock: Clock, pool: Pool) -> None:
    pool.run("upper", b"busy")
    pool.run("upper", b"1", timeout_s=5.0)
    pool.run("upper", b"2")
    clock.advance(2)
    pool.worker_of(b"busy").answer()
    pool.worker_of(b"1").answer()
    assert [worker.sent[-1].timeout_ms for worker in pool.workers if worker.running] == [28_000]
    assert {3_000, 30_000} < {request.timeout_ms for worker in pool.workers for request in worker.sent}
