"""The jobs of a server: from their start to their end, and from one server to the next.

All of a job but its poem and its result is in memory too; what is on disk, a thread of the reactor's reads and writes,
one thing at a time. Invariant: a job of which its client knows is on disk. It ends with a result or an error, once, or
is there for the next server: that runs it again if it had not begun, or is deterministic; any other is lost.
"""

import hashlib
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.access.rules import ANONYMOUS
from xformd.counting import CountingService
from xformd.errors import (
    Busy,
    Cancelled,
    ConfigError,
    ShuttingDown,
    TooLarge,
    TransformDied,
    Unavailable,
    XformError,
)
from xformd.jobs.store import Job, JobStore
from xformd.plugins.registry import Registry
from xformd.runners import Caller
from xformd.runners.generation import internal_error
from xformd.service import RegistryService
from xformd.spec import Spec, parse
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.timing import RequestTiming

LOOK_S = 60.0  # how often to look for what has expired, at least
RETRY_MS = 5_000  # when a client may ask again for which there is no room
AGAIN_AT_ONCE = 16  # how many jobs of an earlier server wait for workers or run: the others' poems stay on disk

LOST = TransformDied("the server ended before this job did: it may have run, in part or as a whole")


@attrs.define(eq=False)
class _Active:
    """A job that has not ended."""

    job: Job
    timing: RequestTiming = attrs.field(factory=RequestTiming)
    poem: bytes = b""
    work: Deferred[bytes] | None = None
    is_accepted: bool = False  # its client may know of it
    headers: bytes = b""
    _waiting: set[Deferred[None]] = attrs.field(factory=set)

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires when it is accepted, or has ended."""
        waiting: Deferred[None] = Deferred(self._waiting.discard)
        self._waiting.add(waiting)
        return waiting

    def changed(self) -> None:
        """Tell whoever waits."""
        waiting, self._waiting = self._waiting, set()
        for each in waiting:
            each.callback(None)

    def accept(self) -> None:
        """Note that its client may know of it."""
        if not self.is_accepted:
            self.is_accepted = True
            self.changed()


class JobManager:
    """Starts jobs, and keeps them until they expire.

    Args:
        folder: where they are kept.
        node: names this server in their addresses.
        service: has the limits that hold now.
        service_of: returns what runs the jobs of an identity; raises an ``XformError`` if there is no such any more.
        headers_of: returns the lines of headers of a result.
        reactor: the reactor, or a clock in its place.
        in_thread: runs a function in a thread, and returns a Deferred of what it returns.

    Attributes:
        by_id: all jobs.
        by_key: those with an ``Idempotency-Key``, by their owner and that.
    """

    log = Logger()

    def __init__(
        self,
        folder: Path,
        node: str,
        service: RegistryService,
        service_of: Callable[[str], CountingService],
        headers_of: Callable[[Spec, Registry], bytes],
        reactor: Any,
        in_thread: Callable[..., Deferred[Any]] | None = None,
    ) -> None:
        self.node = node
        self.by_id: dict[str, Job] = {}
        self.by_key: dict[tuple[str, str], Job] = {}
        self._store = JobStore(folder.absolute())  # twistd may change to another
        self._service, self._service_of, self._headers_of = service, service_of, headers_of
        self._clock = reactor
        self._in_thread = in_thread or partial(deferToThreadPool, reactor, reactor.getThreadPool())
        self._disk_is_free = DeferredLock()
        self._disk_bytes = 0  # that wait to be written
        self._active: dict[str, _Active] = {}
        self._working: dict[_Active, None] = {}
        self._unremoved: set[str] = set()
        self._is_stopping = False
        self._emptied: Deferred[None] = Deferred()
        self._look: Any = None
        self._limited_log = RateLimitedLog(reactor)
        self._set_time = time.time() - reactor.seconds()  # later changes of the clock move no time

    # Its life.

    async def open(self) -> None:
        """Read what an earlier server has left; raise ``ConfigError`` if the folder cannot be used."""
        for job in await self._disk(self._store.open, self._now(), self._service.limits.job_keep_s, LOST):
            self._add(job)
            if job.ended_at is None:
                self._active[job.id] = _Active(job, is_accepted=True)
        self._expire()

    def resume(self) -> None:
        """Run what an earlier server has left to be run, now that there are transforms."""
        waiting = deque(self._active.values())
        for _ in range(AGAIN_AT_ONCE):
            self._spawn(self._resume_all(waiting))

    async def stop(self) -> None:
        """Leave to the next server what has not begun; give the others the grace period, and then end them."""
        self._is_stopping = True
        if self._look is not None:
            self._look.cancel()
        self._cancel(lambda active: not active.timing.has_begun)
        if self._working:
            await self._emptied.addTimeout(self._service.limits.shutdown_grace_s, self._clock, lambda *_: None)
        self._cancel(lambda _: True)

    async def close(self) -> None:
        """Let go of the folder, once everything is written."""
        await self._disk(self._store.close)

    def _cancel(self, is_wanted: Callable[[_Active], bool]) -> None:
        for active in reversed([*self._working]):  # newest first: an older one could let a newer one begin
            if active.work is not None and is_wanted(active):
                active.work.cancel()

    @property
    def states(self) -> Mapping[str, int]:
        """How many jobs there are, by their state."""
        counts = Counter(map(self.state, self.by_id.values()))
        return {state: counts[state] for state in ("queued", "running", "done", "failed")}

    # What its clients want.

    def digest(self, spec: Spec, poem: bytes) -> Deferred[bytes]:
        """Return a Deferred of what tells this request from others: of 10 MiB it takes up to 30 ms."""
        return self._in_thread(lambda: hashlib.sha256(b"%b\n%b" % (str(spec).encode(), poem)).digest())

    def state(self, job: Job) -> str:
        """Return ``queued``, ``running``, ``done`` or ``failed``."""
        active = self._active.get(job.id)
        if active is None:
            return "queued" if job.ended_at is None else "failed" if job.error is not None else "done"
        return "running" if active.timing.has_begun else "queued"

    def start(
        self, service: CountingService, poem: bytes, timing: RequestTiming, timeout_s: float | None, **fields: Any
    ) -> Job:
        """Start a job, for whose acceptance its client waits; raise ``Busy`` or ``TooLarge`` if there is no room."""
        job = Job(id=secrets.token_hex(16), created_at=self._now(), **fields)
        job.size_bytes = len(poem) if job.is_repeatable else 0
        self._check_room(job, len(poem))
        self._add(job)
        ids = RequestTiming(timing.request_id, traceparent=timing.traceparent)
        active = self._active[job.id] = _Active(job, ids, poem)
        self._spawn(self._start(active, service, timeout_s))
        return job

    async def accepted(self, job: Job) -> None:
        """Wait until a job is on its way; raise its error if it cannot be started."""
        while (active := self._active.get(job.id)) is not None and not active.is_accepted:
            await active.wait()
        if job.id not in self.by_id:
            raise job.error or Unavailable("the job was deleted before it began")

    async def ended(self, job: Job, wait_s: float | None) -> None:
        """Wait until a job has ended, or was deleted, for no longer than this; None waits as long as it takes."""
        if (active := self._active.get(job.id)) is not None:
            changed = active.wait()
            await (changed if wait_s is None else changed.addTimeout(wait_s, self._clock, lambda *_: None))

    def read(self, job: Job) -> Deferred[bytes]:
        """Return a Deferred of the result of a job that is done; it fails with ``LookupError`` if that is gone."""
        return self._disk(self._store.read, job.id)

    def forget(self, job: Job) -> None:
        """Forget a job, and kill it if it runs."""
        if self.by_id.pop(job.id, None) is None:
            return
        if self.by_key.get((job.owner, job.key)) is job:
            del self.by_key[job.owner, job.key]
        if (active := self._active.pop(job.id, None)) is not None:
            if active.work is not None:
                active.work.cancel()
            active.changed()
        self._remove({job.id})

    # What there is room for.

    def _check_room(self, job: Job, poem_bytes: int) -> None:
        """Raise an error unless there is as much room left for all others as whoever starts a job has taken then."""
        limits, needed = self._service.limits, job.size_bytes
        own, others = self._kept_bytes(job)
        if needed > limits.max_jobs_bytes // 2:
            raise TooLarge(f"the poem has {needed} bytes; a job keeps at most {limits.max_jobs_bytes // 2} bytes")
        if len(own) >= limits.max_jobs - len(self.by_id):
            reason = f"you have {len(own)} jobs here, and no more are left for others (max_jobs)"
        elif 2 * sum(own) + needed > limits.max_jobs_bytes - sum(others):
            reason = f"your jobs hold {sum(own)} bytes, and no more are left for others (max_jobs_bytes)"
        elif self._disk_bytes + poem_bytes > max(limits.max_queue_bytes, poem_bytes):
            reason = "the disk is slow, and too much waits to be written"
        else:
            return
        raise Busy(f"{reason}: DELETE jobs, or try again later", retry_after_ms=RETRY_MS)

    def _add(self, job: Job) -> None:
        self.by_id[job.id] = job
        if job.key:
            self.by_key[job.owner, job.key] = job

    def _kept_bytes(self, new: Job) -> tuple[list[int], list[int]]:
        """Return the size of each job of whoever pays for this one, and of each of all others; without its own."""
        own: list[int] = []
        others: list[int] = []
        for job in self.by_id.values():
            if job is not new:
                (own if _payer(job) == _payer(new) else others).append(job.size_bytes)
        return own, others

    def _expire(self) -> None:
        keep_s = self._service.limits.job_keep_s
        self._look = self._clock.callLater(min(LOOK_S, keep_s), self._expire)
        for job in [*self.by_id.values()]:
            if job.ended_at is not None and job.ended_at <= self._now() - keep_s:
                self.forget(job)
        if self._unremoved:
            unremoved, self._unremoved = self._unremoved, set()
            self._remove(unremoved)

    def _now(self) -> float:
        now: float = self._set_time + self._clock.seconds()
        return now

    # The disk.

    def _disk(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Have a thread do something, after what it does already; only the wait for it can be cancelled.

        An error of the disk is logged, and becomes what its client is told.
        """
        done: Deferred[Any] = Deferred()
        size_bytes = sum(len(each) for each in arguments if isinstance(each, bytes))
        self._disk_bytes += size_bytes

        def end(outcome: Any) -> Any:
            self._disk_bytes -= size_bytes
            if not isinstance(outcome, Failure) or outcome.check(LookupError, ConfigError):
                return outcome
            message = "jobs cannot be kept on disk: {reason}"
            self._limited_log.add("disk", self.log.error, message, reason=outcome.getErrorMessage())
            advice = "ask for the result itself, or try again later"
            return Failure(Unavailable(f"the server cannot keep jobs now: {advice}", retry_after_ms=RETRY_MS))

        def begin() -> Any:
            if done.called and work == self._store.read:  # whoever wanted it has left, and others wait for the disk
                raise LookupError
            return self._in_thread(work, *arguments)

        self._disk_is_free.run(begin).addBoth(end).chainDeferred(done)
        return done

    def _remove(self, job_ids: set[str]) -> None:
        # A disk that is full has no room for the journal either.
        self._disk(self._store.remove, job_ids).addErrback(lambda _: self._unremoved.update(job_ids))

    # The way of a job.

    def _spawn(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(lambda failure: self.log.failure("a job failed", failure))

    async def _start(self, active: _Active, service: CountingService, timeout_s: float | None) -> None:
        job = active.job
        try:
            try:
                await self._disk(self._store.add, job, active.poem if job.is_repeatable else None)
                await service.turns.next_turn(job.share, None)
                if self._is_stopping:
                    raise ShuttingDown.not_started()
            except XformError as error:
                raise service.refused(error) from None
            if job.id in self._active:
                await self._end(active, None, await self._run(active, service, timeout_s))
        except XformError as error:
            if active.is_accepted:
                await self._end(active, error)
            else:
                job.error = error
                self.forget(job)

    async def _run(self, active: _Active, service: CountingService, timeout_s: float | None = None) -> bytes:
        """Run a job; raise an ``XformError``. Its client is told of it once it waits for a worker, or has begun."""
        job = active.job
        try:
            spec, caller = parse(job.spec), Caller(job.share)
            active.headers = self._headers_of(spec, service.registry)
            work = service.xform(spec, active.poem, timeout_s=timeout_s, caller=caller, timing=active.timing)
            if isinstance(work, bytes):
                return work
            self._working[active], active.work = None, work
            active.accept()
            return await work
        except XformError:
            raise
        except Exception:
            raise internal_error(Failure(), active.timing) from None
        finally:
            active.work = None
            self._working.pop(active, None)
            if active.timing.has_begun:
                active.accept()

    async def _end(self, active: _Active, error: XformError | None, result: bytes = b"") -> None:
        """Keep the outcome of a job, or leave the job to the next server."""
        job, limits = active.job, self._service.limits
        is_cut = self._is_stopping and isinstance(error, Cancelled | ShuttingDown)
        own, others = self._kept_bytes(job)
        left_bytes = max(0, min(limits.max_jobs_bytes // 2, limits.max_jobs_bytes - 2 * sum(own) - sum(others)))
        if len(result) > left_bytes:
            size = f"the result has {len(result)} bytes"
            error = TooLarge(f"{size}; your jobs may keep {left_bytes} more (max_jobs_bytes)")
        if error is not None:
            result, active.headers = b"", b""
        try:
            if job.id not in self._active:
                pass  # it was deleted
            elif is_cut and not active.timing.has_begun and not job.is_repeatable:
                await self._disk(self._store.keep_poem, job.id, active.poem)
            elif not (is_cut and job.is_repeatable):
                error, ended_at = ShuttingDown.interrupted() if is_cut else error, self._now()
                job.size_bytes = len(result)
                await self._disk(self._store.end, job.id, ended_at, error, active.headers, result)
                job.ended_at, job.error, job.headers = ended_at, error, active.headers
        except XformError as failed:
            job.ended_at, job.error = self._now(), failed
        finally:
            self._active.pop(job.id, None)
            active.changed()
            if self._is_stopping and not self._working and not self._emptied.called:
                self._emptied.callback(None)

    async def _resume_all(self, waiting: deque[_Active]) -> None:
        while waiting and not self._is_stopping:
            active = waiting.popleft()
            try:
                result = await self._resume(active)
            except XformError as error:
                await self._end(active, error)
            else:
                await self._end(active, None, result)

    async def _resume(self, active: _Active) -> bytes:
        """Run a job of an earlier server, once there is room for it."""
        job, store, late_at = active.job, self._store, active.job.created_at + self._service.limits.job_keep_s
        while job.id in self._active and not self._is_stopping:
            active.poem = await self._disk(store.read, job.id)
            if not job.is_repeatable:  # if this server dies too, it may have run
                await self._disk(store.keep_poem, job.id, None)
            if job.id not in self._active or self._is_stopping:
                break
            try:
                return await self._run(active, self._service_of(job.owner))
            except (Busy, Unavailable) as error:
                if self._now() > late_at or (active.timing.has_begun and not job.is_repeatable):
                    raise
                if not job.is_repeatable:
                    await self._disk(store.keep_poem, job.id, active.poem)
                await deferLater(self._clock, max(1_000, error.retry_after_ms or 0) / 1_000)
        raise ShuttingDown.not_started()


def _payer(job: Job) -> str:
    """Return of whose part of the room a job takes."""
    return job.share if job.owner in ("", ANONYMOUS) else f"identity {job.owner}"
