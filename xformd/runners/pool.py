"""A pool of worker processes behind a bounded, fair queue.

Invariant: a worker runs one job at a time, or those that may share it, every job is answered once, and whatever
happens to one worker, no other job is harmed. Jobs on asyncio have workers of their own, besides those of all others.
"""

from collections.abc import Sequence
from math import inf

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Busy, ShuttingDown, Unavailable, XformError
from xformd.limits import MIB, Limits
from xformd.net.deadline import cancel
from xformd.runners import PROGRAM, Caller, Reader, policy
from xformd.runners.calls import Call
from xformd.runners.groups import AsyncioJobs, JobGroup, PoolJob, lane_of
from xformd.runners.launcher import Launcher
from xformd.runners.policy import MAX_DEATHS, Quarantine
from xformd.runners.shares import JOB_BYTES, FairQueue, Lane
from xformd.runners.supervisor import SelfTest, Supervisor
from xformd.telemetry.rate_limited import FailureLog
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.timing import RequestTiming, log_fields

MAX_BATCH_BYTES = 16 * MIB  # of poems in a batch: they are in memory once more while they are sent, and in the worker


@attrs.define(eq=False, slots=False, kw_only=True)
class WorkerPool:
    """Runs jobs in worker processes, ``size`` at a time. ``spares`` more wait, warm, to replace those that end.

    Jobs on asyncio run in more workers, as many as they need and ``policy`` allows.
    """

    log = Logger()

    size: int
    _launcher: Launcher
    _self_test: SelfTest | None
    _limits: Limits
    _clock: IReactorTime
    _history: WorkerHistory = attrs.field(factory=WorkerHistory)
    _spares: int = 1

    def __attrs_post_init__(self) -> None:
        limits, clock = self._limits, self._clock
        self.quarantine = Quarantine()
        self.seconds, self.call_later = clock.seconds, clock.callLater
        self.failures = FailureLog(clock)
        self._queue: FairQueue[PoolJob] = FairQueue(
            limits.max_queue,
            max(limits.max_queue_bytes, max(limits.max_request_bytes, limits.max_result_bytes) + JOB_BYTES),
            lane_of=lambda job: job.lane,
        )
        self._next_dispatch: IDelayedCall | None = None  # when a batch waits no longer, or a costly share may go on
        self._running: set[JobGroup] = set()  # all but those on asyncio
        self._on_asyncio: dict[Lane, list[AsyncioJobs]] = {}
        self._mean_job_s = 0.0
        self.why_not_needed = ""  # idle workers on asyncio; empty while they are
        self._may_shrink = False  # there have been more workers on asyncio
        self._is_stopping = False
        self._count = self.size + self._spares
        self.supervisor = Supervisor(
            count=self._count,
            launcher=self._launcher,
            self_test=self._self_test,
            on_idle=self.dispatch,
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
        timeout_s: float | None = None,
    ) -> Deferred[bytes]:
        """Run calls in a worker, now or when one is free; see ``Runner.run``."""
        now, limit_s = self.seconds(), self._limits.transform_timeout_s
        ends_at = now + (limit_s if timeout_s is None else min(limit_s, timeout_s))
        job = PoolJob(self, calls, poem, caller, is_admitted, timing, now, ends_at, lane_of(calls))
        if (error := ShuttingDown.not_started() if self._is_stopping else self._quarantined(job)) is not None:
            raise error
        for each in self._queue.put(job):
            if each is job:
                raise self._busy(each)
            each.settle(Failure(self._busy(each)))
        if timing is not None:
            timing.waits()
        self.dispatch()
        return job.result

    def has_room(self, reader: Reader) -> None:
        """Go on with the jobs of a reader that had no room for a result."""
        self._queue.has_room(reader)
        self.dispatch()

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
        self.why_not_needed = "is not needed any more"
        for group in self._groups_on_asyncio():
            if group.is_idle:
                group.end(self.why_not_needed)
        self._may_shrink = True
        self._resize()

    def stop(self) -> Deferred[None]:
        """Fail every job and kill every worker; fires when no process is left."""
        self._is_stopping = True
        waiting, groups = self._queue.clear(), [*self._running, *self._groups_on_asyncio()]
        self._running.clear()
        self._on_asyncio.clear()
        cancel(self._next_dispatch)
        self._next_dispatch = None
        running = [job for group in groups for job in group.stop()]
        stopped = self.supervisor.stop()
        for job in running:
            job.settle(Failure(ShuttingDown.interrupted()))
        for job in waiting:
            job.settle(Failure(ShuttingDown.not_started()))
        return stopped

    # Whose turn it is.

    def dispatch(self) -> None:
        """Start what can be started."""
        if not (self._queue.lanes or self._may_shrink):
            return  # as after most jobs on asyncio: with fewer of them nothing more is needed
        now = self.seconds()
        while lanes := {lane for lane in self._queue.lanes if self._is_open(lane, now)}:
            if (first := self._queue.first(now, lanes)) is None:
                break
            self._start(first, now)
        waiting = self._queue.lanes
        if self._may_shrink or self._on_asyncio or any(lane.on_asyncio for lane in waiting):
            self._resize()
        if waiting:
            self._wake(now)

    def _start(self, first: PoolJob, now: float) -> None:
        group: JobGroup | None = self._place_on_asyncio(first.lane) if first.lane.on_asyncio else None
        jobs, refused = self._take(first, now)
        if jobs and group is None:
            group = JobGroup(self, self.supervisor.take(), len(jobs))
            self._running.add(group)
        if jobs and group is not None:
            group.start(jobs)
        for job, error in refused:
            job.settle(Failure(error))

    def _is_open(self, lane: Lane, now: float) -> bool:
        """Whether a job of a lane could begin."""
        if lane.on_asyncio:
            return any(group.has_room for group in self._on_asyncio.get(lane, ())) or self._may_add(lane)
        is_free = len(self._running) < self.size and self.supervisor.idle > 0
        return is_free and self._waits_until(lane) <= now

    def _take(self, job: PoolJob, now: float) -> tuple[list[PoolJob], list[tuple[PoolJob, XformError]]]:
        """Take a job from the queue, or as many of its batch as wait; return also what is in quarantine since it came.

        They begin one by one: of a transform that is on trial only the first does.
        """
        jobs, refused, lane, size_bytes = [], [], job.lane, 0
        most = 1 if lane.on_asyncio else lane.most
        each: PoolJob | None = job
        while each is not None:
            self._queue.remove(each)
            if (error := self._quarantined(each)) is not None:
                refused.append((each, error))
            else:
                self._begin(each, now)
                jobs.append(each)
                size_bytes += each.size_bytes
            is_full = len(jobs) >= most or size_bytes > MAX_BATCH_BYTES
            each = None if is_full else self._queue.first(now, {lane})
        return jobs, refused

    def _begin(self, job: PoolJob, now: float) -> None:
        job.started_at, job.charged_s = now, self._queue.started(job)
        job.result.has_begun = True
        self.begin_step(job)

    def _waits_until(self, lane: Lane) -> float:
        """Return until when a batch that is not full waits for more members."""
        waiting = self._queue.lanes[lane]
        return next(iter(waiting)).arrived_at + lane.wait_s if len(waiting) < lane.most else 0.0

    def _wake(self, now: float) -> None:
        """Dispatch again when a batch or a share need wait no longer."""
        ends = (self._waits_until(lane) for lane in self._queue.lanes if not lane.on_asyncio)
        at = min((end for end in ends if end > now), default=inf)
        if self._next_dispatch is not None:
            if at < self._next_dispatch.getTime():
                self._next_dispatch.reset(at - now)
            return
        if (wait_s := self._queue.next_s(now)) is not None:
            at = min(at, now + wait_s)
        if at < inf:
            self._next_dispatch = self.call_later(at - now, self._dispatch_again)

    def _dispatch_again(self) -> None:
        self._next_dispatch = None
        self.dispatch()

    # Workers on asyncio.

    def _groups_on_asyncio(self) -> list[AsyncioJobs]:
        return [group for groups in self._on_asyncio.values() for group in groups]

    def _place_on_asyncio(self, lane: Lane) -> AsyncioJobs:
        """Return the worker for a job: a new one if there should be more of them, else that with the fewest jobs."""
        if self._may_add(lane):
            group = AsyncioJobs(self, self.supervisor.take(), lane)
            self._on_asyncio.setdefault(lane, []).append(group)
            return group
        return min((each for each in self._on_asyncio[lane] if each.has_room), key=lambda each: len(each.jobs))

    def _may_add(self, lane: Lane) -> bool:
        """Whether a lane gets an idle worker: those that other jobs need are not for it."""
        return self._lacking(lane) > 0 and self.supervisor.idle > max(0, self._needed - len(self._running))

    @property
    def _needed(self) -> int:
        """How many workers the jobs need that are not on asyncio."""
        if self._spares and not self.why_not_needed:
            return self.size
        waiting = sum(len(jobs) for lane, jobs in self._queue.lanes.items() if not lane.on_asyncio)
        return min(self.size, len(self._running) + waiting)

    def _lacking(self, lane: Lane) -> int:
        """Return how many workers a lane should have besides those that it has: the first of each lane is allowed."""
        groups = [group for group in self._on_asyncio.get(lane, ()) if group.is_open]
        jobs = len(self._queue.lanes.get(lane, ())) + sum(len(group.jobs) for group in groups)
        wanted = policy.workers_on_asyncio(jobs, lane.most, self.size) - len(groups)
        return max(0, min(wanted, self._room if groups else max(1, self._room)))

    @property
    def _room(self) -> int:
        """How many more workers there may be."""
        return policy.max_workers_on_asyncio(self.size) - len(self._groups_on_asyncio())

    def _resize(self) -> None:
        """Have as many workers as are needed; fewer than before only when one on asyncio has ended."""
        waiting = [lane for lane in self._queue.lanes if lane.on_asyncio]
        for lane in waiting:
            if self._room <= 0 and not self._is_open(lane, 0):
                self._end_idle(lane)
        firsts = sum(not any(group.is_open for group in self._on_asyncio.get(lane, ())) for lane in waiting)
        lacking = sum(map(self._lacking, {*waiting, *self._on_asyncio}))
        spares = 0 if self.why_not_needed else self._spares
        others = len(self._groups_on_asyncio()) + min(lacking, max(self._room, firsts))
        count = max(1, self._needed + spares + others)
        count = count if self._may_shrink else max(count, self._count)
        self._may_shrink = bool(self.why_not_needed)
        if count != self._count:
            self._count = count
            self.supervisor.resize(count)

    def _end_idle(self, lane: Lane) -> None:
        """End a worker of another lane that has nothing to do, to make room for one of this lane."""
        for other, groups in self._on_asyncio.items():
            idle = next((group for group in groups if group.is_idle), None)
            if other != lane and idle is not None:
                idle.end("is not needed any more")
                return

    # Called by jobs and their groups.

    def _quarantined(self, job: PoolJob) -> XformError | None:
        for call in job.calls:
            wait_s = self.quarantine.wait_s(call.name, self.seconds(), job.caller.share, job.size_bytes)
            if wait_s is not None:
                message = f"{call.name} has killed too many workers and is in quarantine"
                return Unavailable(message, retry_after_ms=int(wait_s * 1000) + 1)
        return None

    def _busy(self, job: PoolJob) -> XformError:
        if job.is_admitted:  # without a time to retry, since it has begun
            return Busy("too many requests are waiting, and most of them are yours: the remaining steps were not run")
        later_ms = policy.retry_after_ms(self.waiting, self.size, self._mean_job_s)
        return Busy(f"the queue is full: {self.waiting} requests are waiting; try again later", retry_after_ms=later_ms)

    def give_up(self, job: PoolJob, why: str) -> None:
        """Take a job out of the queue, or end it where it runs."""
        if not self._queue.remove(job) and job.group is not None:
            job.group.give_up(job, why)
        job.poem = b""  # its worker may go on for a while

    def run_again(self, jobs: Sequence[PoolJob], lane: Lane) -> None:
        """Queue jobs again whose worker was lost, or whose batch has failed; they are not refused any more."""
        gone: list[PoolJob] = []
        for job in jobs:
            self.quarantine.undecided(job.call.name, job.caller.share, job.size_bytes)
            job.group, job.lane, job.is_admitted, job.detail = None, lane, True, ""
            if job.timing is not None:
                job.timing.waits()
            gone += self._queue.put(job)
        for job in gone:  # they may do anything, so all others are queued
            job.settle(Failure(self._busy(job)))

    def forget(self, group: JobGroup) -> None:
        """Note that a worker has no jobs, or takes no more."""
        self._running.discard(group)
        for lane, groups in [*self._on_asyncio.items()]:
            if group in groups:
                groups.remove(group)
                self._may_shrink = True
                if not groups:
                    del self._on_asyncio[lane]

    def begin_step(self, job: PoolJob) -> None:
        """Note that a step runs, and start its time limit."""
        if job.timing is not None:
            job.timing.runs(job.call.name, in_worker=True)
        self.quarantine.begin(job.call.name, self.seconds(), job.caller.share, job.size_bytes)
        cancel(job.timer)
        limit_s = job.call.entry.transform.timeout_s
        if limit_s is not None:
            job.timer = self.call_later(limit_s, self._expire, job, limit_s)

    def _expire(self, job: PoolJob, limit_s: float) -> None:
        if job.group is not None:
            job.group.expired(job, limit_s)

    def account(self, job: PoolJob, parts: int, cpu_s: float) -> None:
        """Charge a job that runs no more: for its part of its worker's time, and for what it has used of the CPU."""
        if job.timing is not None:
            job.timing.ends()
        took_s = (self.seconds() - job.started_at) / parts
        self._queue.ended(job, job.charged_s, took_s)
        self._mean_job_s += (took_s - self._mean_job_s) / 16
        if cpu_s > 0:
            self._history.used_cpu(job.caller.share, cpu_s)

    def charge_worker(self, job: PoolJob) -> None:
        """Charge a job for its worker."""
        self._queue.killed(job, self.seconds())

    def note_survival(self, job: PoolJob) -> None:
        """Note that the step that runs has left its worker alive."""
        if self.quarantine.survived(job.call.name, job.caller.share, job.size_bytes):
            text = "transform {name} is out of quarantine"
            self.failures.add("out of quarantine", self.log.info, text, name=job.call.name)

    def note_death(self, job: PoolJob, message: str, *, is_to_blame: bool = True) -> None:
        """Log that a worker has died; quarantine the transform of the job to blame if it has killed too many."""
        self._history.deaths += 1
        name, plugin, share = job.call.name, job.call.entry.plugin.label, job.caller.share
        text, fields = "transform {name} of plugin {plugin}: {died}{log_of_request}", log_fields(job.timing)
        if not is_to_blame:
            fields = log_fields(None)
        self.failures.add(f"{name} died", self.log.warn, text, name=name, plugin=plugin, died=message, **fields)
        if not is_to_blame:
            return
        self.charge_worker(job)
        if (scope := self.quarantine.died(name, self.seconds(), share, job.size_bytes)) is not None:
            text = "transform {name} is in quarantine{scope}: it has killed {deaths} workers"
            self.failures.add("into quarantine", self.log.error, text, name=name, scope=str(scope), deaths=MAX_DEATHS)

    def note_failed_batch(self, job: PoolJob, size: int, what: str) -> None:
        """Log what became of a batch of which a job is a member."""
        text = "transform {name}: a batch of {size} {what}; they run one by one"
        self.failures.add(f"batch of {job.call.name}", self.log.info, text, name=job.call.name, size=size, what=what)
