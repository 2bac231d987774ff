"""What a worker runs at a time: one job, a batch of several, or many jobs of one transform on asyncio.

Invariant: every job is settled once, by its own outcome. Where a worker's end leaves open which of its jobs is to
blame, each runs again alone, or, where it must not run twice, is told why it has no result.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from xformd.errors import TransformDied
from xformd.net.deadline import cancel
from xformd.runners import Caller
from xformd.runners.calls import Call, name_in_log, took_too_long, with_detail
from xformd.runners.shares import ONE_BY_ONE, Lane
from xformd.runners.supervisor import WorkerSlot
from xformd.runners.worker_handle import Job
from xformd.spec import Spec
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

if TYPE_CHECKING:
    from xformd.runners.pool import WorkerPool

LONG_BYTES = 64 * 1024
"""A longer result reaches its caller before the worker's next job begins: the caller may have no room for another.
With 40 results of 5 MB that nobody read, a server then grew by 15 MB instead of 25."""

SUSPECT_S, CANCEL_S = 0.1, 1.0  # once a job on asyncio is cancelled, when its worker gets no more jobs, and is killed
BLOCKED_S = 0.5  # if a killed worker's event loop was held for longer, it was blocked; less was on its way
IDLE_S = 60.0  # a worker on asyncio ends when it has had no job for this long


class JobResult(Deferred[bytes]):
    """The result of a job, which knows whether that has begun."""

    has_begun = False


@attrs.define(eq=False)
class PoolJob(Job):
    """Consecutive steps for one worker, from the queue to their result."""

    pool: "WorkerPool"
    calls: Sequence[Call]
    poem: bytes
    caller: Caller
    is_admitted: bool
    timing: RequestTiming | None
    arrived_at: float  # in seconds
    ends_at: float  # when its caller gives up
    lane: Lane = ONE_BY_ONE
    size_bytes: int = attrs.field(init=False)
    result: JobResult = attrs.field(init=False)
    group: "JobGroup | None" = None  # what its worker runs; None while it waits
    id: int = 0  # of the request to its worker
    step: int = 0  # the index of the one that runs
    started_at: float = 0.0  # when it got its worker
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

    # Called by its worker's handle.

    def began(self, step: int) -> None:
        """Note which step runs; its time limit starts now."""
        assert self.group is not None
        if step != self.step + 1 or step >= len(self.calls):
            self.pool.supervisor.kill(self.group.slot, "began a step out of turn")
            return
        self.pool.note_survival(self)
        self.step = step
        self.pool.begin_step(self)

    def raised(self, raised: SafeTraceback) -> None:
        """Log it, unless it comes of being cancelled; the caller gets the refusal that follows."""
        assert self.group is not None
        self.detail = raised.detail
        if self in self.group.jobs or self.group.is_batch:
            self.pool.failures.failed(self.call, raised, None if self.group.is_batch else self.timing)

    def answered(self, answer: session.Reply | session.Refusal) -> None:
        """Deliver the answer, and free its place in the worker."""
        assert self.group is not None
        self.group.answered(self, answer)

    def returned(self) -> None:
        """Run it alone: the batch that it was in has failed."""
        assert self.group is not None
        self.group.returned(self)


def lane_of(calls: Sequence[Call]) -> Lane:
    """Return the lane of a job."""
    call, transform = calls[0], calls[0].entry.transform
    if transform.runs_on_asyncio:
        return Lane(transform.name, most=transform.concurrency, on_asyncio=True)
    if transform.batch is not None:
        return Lane(transform.name, call.step.options, transform.batch, transform.batch_wait_s)
    return ONE_BY_ONE


class JobGroup:
    """One job, or a batch of several, that a worker runs; the worker is free when it has answered all."""

    def __init__(self, pool: "WorkerPool", slot: WorkerSlot, jobs: int) -> None:
        self.pool = pool
        self.slot = slot
        self.jobs: dict[PoolJob, None] = {}  # that have no result yet, and that nobody has given up
        self.is_batch = jobs > 1  # one call for all of them
        self._parts = self._unanswered = jobs  # parts of the worker's time, which are charged
        self._has_failed = False
        self._cpu_s = slot.worker.cpu_s()  # that is accounted for
        slot.group = self

    @property
    def is_idle(self) -> bool:
        """Whether the worker has nothing to do."""
        return not self.jobs

    def start(self, jobs: Sequence[PoolJob]) -> None:
        """Send the worker jobs with the same steps."""
        now, spec = self.pool.seconds(), Spec(tuple(call.step for call in jobs[0].calls))
        requests = []
        for number, job in enumerate(jobs, self.slot.jobs + 2):  # the self-test had 1
            job.group, job.id = self, number
            self.jobs[job] = None
            timeout_ms = _coarse_ms(job.ends_at - now)
            requests.append(session.Request(number, spec, job.poem, timeout_ms))
        self.slot.run(requests, jobs)

    def leave(self, job: PoolJob) -> bool:
        """Note that a job runs no more; return whether it did."""
        if job not in self.jobs:
            return False
        del self.jobs[job]
        cancel(job.timer)
        self.pool.account(job, self._parts, self._used_cpu_s())
        return True

    def stop(self) -> list[PoolJob]:
        """Forget the jobs; return them."""
        jobs = [*self.jobs]
        for job in jobs:
            cancel(job.timer)
        self.jobs.clear()
        return jobs

    def answered(self, job: PoolJob, answer: session.Reply | session.Refusal) -> None:
        """Go on with other jobs, and deliver the answer, unless the job has been given up."""
        if isinstance(answer, session.Refusal) and isinstance(answer.error, TransformDied):
            self._lose(answer.error, job)
            return
        outcome = self._outcome(job, answer) if self.leave(job) else b""
        if isinstance(outcome, bytes) and len(outcome) >= LONG_BYTES:
            job.settle(outcome)
        self._go_on()
        job.settle(outcome)

    def _outcome(self, job: PoolJob, answer: session.Reply | session.Refusal) -> bytes | Failure:
        self.pool.note_survival(job)
        if isinstance(answer, session.Reply):
            return answer.poem
        return Failure(name_in_log(job.call, with_detail(answer.error, job.detail)))

    def returned(self, job: PoolJob) -> None:
        """Run a member of a batch alone: the call has raised something, which may be another's fault."""
        if not self.is_batch:
            self.pool.supervisor.kill(self.slot, "returned a job that was in no batch")
            return
        if not self._has_failed:
            self._has_failed = True
            self.pool.note_failed_batch(job, self._parts, "failed")
        if self.leave(job):
            self.pool.run_again([job], ONE_BY_ONE)
        self._go_on()

    def expired(self, job: PoolJob, limit_s: float) -> None:
        """End a job whose step has exceeded its time limit; run the members of a batch one by one."""
        if self.is_batch:
            self.pool.note_failed_batch(job, self._parts, f"took longer than its {limit_s:g} s")
            self._run_apart("took too long")
        else:
            self.give_up(job, "took too long")
            job.settle(Failure(took_too_long(job.call.name, limit_s)))

    def give_up(self, job: PoolJob, why: str) -> None:
        """Let a batch go on for the others; without any, kill the worker."""
        self.pool.quarantine.undecided(job.call.name, job.caller.share, job.size_bytes)
        if self.leave(job) and not self.jobs:
            self.pool.forget(self)
            self.pool.charge_worker(job)
            self.pool.supervisor.discard(self.slot, why)

    def died(self, reason: str) -> None:
        """Fail the job, or run the members of a batch one by one: the worker has ended."""
        first = next(iter(self.jobs))
        self._lose(TransformDied(f"the worker of {first.call.name} {reason}"), first)

    def _lose(self, error: TransformDied, job: PoolJob) -> None:
        if self.is_batch:
            self.pool.note_death(job, f"{error.message}; its batch of {self._parts} runs one by one", is_to_blame=False)
            self._run_apart(error.message)
            return
        self.leave(job)
        self.pool.forget(self)
        self.pool.note_death(job, error.message)
        self.pool.supervisor.discard(self.slot, error.message)
        job.settle(Failure(error))

    def _run_apart(self, why: str) -> None:
        jobs = [job for job in [*self.jobs] if self.leave(job)]
        self.pool.forget(self)
        self.pool.run_again(jobs, ONE_BY_ONE)
        self.pool.supervisor.discard(self.slot, why)

    def _go_on(self) -> None:
        self._unanswered -= 1
        if not self._unanswered:
            self.pool.forget(self)
            self.pool.supervisor.release(self.slot)

    def _used_cpu_s(self) -> float:
        return (self.slot.worker.cpu_s() - self._cpu_s) / self._parts


class AsyncioJobs(JobGroup):
    """Jobs of one transform on asyncio, which come and go; the worker runs no others until it ends."""

    def __init__(self, pool: "WorkerPool", slot: WorkerSlot, lane: Lane) -> None:
        super().__init__(pool, slot, lane.most)
        self.is_batch = False
        self.lane = lane
        self._why_closing = ""  # with these jobs; then it takes no more
        self._cancelled: dict[PoolJob, IDelayedCall] = {}  # given up, and not ended yet
        self._suspects: set[PoolJob] = set()  # those that do not end at once: they may block the event loop
        self._unheeding: PoolJob | None = None  # because of which the worker is killed
        self._idle_timer: IDelayedCall | None = None

    @property
    def is_idle(self) -> bool:
        """Whether the worker has nothing to do."""
        return not (self.jobs or self._cancelled)

    @property
    def is_open(self) -> bool:
        """Whether the worker takes jobs, if not too many."""
        return not (self._why_closing or self._suspects or self.slot.is_disconnected)

    @property
    def has_room(self) -> bool:
        """Whether the worker takes another job now."""
        return self.is_open and len(self.jobs) + len(self._cancelled) < self.lane.most

    def start(self, jobs: Sequence[PoolJob]) -> None:
        """Send the worker another job."""
        cancel(self._idle_timer)
        self.pool.supervisor.occupy(self.slot)
        super().start(jobs)

    def stop(self) -> list[PoolJob]:
        """Forget the jobs; return them."""
        cancel(self._idle_timer, *self._cancelled.values())
        self._cancelled.clear()
        return super().stop()

    def end(self, why: str) -> None:
        """End the worker, which is idle, in order."""
        self.stop()
        self.pool.forget(self)
        self.pool.supervisor.discard(self.slot, why, in_order=True)
        self.pool.dispatch()

    def answered(self, job: PoolJob, answer: session.Reply | session.Refusal) -> None:
        """Note the end of a job that may be cancelled."""
        cancel(self._cancelled.pop(job, None))
        self._suspects.discard(job)
        super().answered(job, answer)

    def give_up(self, job: PoolJob, why: str) -> None:  # noqa: ARG002 - as a batch's
        """Cancel the job; if it does not end soon, kill the worker."""
        self.pool.quarantine.undecided(job.call.name, job.caller.share, job.size_bytes)
        if self.leave(job):
            self._cancelled[job] = self.pool.call_later(SUSPECT_S, self._suspect, job)
            self.slot.worker.cancel(job.id)

    def _suspect(self, job: PoolJob) -> None:
        self._suspects.add(job)
        self._cancelled[job] = self.pool.call_later(CANCEL_S - SUSPECT_S, self._not_heeded, job)
        self.pool.dispatch()  # elsewhere

    def _not_heeded(self, job: PoolJob) -> None:
        if not self.slot.is_disconnected:  # it is being killed already
            self._unheeding = job
            self.pool.supervisor.kill(self.slot, f"{job.call.name} went on after it was cancelled")

    def died(self, reason: str) -> None:
        """Blame the job that has cost the worker, if that is known, and settle the others or have them run again."""
        running_id, held_s = self.slot.worker.last_step
        there = {job.id: job for job in (*self.jobs, *self._cancelled)}
        running, name = there.get(running_id), self.lane.name
        if self._unheeding is None:
            is_alone = len(there) == 1
            culprit = next(iter(there.values())) if is_alone else running
            self._end_all(f"the worker of {name} {reason}", culprit, is_certain=is_alone)
        elif held_s < BLOCKED_S:
            self._end_all(f"{name} went on for {CANCEL_S:g} s after it was cancelled", self._unheeding)
        else:
            advice = "await what takes time, or run it with asyncio.to_thread"
            message = f"{name} blocked the event loop of its worker for {held_s:.1f} s: {advice}"
            self._end_all(message, running, is_certain=running is not None)

    def _lose(self, error: TransformDied, job: PoolJob) -> None:
        self._end_all(error.message, job, is_certain=not {*self.jobs, *self._cancelled} - {job})

    def _end_all(self, message: str, culprit: PoolJob | None, *, is_certain: bool = True) -> None:
        suspects = [*self._cancelled, *self.jobs] if culprit is None else [culprit]
        jobs = [job for job in [*self.jobs] if self.leave(job)]
        self.stop()
        self.pool.forget(self)
        again = [job for job in jobs if job.call.entry.transform.deterministic and not (is_certain and job is culprit)]
        for job in suspects[:1]:
            is_to_blame = culprit is not None and culprit not in again  # or else it will show
            others = "" if is_certain else f", with {len(jobs)} requests under way"
            self.pool.note_death(job, message + others, is_to_blame=is_to_blame)
        self.pool.run_again(again, self.lane if is_certain else attrs.evolve(self.lane, most=1, is_alone=True))
        self.pool.supervisor.discard(self.slot, message)
        self.pool.dispatch()
        for job in jobs:
            if job not in again:
                others = ", because of another request" if is_certain and job is not culprit else ""
                job.settle(Failure(TransformDied(message + others)))

    def _go_on(self) -> None:
        self._why_closing = self._why_closing or self.pool.supervisor.why_worn(self.slot)
        self.pool.dispatch()
        if self.is_idle:
            self.slot.state = "idle"
            if why := self._why_closing or self.pool.why_not_needed or self.lane.is_alone * "has done its job":
                self.end(why)
            else:
                cancel(self._idle_timer)
                self._idle_timer = self.pool.call_later(IDLE_S, self.end, "has had nothing to do")

    def _used_cpu_s(self) -> float:
        before, self._cpu_s = self._cpu_s, self.slot.worker.cpu_s()
        return self._cpu_s - before  # since the last job ended


def _coarse_ms(seconds: float) -> int:
    """Return milliseconds in coarse steps, so that workers have most requests decoded already.

    They are rounded up: a call whose own timeout is what is left must not fail before the request's ends.
    """
    step_ms = 100 if seconds > 1 else 10
    return max(1, math.ceil(1000 * seconds / step_ms)) * step_ms
