"""A pool of worker processes behind a bounded, fair queue.

Invariant: a worker runs one job at a time, every job is answered once, and whatever happens to one worker, no other
job is harmed.
"""

from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Busy, ShuttingDown, TransformDied, TransformFailed, Unavailable, XformError
from xformd.limits import Limits
from xformd.runners import PROGRAM, Caller, Reader, policy
from xformd.runners.calls import Call, name_in_log, took_too_long
from xformd.runners.failures import FailureLog
from xformd.runners.launcher import Launcher
from xformd.runners.policy import MAX_DEATHS, Quarantine
from xformd.runners.shares import JOB_BYTES, FairQueue
from xformd.runners.supervisor import SelfTest, Supervisor, WorkerSlot
from xformd.spec import Spec
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

LONG_BYTES = 64 * 1024
"""A longer result reaches its caller before the worker's next job begins: the caller may have no room for another.
With 40 results of 5 MB that nobody read, a server then grew by 15 MB instead of 25."""


class JobResult(Deferred[bytes]):
    """The result of a job, which knows whether that has begun."""

    has_begun = False


@attrs.define(eq=False)
class PoolJob:
    """Consecutive steps for one worker, from the queue to their result."""

    pool: "WorkerPool"
    calls: Sequence[Call]
    poem: bytes
    caller: Caller = PROGRAM
    is_admitted: bool = False
    timing: RequestTiming | None = None
    size_bytes: int = attrs.field(init=False)
    result: JobResult = attrs.field(init=False)
    slot: WorkerSlot | None = None  # the worker that runs it; None while it waits
    step: int = 0  # the index of the one that runs
    started_at: float = 0.0  # when it got its worker, in seconds
    started_cpu_s: float = 0.0  # what its worker had used then
    charged_s: float = 0.0  # to its share, in advance
    timer: IDelayedCall | None = None  # ends it at the time limit of the step that runs
    detail: str = ""  # what the last step has raised, for the person who runs it in a process of their own

    def __attrs_post_init__(self) -> None:
        self.size_bytes = len(self.poem)
        self.result = JobResult(lambda _: self.pool.give_up(self, "its job was cancelled"))

    @property
    def call(self) -> Call:
        """The step that runs."""
        return self.calls[self.step]

    def settle(self, result: bytes | Failure) -> None:
        """Deliver the result. Its caller may cancel it while another's result is being delivered: then it has one."""
        self.poem = b""
        if not self.result.called:
            self.result.callback(result)

    # Called by its worker's handle, and by the supervisor.

    def began(self, step: int) -> None:
        """Note which step runs; its time limit starts now."""
        assert self.slot is not None
        if step != self.step + 1 or step >= len(self.calls):
            self.slot.worker.kill("began a step out of turn")
            return
        self.pool.note_survival(self)
        self.step = step
        self.pool.begin_step(self)

    def raised(self, raised: SafeTraceback) -> None:
        """Log it; the caller gets the refusal that follows."""
        self.detail = raised.detail
        self.pool.failures.failed(self.call, raised, self.timing)

    def answered(self, answer: session.Reply | session.Refusal) -> None:
        """Free the worker and deliver the answer."""
        assert self.slot is not None
        supervisor = self.pool.supervisor
        self.pool.leave_worker(self)
        if isinstance(answer, session.Refusal):
            name_in_log(self.call, answer.error)
            if isinstance(answer.error, TransformFailed):
                answer.error.detail = self.detail
            if isinstance(answer.error, TransformDied):
                self.pool.count_death(self, answer.error.message)
                supervisor.discard(self.slot, answer.error.message)
            else:
                self.pool.note_survival(self)
                supervisor.release(self.slot)
            self.settle(Failure(answer.error))
            return
        self.pool.note_survival(self)
        if len(answer.poem) < LONG_BYTES:
            supervisor.release(self.slot)
            self.settle(answer.poem)
        else:
            self.settle(answer.poem)
            supervisor.release(self.slot)

    def died(self, reason: str) -> None:
        """Fail this job; no other is harmed."""
        self.pool.leave_worker(self)
        message = f"the worker of {self.call.name} {reason}"
        self.pool.count_death(self, message)
        self.settle(Failure(TransformDied(message)))


class WorkerPool:
    """Runs jobs in worker processes, ``size`` at a time. ``spares`` more wait, warm, to replace those that end."""

    log = Logger()

    def __init__(
        self,
        *,
        size: int,
        launcher: Launcher,
        self_test: SelfTest | None,
        limits: Limits,
        clock: IReactorTime,
        history: WorkerHistory | None = None,
        spares: int = 1,
    ) -> None:
        self._size = size
        self.quarantine = Quarantine()
        self._limits = limits
        self._clock = clock
        self.failures = FailureLog(clock)
        self._queue: FairQueue[PoolJob] = FairQueue(
            limits.max_queue,
            max(limits.max_queue_bytes, max(limits.max_request_bytes, limits.max_result_bytes) + JOB_BYTES),
        )
        self._next_dispatch: IDelayedCall | None = None  # when a share that has cost many workers may go on
        self._running: set[PoolJob] = set()
        self._mean_job_s = 0.0
        self._is_stopping = False
        self._history = WorkerHistory() if history is None else history
        self.supervisor = Supervisor(
            count=size + spares,
            launcher=launcher,
            self_test=self_test,
            on_idle=self._dispatch,
            limits=limits,
            clock=clock,
            history=self._history,
        )

    def start(self) -> None:
        """Start the workers."""
        self.supervisor.start()

    # Called by a service.

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,
        caller: Caller = PROGRAM,
        *,
        is_admitted: bool = False,
        timing: RequestTiming | None = None,
    ) -> Deferred[bytes]:
        """Run calls in a worker, now or when one is free; see ``Runner.run``."""
        error = ShuttingDown.not_started() if self._is_stopping else self._quarantined(calls, caller.share, len(poem))
        if error is not None:
            raise error
        job = PoolJob(self, calls, poem, caller, is_admitted, timing)
        for each in self._queue.put(job):
            if each is job:
                raise self._busy(each)
            each.settle(Failure(self._busy(each)))
        if timing is not None:
            timing.waits()
        self._dispatch()
        return job.result

    def has_room(self, reader: Reader) -> None:
        """Go on with the jobs of a reader that had no room for a result."""
        self._queue.has_room(reader)
        self._dispatch()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    @property
    def takes_newcomers(self) -> bool:
        """Whether a job of somebody who has none here would wait, and not be refused."""
        return self._queue.takes_newcomers

    def wind_down(self) -> None:
        """Keep no more workers than the accepted jobs need: no new ones will come."""
        self.supervisor.reduce(max(1, min(self._size, len(self._running) + self.waiting)))

    def stop(self) -> Deferred[None]:
        """Fail every job and kill every worker; fires when no process is left."""
        self._is_stopping = True
        waiting, running = self._queue.clear(), [*self._running]
        self._running.clear()
        if self._next_dispatch is not None:
            self._next_dispatch.cancel()
            self._next_dispatch = None
        stopped = self.supervisor.stop()
        for job in running:
            _stop_timer(job)
            job.settle(Failure(ShuttingDown.interrupted()))
        for job in waiting:
            job.settle(Failure(ShuttingDown.not_started()))
        return stopped

    def _dispatch(self) -> None:
        while len(self._running) < self._size and (job := self._queue.first(self._clock.seconds())) is not None:
            if (error := self._quarantined(job.calls, job.caller.share, job.size_bytes)) is not None:  # since it came
                self._queue.remove(job)
                job.settle(Failure(error))
                continue
            if (slot := self.supervisor.take()) is None:
                return
            self._queue.remove(job)
            self._start(job, slot)
        if self._next_dispatch is None and (wait_s := self._queue.next_s(self._clock.seconds())) is not None:
            self._next_dispatch = self._clock.callLater(wait_s, self._dispatch_again)

    def _dispatch_again(self) -> None:
        self._next_dispatch = None
        self._dispatch()

    def _start(self, job: PoolJob, slot: WorkerSlot) -> None:
        job.slot, job.started_at, job.started_cpu_s = slot, self._clock.seconds(), slot.worker.cpu_s()
        job.result.has_begun, job.charged_s = True, self._queue.started(job)
        self._running.add(job)
        if job.timing is not None:
            job.timing.runs()
        self.begin_step(job)
        slot.run(Spec(tuple(call.step for call in job.calls)), job.poem, job)

    def _quarantined(self, calls: Sequence[Call], share: str, size_bytes: int) -> XformError | None:
        for call in calls:
            wait_s = self.quarantine.wait_s(call.name, self._clock.seconds(), share, size_bytes)
            if wait_s is not None:
                message = f"{call.name} has killed too many workers and is in quarantine"
                return Unavailable(message, retry_after_ms=int(wait_s * 1000) + 1)
        return None

    def _busy(self, job: PoolJob) -> XformError:
        if job.is_admitted:  # without a time to retry, since it has begun
            return Busy("too many requests are waiting, and most of them are yours: the remaining steps were not run")
        later_ms = policy.retry_after_ms(self.waiting, self._size, self._mean_job_s)
        return Busy(f"the queue is full: {self.waiting} requests are waiting; try again later", retry_after_ms=later_ms)

    # Called by jobs.

    def give_up(self, job: PoolJob, why: str) -> None:
        """Take a job out of the queue, or kill the worker that runs it."""
        if self._queue.remove(job):
            return
        if job in self._running and job.slot is not None:
            self.quarantine.undecided(job.call.name, job.caller.share, job.size_bytes)
            self.leave_worker(job)
            self._queue.killed(job, self._clock.seconds())
            self.supervisor.discard(job.slot, why)

    def begin_step(self, job: PoolJob) -> None:
        """Note that a step runs, and start its time limit."""
        self.quarantine.begin(job.call.name, self._clock.seconds(), job.caller.share, job.size_bytes)
        _stop_timer(job)
        limit_s = job.call.entry.transform.timeout_s
        if limit_s is not None:
            job.timer = self._clock.callLater(limit_s, self._expire, job, limit_s)

    def _expire(self, job: PoolJob, limit_s: float) -> None:
        job.timer = None
        self.give_up(job, "took too long")
        job.settle(Failure(took_too_long(job.call.name, limit_s)))

    def leave_worker(self, job: PoolJob) -> None:
        """Note that a job runs no more."""
        self._running.discard(job)
        _stop_timer(job)
        if job.timing is not None:
            job.timing.ends()
        took_s = self._clock.seconds() - job.started_at
        self._queue.ended(job, job.charged_s, took_s)
        self._mean_job_s += (took_s - self._mean_job_s) / 16
        if job.slot is not None and (cpu_s := job.slot.worker.cpu_s() - job.started_cpu_s) > 0:
            self._history.used_cpu(job.caller.share, cpu_s)

    def note_survival(self, job: PoolJob) -> None:
        """Note that the step that runs has left its worker alive."""
        if self.quarantine.survived(job.call.name, job.caller.share, job.size_bytes):
            text = "transform {name} is out of quarantine"
            self.failures.add("out of quarantine", self.log.info, text, name=job.call.name)

    def count_death(self, job: PoolJob, message: str) -> None:
        """Log that the step that runs has killed its worker, and quarantine its transform if it has killed too many."""
        name, plugin = job.call.name, job.call.entry.plugin.label
        now = self._clock.seconds()
        self._history.deaths += 1
        self._queue.killed(job, now)
        text, fields = "transform {name} of plugin {plugin}: {died}{log_of_request}", log_fields(job.timing)
        self.failures.add(f"{name} died", self.log.warn, text, name=name, plugin=plugin, died=message, **fields)
        if (scope := self.quarantine.died(name, now, job.caller.share, job.size_bytes)) is not None:
            text = "transform {name} is in quarantine{scope}: it has killed {deaths} workers"
            self.failures.add("into quarantine", self.log.error, text, name=name, scope=str(scope), deaths=MAX_DEATHS)


def _stop_timer(job: PoolJob) -> None:
    if job.timer is not None:
        job.timer.cancel()
        job.timer = None
