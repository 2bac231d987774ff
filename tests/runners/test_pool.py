"""The pool: one job at a time for each worker, every job answered once, and no job harmed by another."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, outcome_of, result_of
from support.fakes import Asker, FakeWorker, Pool, calls_of
from support.logs import Log
from xformd import Busy, GibberishError, ShuttingDown, TransformDied, TransformTimeout, Unavailable, XformError
from xformd.runners import PROGRAM, Caller
from xformd.runners.policy import MAX_DEATHS, QUARANTINE_S
from xformd.runners.shares import KILLS_PER_S, MAX_KILLS
from xformd.runners.supervisor import WATCH_MEMORY_EVERY_S
from xformd.wire.session import Refusal, Reply

SEGFAULT = "was killed by SIGSEGV"


@pytest.fixture
def pool(clock: Clock) -> Pool:
    """A pool of one worker, and its spare."""
    return Pool(clock).start()


def test_a_worker_runs_a_job_and_its_answer_is_the_result(clock: Clock, pool: Pool) -> None:
    result = pool.run("upper+lower", b"poem")
    (request,) = pool.worker_of(b"poem").sent[1:]
    assert str(request.spec) == "upper+lower"
    assert not has_fired(result)
    pool.worker_of(b"poem").answer(b"done")
    assert result_of(result) == b"done"
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert clock.getDelayedCalls() == []


def test_jobs_beyond_the_size_wait_in_order(clock: Clock) -> None:
    pool = Pool(clock, size=2).start()
    results = [pool.run(poem=b"%d" % number) for number in range(5)]
    assert pool.pool.waiting == 3
    assert sorted(pool.poems()) == [b"0", b"1"]
    for number in range(5):
        pool.worker_of(b"%d" % number).answer()
        assert result_of(results[number]) == b"%d" % number
    assert pool.pool.waiting == 0


def test_jobs_wait_for_starting_workers(clock: Clock) -> None:
    pool = Pool(clock)
    early = pool.run(poem=b"early")
    pool.start()
    pool.worker_of(b"early").answer()
    assert result_of(early) == b"early"


@pytest.mark.parametrize("error", [GibberishError("no"), TransformDied("upper ran out of memory")])
def test_a_refusal_fails_its_job_and_a_lack_of_memory_ends_its_worker(pool: Pool, error: XformError) -> None:
    result = pool.run(poem=b"a")
    worker = pool.worker_of(b"a")
    worker.refuse(error)
    assert error_of(result, type(error)) is error
    assert bool(worker.killed) is isinstance(error, TransformDied)
    pool.make_ready()
    assert len(pool.launcher.alive) == 2


def test_a_full_queue_is_busy_and_says_when_to_retry(clock: Clock) -> None:
    pool = Pool(clock, max_queue=4).start()
    for jobs in range(5):
        assert pool.pool.waiting == max(0, jobs - 1)
        pool.run(poem=b"%d" % jobs)
    with pytest.raises(Busy, match="the queue is full: 4 requests are waiting") as caught:
        pool.run()
    assert caught.value.retry_after_ms == 100
    clock.advance(16)
    pool.worker_of(b"0").answer()
    pool.run()
    with pytest.raises(Busy) as caught:
        pool.run()
    assert caught.value.retry_after_ms == 2_000  # half of 4 jobs of 1 s, the mean so far


def test_a_later_part_of_a_request_is_never_busy(clock: Clock) -> None:
    """Its client would take the request for one that has not begun."""
    pool = Pool(clock, max_queue=1).start()
    for poem in (b"1", b"2"):
        pool.run(poem=poem)
    with pytest.raises(Busy):
        pool.run(poem=b"3")
    later = pool.pool.run(calls_of("upper"), b"4", is_admitted=True)
    for poem in (b"1", b"2", b"4"):
        pool.worker_of(poem).answer()
    assert result_of(later) == b"4"


def test_a_later_part_that_gives_way_is_not_sent_again(clock: Clock) -> None:
    """Clients send again what is busy until a time: such a request has begun."""
    pool = Pool(clock, max_queue=1).start()
    pool.run(poem=b"1")
    later = [pool.pool.run(calls_of("upper"), b"2", Caller("many"), is_admitted=True) for _ in range(3)]
    other = pool.pool.run(calls_of("upper"), b"3", Caller("other"))
    assert error_of(later[-1], Busy).retry_after_ms is None
    assert not any(map(has_fired, (*later[:-1], other)))


def test_a_job_cancelled_in_the_queue_never_runs(pool: Pool) -> None:
    running, waiting, last = (pool.run(poem=poem) for poem in (b"1", b"2", b"3"))
    waiting.cancel()
    error_of(waiting, CancelledError)
    assert pool.pool.waiting == 1
    pool.worker_of(b"1").answer()
    pool.worker_of(b"3").answer()
    assert (result_of(running), result_of(last)) == (b"1", b"3")
    assert b"2" not in pool.poems()


def test_cancelling_a_running_job_kills_its_worker_without_blame(pool: Pool, log: Log) -> None:
    for _ in range(2 * MAX_DEATHS):
        result = pool.run(poem=b"x")
        worker = pool.worker_of(b"x")
        result.cancel()
        error_of(result, CancelledError)
        assert worker.killed == ["its job was cancelled"]
        worker.end()
        pool.make_ready()
    assert len(pool.launcher.alive) == 2
    assert log.lines == []


def test_a_step_ends_at_its_own_limit_and_so_does_its_worker(clock: Clock, pool: Pool) -> None:
    result = pool.run("hasty", b"x")
    worker = pool.worker_of(b"x")
    clock.advance(1.9)
    assert not has_fired(result)
    clock.advance(0.1)
    assert error_of(result, TransformTimeout).message == "hasty took longer than its 2 s"
    assert worker.killed == ["took too long"]
    worker.end()
    assert clock.getDelayedCalls()  # of starting workers
    pool.make_ready()
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert clock.getDelayedCalls() == []


def test_a_steps_limit_counts_from_its_start(clock: Clock, pool: Pool) -> None:
    result = pool.run("upper+hasty+hasty+upper", b"x")
    worker = pool.worker_of(b"x")
    clock.advance(100)
    for step in (1, 2):
        worker.begin(step)
        clock.advance(1.9)
    worker.begin(3)
    clock.advance(100)
    assert not has_fired(result)
    worker.answer(b"done")
    assert result_of(result) == b"done"
    clock.advance(WATCH_MEMORY_EVERY_S)
    assert clock.getDelayedCalls() == []


def test_a_death_fails_its_own_job_and_is_blamed_on_the_running_step(clock: Clock, log: Log) -> None:
    pool = Pool(clock, size=2).start()
    dead, other = pool.run("upper+lower+hasty", b"x"), pool.run(poem=b"y")
    worker = pool.worker_of(b"x")
    worker.begin(1)
    worker.end()
    assert error_of(dead, TransformDied).message == f"the worker of lower {SEGFAULT}"
    assert log.lines == [f"transform lower of plugin xformd-verses 1.0 (verses): the worker of lower {SEGFAULT}"]
    pool.worker_of(b"y").answer()
    assert result_of(other) == b"y"


@pytest.mark.parametrize("steps", [[0], [2], [999], [1, 1], [1, 2, 3]])
def test_a_worker_that_begins_a_step_out_of_turn_is_killed(pool: Pool, steps: list[int]) -> None:
    result = pool.run("upper+lower+upper", b"x")
    worker = pool.worker_of(b"x")
    for step in steps:
        assert worker.killed == []
        worker.begin(step)
    assert worker.killed == ["began a step out of turn"]
    worker.end()
    running = "lower" if steps == [1, 1] else "upper"
    assert error_of(result, TransformDied).message == f"the worker of {running} began a step out of turn"


# Quarantine.


def kill(pool: Pool, times: int = 1) -> None:
    """Have jobs of ``upper`` kill their workers."""
    for _ in range(times):
        result = pool.run("upper", b"deadly")
        pool.worker_of(b"deadly").end()
        error_of(result, TransformDied)
        pool.make_ready()


@pytest.fixture
def quarantined(clock: Clock) -> Pool:
    """A pool of two workers for which the next request of ``upper`` is the trial."""
    pool = Pool(clock, size=2).start()
    kill(pool, MAX_DEATHS)
    clock.advance(QUARANTINE_S)
    return pool


def test_a_transform_that_kills_too_often_is_unavailable(pool: Pool, log: Log) -> None:
    kill(pool, MAX_DEATHS)
    assert log.lines[-1] == "transform upper is in quarantine: it has killed 5 workers"
    for spec in ("upper", "lower+upper"):
        with pytest.raises(Unavailable, match="upper has killed too many workers") as caught:
            pool.run(spec)
        assert caught.value.retry_after_ms == QUARANTINE_S * 1_000 + 1
    assert pool.pool.quarantine.names == {"upper"}
    pool.run("lower", b"x")
    assert pool.worker_of(b"x")


def test_a_trial_ends_a_quarantine_and_nobody_else_tries_meanwhile(quarantined: Pool, log: Log) -> None:
    trial = quarantined.run("upper", b"trial")
    with pytest.raises(Unavailable):
        quarantined.run("upper")
    quarantined.worker_of(b"trial").answer()
    assert result_of(trial) == b"trial"
    assert log.lines[-1] == "transform upper is out of quarantine"
    assert quarantined.pool.quarantine.names == frozenset()


def test_a_trial_in_a_pipeline_is_over_when_its_step_is(quarantined: Pool) -> None:
    quarantined.run("upper+lower", b"x")
    quarantined.worker_of(b"x").begin(1)
    assert quarantined.pool.quarantine.names == frozenset()


@pytest.mark.parametrize("spec", ["upper", "lower+upper"])
def test_a_trial_that_does_not_run_to_its_end_decides_nothing(quarantined: Pool, spec: str) -> None:
    trial = quarantined.run(spec, b"trial")
    if spec == "upper":
        with pytest.raises(Unavailable):
            quarantined.run(spec, b"too many")
        trial.cancel()
        error_of(trial, CancelledError)
    else:
        quarantined.worker_of(b"trial").refuse(GibberishError("no"))  # by its first step
        error_of(trial, GibberishError)
    assert quarantined.pool.quarantine.names == {"upper"}
    again = quarantined.run("upper", b"again")
    quarantined.worker_of(b"again").answer()
    assert result_of(again) == b"again"


@pytest.mark.parametrize("is_refused", [False, True])
def test_jobs_that_wait_when_a_quarantine_begins_never_run(pool: Pool, is_refused: bool) -> None:
    kill(pool, MAX_DEATHS - 1)
    last = pool.run("upper", b"last")
    waiting, other = pool.run("upper", b"waiting"), pool.run("lower", b"other")
    worker = pool.worker_of(b"last")
    worker.refuse(TransformDied("upper ran out of memory")) if is_refused else worker.end()
    error_of(last, TransformDied)
    error_of(waiting, Unavailable)
    assert b"waiting" not in pool.poems()
    pool.worker_of(b"other").answer()
    assert result_of(other) == b"other"


def test_a_job_waits_for_room_for_its_result_and_holds_up_nobody(pool: Pool) -> None:
    full, other = Asker(takes_results=False), Asker()
    askers = ((b"1", full), (b"2", full), (b"3", other))
    held, gone, passing = (pool.run(poem=poem, caller=asker.caller) for poem, asker in askers)
    assert pool.poems() == [b"3"]
    pool.worker_of(b"3").answer()
    assert result_of(passing)
    assert pool.pool.waiting == 0  # what is set aside takes no place
    gone.cancel()
    error_of(gone, CancelledError)
    full.takes_results = True
    pool.pool.has_room(full)
    pool.worker_of(b"1").answer()
    assert result_of(held) == b"1"
    assert pool.pool.waiting == 0


# Stopping.


def test_stopping_answers_every_job_and_fires_when_no_process_is_left(clock: Clock, pool: Pool) -> None:
    full = Asker(takes_results=False)
    results = [pool.run("hasty", b"1"), pool.run(poem=b"2"), pool.run(poem=b"3", caller=full.caller)]
    stopped, again = pool.pool.stop(), pool.pool.stop()
    waits_ms = [error_of(result, ShuttingDown).retry_after_ms for result in results]
    assert waits_ms == [None, 1_000, 1_000]  # only what has not begun may be retried
    with pytest.raises(ShuttingDown) as one:
        pool.run()
    with pytest.raises(ShuttingDown) as other:
        pool.run()
    assert one.value is not other.value  # or its traceback would grow
    first, second = pool.workers
    first.end()
    assert not has_fired(stopped)
    second.end()
    assert all(map(has_fired, (stopped, again, pool.pool.stop())))
    assert len(pool.workers) == 2
    assert clock.getDelayedCalls() == []


def test_stopping_ends_starting_workers_and_cancels_the_next_start(clock: Clock) -> None:
    pool = Pool(clock)
    pool.pool.start()
    pool.workers[0].end()
    assert len(clock.getDelayedCalls()) == 2
    stopped = pool.pool.stop()
    assert clock.getDelayedCalls() == []
    pool.workers[1].end()
    assert has_fired(stopped)
    assert len(pool.workers) == 2
    never_started = Pool(clock)
    assert has_fired(never_started.pool.stop())
    never_started.pool.start()
    assert never_started.workers == []


def test_a_pool_that_winds_down_keeps_the_workers_that_it_needs(clock: Clock) -> None:
    pool = Pool(clock, size=3).start()
    running = pool.run(poem=b"1")
    pool.pool.wind_down()
    busy = pool.worker_of(b"1")
    assert [worker for worker in pool.workers if not worker.killed] == [busy]
    later = pool.run(poem=b"2")  # another part of an accepted request
    busy.answer()
    assert result_of(running) == b"1"
    pool.worker_of(b"2").answer()
    assert result_of(later) == b"2"


# A worker that is gone must not keep the queue from the warm spare.

Leave = Callable[[Clock, Pool, Deferred[bytes]], object]
LEAVES: dict[str, Leave] = {
    "ends": lambda clock, pool, result: pool.worker_of(b"1").end(),
    "is cancelled": lambda clock, pool, result: result.addErrback(lambda _: None).cancel(),
    "has no memory": lambda clock, pool, result: pool.worker_of(b"1").refuse(TransformDied("ran out of memory")),
    "is worn": lambda clock, pool, result: pool.worker_of(b"1").answer(),
    "takes too long": lambda clock, pool, result: clock.advance(2),
}


@pytest.mark.parametrize("leave", LEAVES)
def test_the_warm_spare_takes_over_at_once(clock: Clock, leave: str) -> None:
    pool = Pool(clock, max_jobs_per_worker=1).start()
    first, second = pool.run("hasty", poem=b"1"), pool.run(poem=b"2")
    LEAVES[leave](clock, pool, first)
    outcome_of(first)
    pool.worker_of(b"2").answer()
    assert result_of(second) == b"2"


# The callback of a result may do anything at all.


def test_a_callback_of_the_stop_may_cancel_other_jobs(clock: Clock) -> None:
    pool = Pool(clock, size=2).start()
    results = [pool.run(poem=b"%d" % number) for number in range(4)]
    heard: list[object] = []

    def hear(failure: object) -> None:
        heard.append(failure)
        for result in results:
            result.cancel()

    for result in results:
        result.addErrback(hear)
    stopped = pool.pool.stop()
    assert len(heard) == 4
    pool.launcher.end_all()
    assert has_fired(stopped)


def test_a_callback_may_cancel_a_result_that_is_being_delivered(clock: Clock, pool: Pool) -> None:
    kill(pool, MAX_DEATHS - 1)
    clock.advance(1)
    slow = pool.run("lower", b"slow")
    waiting = pool.run("upper", b"waiting")
    waiting.addErrback(lambda _: slow.cancel())
    pool.pool.quarantine.died("upper", clock.seconds())
    pool.worker_of(b"slow").answer()  # the worker's next job comes first: it is refused
    error_of(slow, CancelledError)


def test_a_callback_may_run_another_job_or_stop_the_pool(clock: Clock, pool: Pool) -> None:
    again: list[Deferred[bytes]] = []
    result = pool.run(poem=b"1")
    result.addErrback(lambda _: again.append(pool.run(poem=b"2")))
    pool.worker_of(b"1").end()
    stopped: list[Deferred[None]] = []
    again[0].addBoth(lambda _: stopped.append(pool.pool.stop()))
    pool.worker_of(b"2").answer()
    pool.launcher.end_all()
    assert has_fired(stopped[0])
    clock.advance(1)  # in which more deaths would be counted
    assert clock.getDelayedCalls() == []


BATCHES = ("together", "together:width=2", "hastily")
ON_ASYNCIO = ("call", "look-up")
SPECS = ("upper", "hasty", "lower+hasty", *BATCHES, *ON_ASYNCIO)


class Events(RuleBasedStateMachine):
    """A pool to which anything happens in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.asker = Asker()
        self.results: list[Deferred[bytes]] = []
        self.outcomes: list[int] = []

    @initialize(size=st.integers(1, 3))
    def start(self, size: int) -> None:
        self.size = size
        self.pool = Pool(self.clock, size=size, max_queue=5, max_jobs_per_worker=3)
        self.pool.pool.start()

    @property
    def busy(self) -> list[FakeWorker]:
        return [worker for worker in self.pool.launcher.alive if worker.has_job and not worker.is_disconnected]

    @property
    def starting(self) -> list[FakeWorker]:
        return [worker for worker in self.pool.launcher.alive if worker.pid is None and not worker.is_disconnected]

    @property
    def running(self) -> list[FakeWorker]:
        return [worker for worker in self.pool.workers if not worker.has_ended]

    @rule(spec=st.sampled_from(SPECS), has_caller=st.booleans())
    def run(self, spec: str, has_caller: bool) -> None:
        try:
            result = self.pool.run(spec, b"x", self.asker.caller if has_caller else PROGRAM)
        except (Busy, Unavailable):
            return
        index = len(self.results)
        self.results.append(result)
        result.addBoth(lambda _: self.outcomes.append(index))

    @rule(has_room=st.booleans())
    def change_room(self, has_room: bool) -> None:
        self.asker.takes_results = has_room
        if has_room:
            self.pool.pool.has_room(self.asker)

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.results)).cancel()

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), passes=st.booleans())
    def say_hello(self, data: st.DataObject, passes: bool) -> None:
        worker = data.draw(st.sampled_from(self.starting))
        worker.be_ready() if passes else worker.say_hello()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), error=st.sampled_from([None, GibberishError("no"), TransformDied("no")]))
    def answer(self, data: st.DataObject, error: XformError | None) -> None:
        worker = data.draw(st.sampled_from(self.busy))
        request = data.draw(st.sampled_from(worker.running))
        answer = Refusal(request.id, error) if error is not None else Reply(request.id, request.poem)
        worker.answer_with(answer)
        if str(request.spec) in BATCHES and not worker.killed:
            worker.answer_all()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def fail_batch(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.busy)).return_all()

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), step=st.integers(0, 2))
    def begin(self, data: st.DataObject, step: int) -> None:
        data.draw(st.sampled_from(self.busy)).begin(step)

    @precondition(lambda self: self.pool.launcher.alive)
    @rule(data=st.data(), leave=st.sampled_from([FakeWorker.send_rubbish, FakeWorker.disconnect]))
    def leave(self, data: st.DataObject, leave: Callable[[FakeWorker], None]) -> None:
        leave(data.draw(st.sampled_from(self.pool.launcher.alive)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), answers=st.booleans(), held_s=st.sampled_from([0.0, 5.0]))
    def end(self, data: st.DataObject, answers: bool, held_s: float) -> None:
        worker = data.draw(st.sampled_from(self.running))
        if answers and worker in self.busy:  # its answer is read together with its end
            worker.disconnect()
            worker.answer_with(Reply(worker.running[0].id, b"x"))
        worker.last_step = data.draw(st.integers(0, 3)), held_s
        worker.end()

    @invariant()
    def no_more_than_size_run(self) -> None:
        if hasattr(self, "pool"):
            others = [worker for worker in self.busy if str(worker.sent[-1].spec) not in ON_ASYNCIO]
            assert len(others) <= self.size

    @invariant()
    def whatever_can_run_does(self) -> None:
        """Unless it is held, its share waits, or its reader has no room."""
        if hasattr(self, "pool"):
            pool = self.pool.pool
            now = self.clock.seconds()
            assert (
                not any(pool._is_open(lane, now) for lane in pool._queue.lanes) or pool._queue.next_s(now) is not None
            )

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        stopped = self.pool.pool.stop()
        assert sorted(self.outcomes) == list(range(len(self.results)))
        self.pool.launcher.end_all()
        assert has_fired(stopped)
        self.clock.pump([1, 1, 1])  # until what comes in floods is logged
        assert self.clock.getDelayedCalls() == []


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=60, stateful_step_count=40)


# Shares.


def test_a_caller_without_its_turn_is_told_so_and_its_place_goes_to_another(clock: Clock) -> None:
    pool = Pool(clock, max_queue=2).start()
    greedy = [pool.run(poem=b"%d" % number, caller=Caller("greedy")) for number in range(3)]
    modest = pool.run(poem=b"m", caller=Caller("modest"))
    assert error_of(greedy[2], Busy).retry_after_ms is not None
    clock.advance(1)
    pool.worker_of(b"0").answer()
    pool.worker_of(b"m").answer()
    assert result_of(modest) == b"m"


def test_a_share_whose_jobs_cost_many_workers_waits(clock: Clock, pool: Pool) -> None:
    for _ in range(MAX_KILLS + 1):
        result = pool.run(poem=b"x", caller=Caller("churn"))
        worker = pool.worker_of(b"x")
        result.cancel()
        error_of(result, CancelledError)
        worker.end()
        pool.make_ready()
    waits = pool.run(poem=b"w", caller=Caller("churn"))
    other = pool.run(poem=b"o", caller=Caller("other"))
    assert b"w" not in pool.poems()
    pool.worker_of(b"o").answer()
    assert result_of(other) == b"o"
    clock.advance(1 / KILLS_PER_S)
    pool.worker_of(b"w").answer()
    assert result_of(waits) == b"w"


def test_what_its_jobs_use_of_workers_is_counted_for_each_share(pool: Pool) -> None:
    for share in ("a", "b", "a"):
        result = pool.run(caller=Caller(share))
        pool.worker_of(b"a").answer()
        assert result_of(result)
    assert pool.history.cpu_s == {"a": 0.5, "b": 0.25}


def test_deaths_of_one_share_keep_nobody_else_from_a_transform(pool: Pool) -> None:
    for _ in range(MAX_DEATHS):
        result = pool.run(poem=b"x", caller=Caller("one"))
        pool.worker_of(b"x").end()
        error_of(result, TransformDied)
        pool.make_ready()
    with pytest.raises(Unavailable):
        pool.run(caller=Caller("one"))
    assert pool.pool.quarantine.names == frozenset()
    other = pool.run(poem=b"y", caller=Caller("other"))
    pool.worker_of(b"y").answer()
    assert result_of(other) == b"y"
