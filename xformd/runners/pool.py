"""A pool of worker processes, with a bounded queue in front of them.

The law: a worker runs one job at a time, every job is answered once, and whatever becomes of a worker, no other job
is harmed.
"""

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Busy, ShuttingDown, TransformDied, Unavailable, XformError
from xformd.limits import Limits
from xformd.runners import Caller, policy
from xformd.runners.calls import Call, took_too_long
from xformd.runners.failures import FailureLog
from xformd.runners.policy import MAX_DEATHS, Quarantine
from xformd.runners.queue import FairQueue
from xformd.runners.slot import Launch, SelfTest, WorkerSlot
from xformd.runners.supervisor import Supervisor
from xformd.spec import Spec
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

LONG_BYTES = 64 * 1024
"""Of a result: its caller gets it before the next job begins, and may have no room for another."""


@attrs.define(eq=False)
class _Job:
    """Some steps for one worker, and who waits for their result.

    Args:
        calls: the steps.
        poem: for the first.
        caller: who asks.
        outcome: fires once.
        timing: takes its times; None where nobody wants to know them.
        slot: the worker that runs it; None while it waits.
        step: which of the steps runs.
        began_at: when it got its worker.
        timer: ends it when the step that runs takes longer than its transform's own limit.
    """

    calls: Sequence[Call]
    poem: bytes
    caller: Caller | None
    outcome: Deferred[bytes]
    timing: RequestTiming | None = None
    slot: WorkerSlot | None = None
    step: int = 0
    began_at: float = 0.0
    timer: IDelayedCall | None = None

    @property
    def call(self) -> Call:
        """The step that runs."""
        return self.calls[self.step]


class WorkerPool:
    """Runs jobs in worker processes.

    Args:
        size: how many jobs run at a time. One process more waits, warm, to take the place of one that ends.
        launch: starts a worker.
        self_test: an example that each must run first.
        quarantine: remembers which transforms kill workers.
        limits: how long the queue, and how worn a worker may be.
        clock: a reactor, or a clock in its place.
        history: where to count what becomes of workers; one of its own where none is given.
    """

    log = Logger()

    def __init__(
        self,
        *,
        size: int,
        launch: Launch,
        self_test: SelfTest | None,
        quarantine: Quarantine,
        limits: Limits,
        clock: IReactorTime,
        history: WorkerHistory | None = None,
    ) -> None:
        self._size = size
        self.quarantine = quarantine
        self._limits = limits
        self._clock = clock
        self._failures = FailureLog(clock)
        self._queue: FairQueue[_Job] = FairQueue()
        self._running: set[_Job] = set()
        self._mean_job_s = 0.0
        self._is_stopping = False
        self._history = WorkerHistory() if history is None else history
        self.supervisor = Supervisor(
            count=size + 1,
            launch=launch,
            self_test=self_test,
            events=self,
            limits=limits,
            clock=clock,
            history=self._history,
        )

    def start(self) -> None:
        """Start the workers."""
        self.supervisor.start()

    # What a service calls.

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,
        caller: Caller | None = None,
        *,
        is_admitted: bool = False,
        timing: RequestTiming | None = None,
    ) -> Deferred[bytes]:
        """Give a poem to a worker, now or when one is free; see ``Runner.run``."""
        error = ShuttingDown.not_started() if self._is_stopping else self._quarantined(calls)
        if error is None and not is_admitted:
            error = self._full()
        if error is not None:
            raise error
        job = _Job(calls, poem, caller, Deferred(lambda _: self._give_up(job, "its job was given up")), timing)
        if timing is not None:
            timing.waits()
        self._queue.put(job)
        self._dispatch()
        return job.outcome

    def caller_has_room(self, caller: Caller) -> None:
        """Go on with what had to wait for this."""
        self._queue.caller_has_room(caller)
        self._dispatch()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    def wind_down(self) -> None:
        """Keep no more workers than what has been accepted needs: nothing new will come."""
        self.supervisor.reduce(max(1, min(self._size, len(self._running) + self.waiting)))

    def stop(self) -> Deferred[None]:
        """Give up what is left, and end every worker; fires when no process is left."""
        self._is_stopping = True
        waiting, running = self._queue.clear(), [*self._running]
        self._running.clear()
        stopped = self.supervisor.stop()
        for job in running:
            self._stop_timer(job)
            self._settle(job, Failure(ShuttingDown.interrupted()))
        for job in waiting:
            self._settle(job, Failure(ShuttingDown.not_started()))
        return stopped

    # What the supervisor tells.

    def worker_idle(self) -> None:
        """Give the next job to it."""
        self._dispatch()

    def worker_began(self, slot: WorkerSlot, step: int) -> None:
        """Note which of its job's steps runs."""
        job: _Job = slot.job
        if step != job.step + 1 or step >= len(job.calls):
            slot.worker.kill("began what nobody had asked")
            return
        self._survived(job)
        job.step = step
        self._begin_step(job)

    def worker_raised(self, slot: WorkerSlot, raised: SafeTraceback) -> None:
        """Tell the operator; who waits for its job hears when it is refused."""
        job: _Job = slot.job
        self._failures.failed(job.call, raised, job.timing)

    def worker_answered(self, slot: WorkerSlot, answer: session.Reply | session.Refusal) -> None:
        """Give the worker its next job, then the answer to who waits for it."""
        job: _Job = slot.job
        self._leave(job)
        if isinstance(answer, session.Refusal):
            self._refused(slot, job, answer.error)
            return
        self._survived(job)
        if len(answer.poem) < LONG_BYTES:
            self.supervisor.release(slot)
            self._settle(job, answer.poem)
        else:  # the other way round, so that who does not read it is not given another
            self._settle(job, answer.poem)
            self.supervisor.release(slot)

    def _refused(self, slot: WorkerSlot, job: _Job, error: XformError) -> None:
        if isinstance(error, TransformDied):
            self._count_death(job, error.message)
            self.supervisor.discard(slot, error.message)
        else:
            self._survived(job)
            self.supervisor.release(slot)
        self._settle(job, Failure(error))

    def _survived(self, job: _Job) -> None:
        if self.quarantine.survived(job.call.name):
            self.log.info("transform {name} is out of quarantine", name=job.call.name)

    def worker_died(self, slot: WorkerSlot, reason: str) -> None:
        """Tell who waits for its job, and nobody else."""
        job: _Job = slot.job
        self._leave(job)
        died = f"the worker of {job.call.name} {reason}"
        self._count_death(job, died)
        self._settle(job, Failure(TransformDied(died)))

    def _dispatch(self) -> None:
        while len(self._running) < self._size and (job := self._queue.first()) is not None:
            if (error := self._quarantined(job.calls)) is not None:  # since it came
                self._queue.remove(job)
                self._settle(job, Failure(error))
                continue
            if (slot := self.supervisor.take()) is None:
                return
            self._queue.remove(job)
            job.slot, slot.job = slot, job
            job.began_at = self._clock.seconds()
            self._running.add(job)
            if job.timing is not None:
                job.timing.runs()
            for call in job.calls:
                self.quarantine.begin(call.name)
            self._begin_step(job)
            slot.worker.send(session.Request(slot.request_id, Spec(tuple(call.step for call in job.calls)), job.poem))

    def _begin_step(self, job: _Job) -> None:
        self._stop_timer(job)
        allowed_s = job.call.entry.transform.timeout_s
        if allowed_s is not None:
            job.timer = self._clock.callLater(allowed_s, self._expire, job, allowed_s)

    def _expire(self, job: _Job, allowed_s: float) -> None:
        job.timer = None
        self._give_up(job, "took too long")
        self._settle(job, Failure(took_too_long(job.call.name, allowed_s)))

    def _give_up(self, job: _Job, why: str) -> None:
        """Take a job from the queue, or from its worker, which does not outlive it."""
        if self._queue.remove(job):
            return
        if job in self._running and job.slot is not None:
            self.quarantine.undecided(job.call.name)
            self._leave(job)
            self.supervisor.discard(job.slot, why)

    def _leave(self, job: _Job) -> None:
        self._running.discard(job)
        self._stop_timer(job)
        if job.timing is not None:
            job.timing.ends()
        for call in job.calls[job.step + 1 :]:  # these have not begun
            self.quarantine.undecided(call.name)
        self._mean_job_s += (self._clock.seconds() - job.began_at - self._mean_job_s) / 16

    def _settle(self, job: _Job, outcome: bytes | Failure) -> None:
        job.poem = b""
        if not job.outcome.called:  # who has heard of another outcome may have cancelled this one
            job.outcome.callback(outcome)

    def _stop_timer(self, job: _Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None

    def _count_death(self, job: _Job, died: str) -> None:
        name, plugin = job.call.name, job.call.entry.plugin.label
        self._history.deaths += 1
        self.log.warn(
            "transform {name} of plugin {plugin}: {died}{log_of_request}",
            name=name,
            plugin=plugin,
            died=died,
            **log_fields(job.timing),
        )
        if self.quarantine.died(name, self._clock.seconds()):
            self.log.error(
                "transform {name} is in quarantine: it has killed {count} workers", name=name, count=MAX_DEATHS
            )

    def _quarantined(self, calls: Sequence[Call]) -> XformError | None:
        for call in calls:
            wait_s = self.quarantine.wait_s(call.name, self._clock.seconds())
            if wait_s is not None:
                message = f"{call.name} has killed its worker too often, and rests for a while"
                return Unavailable(message, retry_after_ms=int(wait_s * 1000) + 1)
        return None

    def _full(self) -> XformError | None:
        if self.waiting < self._limits.max_queue:
            return None
        later_ms = policy.retry_after_ms(self.waiting, self._size, self._mean_job_s)
        return Busy(f"{self.waiting} requests are waiting already", retry_after_ms=later_ms)
