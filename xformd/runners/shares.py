"""A bounded queue in which callers share what is scarce: workers, and the places and the memory of the queue itself.

A share is a peer, however many connections it has: an address, a Unix user, or whoever a trusted proxy names.
Invariant: of the shares that wait, the one that has had the least time is next; and where there is no room, the share
that holds the most gives way. Pure: the time comes in as a value.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from math import inf
from typing import Generic, Protocol, TypeVar

import attrs

from xformd.runners import Caller, Reader

JOB_BYTES = 1_024
"""What a job counts for besides its poem."""

KILL_S = 0.02
"""What it counts as used time to end a worker and to start another, besides the time of its job (``--work q``)."""

MAX_KILLS, KILLS_PER_S = 20, 5.0
"""How many workers a share may cost at once, and from then on: past that its next job waits."""

UNKNOWN_JOB_S = 0.001
"""What the first job of a share is likely to take."""

FORGET_ABOVE = 1_000
"""Shares without a job are forgotten once there are more."""

MAX_LOOKED_AT = 1_000
"""Among how many of a share's newest jobs to look for one that may be refused: it may have 250,000 in ``max_bytes``."""


class QueuedJob(Protocol):
    """What waits in the queue."""

    @property
    def caller(self) -> Caller:
        """Whom it is for."""

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, or is about to."""

    @property
    def is_admitted(self) -> bool:
        """Whether an earlier part of its request has run already, so that it is the last of its share to give way."""


Job = TypeVar("Job", bound=QueuedJob)
Fifos = OrderedDict[Caller, OrderedDict[Job, None]]


@attrs.define(eq=False)
class _Share(Generic[Job]):
    """What one share has waiting, and what it has used."""

    used_s: float
    ready: Fifos[Job] = attrs.field(factory=OrderedDict)  # the next caller's first
    set_aside: Fifos[Job] = attrs.field(factory=OrderedDict)  # of callers whose reader has no room for a result
    waiting: int = 0  # jobs that are ready
    waiting_bytes: int = 0  # of all jobs
    running: int = 0
    mean_job_s: float = UNKNOWN_JOB_S
    kills: float = 0.0  # that have not been forgiven yet
    killed_at: float = 0.0
    held_until: float = 0.0

    @property
    def is_idle(self) -> bool:
        return not (self.ready or self.set_aside or self.running)


class FairQueue(Generic[Job]):
    """One FIFO for each caller of each share; shares take turns by the time that they have used, callers one by one.

    What is set aside, because its reader has no room for the result, takes none of the ``max_jobs`` places.

    Args:
        max_jobs: how many jobs may wait.
        max_bytes: how much memory they may hold, those set aside too.
        max_running: how many jobs of one share may run at once.
    """

    def __init__(self, max_jobs: int, max_bytes: int, max_running: float = inf) -> None:
        self._max_jobs, self._max_bytes, self._max_running = max_jobs, max_bytes, max_running
        self._shares: dict[str, _Share[Job]] = {}
        self._ready: dict[_Share[Job], None] = {}  # those with jobs that could begin
        self._set_aside: dict[Reader, dict[Caller, None]] = {}
        self._least_used_s = 0.0  # of the share whose job was taken last: what a new share begins with
        self._length = self._bytes = 0
        self._forget_at = FORGET_ABOVE

    def __len__(self) -> int:
        """Return how many jobs could begin if there was a worker."""
        return self._length

    @property
    def takes_newcomers(self) -> bool:
        """Whether a share that has nothing here gets a place."""
        return self._length < self._max_jobs or any(share.waiting > 1 for share in self._ready)

    def put(self, job: Job) -> list[Job]:
        """Add a job; return those that have to leave for it, the newest of the share that has the most: it, perhaps."""
        share = self._share(job.caller.share)
        fifos = share.set_aside if job.caller in share.set_aside else share.ready
        fifos.setdefault(job.caller, OrderedDict())[job] = None
        self._count_bytes(share, JOB_BYTES + job.size_bytes)
        self._count_ready(share, int(fifos is share.ready))
        return [*self._make_room(share, JOB_BYTES + job.size_bytes, takes_place=not job.is_admitted)]

    def first(self, now: float) -> Job | None:
        """Return the next job whose reader has room and whose share need not wait, and leave it in the queue."""
        able = []
        for share in self._ready:
            if share.held_until <= now and share.running < self._max_running:
                able.append(share)
            else:
                self._catch_up(share)
        while able:
            share = min(able, key=lambda each: each.used_s)
            while share.ready:
                caller, fifo = next(iter(share.ready.items()))
                if caller.reader is None or caller.reader.takes_results:
                    self._least_used_s = max(self._least_used_s, share.used_s)
                    return next(iter(fifo))
                share.set_aside[caller] = share.ready.pop(caller)
                self._set_aside.setdefault(caller.reader, {})[caller] = None
                self._count_ready(share, -len(fifo))
            able.remove(share)
        return None

    def next_s(self, now: float) -> float | None:
        """Return in how many seconds the first share need not wait any more; None if none has to."""
        waits = [share.held_until - now for share in self._ready if share.held_until > now]
        return min(waits, default=None)

    def remove(self, job: Job) -> bool:
        """Remove a job, wherever it is, and move its caller to the end; return whether it was there."""
        share = self._shares.get(job.caller.share)
        for fifos in (share.ready, share.set_aside) if share is not None else ():
            fifo = fifos.get(job.caller)
            if fifo is not None and job in fifo:
                assert share is not None
                del fifo[job]
                if fifo:
                    fifos.move_to_end(job.caller)
                else:
                    del fifos[job.caller]
                    if fifos is share.set_aside and (reader := job.caller.reader) is not None:
                        del self._set_aside[reader][job.caller]
                        if not self._set_aside[reader]:
                            del self._set_aside[reader]
                self._count_bytes(share, -JOB_BYTES - job.size_bytes)
                self._count_ready(share, -int(fifos is share.ready))
                return True
        return False

    def has_room(self, reader: Reader) -> None:
        """Queue again what was set aside for want of room."""
        for caller in self._set_aside.pop(reader, ()):
            share = self._share(caller.share)
            share.ready[caller] = share.set_aside.pop(caller)
            self._count_ready(share, len(share.ready[caller]))

    def clear(self) -> list[Job]:
        """Remove and return every job."""
        parts = [each for share in self._shares.values() for each in (share.ready, share.set_aside)]
        jobs = [job for fifos in parts for fifo in fifos.values() for job in fifo]
        for job in jobs:
            self.remove(job)
        return jobs

    # What the shares use.

    def started(self, job: Job) -> float:
        """Note that a job has begun; return the seconds that its share is charged with until it has ended."""
        share = self._share(job.caller.share)
        share.running += 1
        share.used_s += share.mean_job_s
        return share.mean_job_s

    def ended(self, job: Job, charged_s: float, took_s: float) -> None:
        """Charge a share with what its job has really taken."""
        share = self._share(job.caller.share)
        share.running -= 1
        share.used_s += took_s - charged_s
        share.mean_job_s += (took_s - share.mean_job_s) / 4

    def running(self, name: str) -> int:
        """Return how many jobs of a share are running."""
        return self._shares[name].running if name in self._shares else 0

    def killed(self, job: Job, now: float) -> None:
        """Note that a job has cost its worker."""
        share = self._share(job.caller.share)
        share.used_s += KILL_S
        share.kills = max(0.0, share.kills - (now - share.killed_at) * KILLS_PER_S) + 1
        share.killed_at = now
        share.held_until = now + max(0.0, share.kills - MAX_KILLS) / KILLS_PER_S

    def _share(self, name: str) -> _Share[Job]:
        if (share := self._shares.get(name)) is None:
            if len(self._shares) >= self._forget_at:
                self._forget()
            share = self._shares[name] = _Share(self._least_used_s)
        return share

    def _forget(self) -> None:
        """Forget shares that a new one would hardly differ from: half of them stay, those that have used the most."""
        idle = [name for name, share in self._shares.items() if share.is_idle]
        idle.sort(key=lambda name: (self._shares[name].kills, self._shares[name].used_s))
        for name in idle[: -FORGET_ABOVE // 2]:
            del self._shares[name]
        self._forget_at = max(FORGET_ABOVE, 2 * len(self._shares))

    def _count_bytes(self, share: _Share[Job], size_bytes: int) -> None:
        share.waiting_bytes += size_bytes
        self._bytes += size_bytes

    def _catch_up(self, share: _Share[Job]) -> None:
        """Let a share that did not ask, or may not get, save up nothing."""
        share.used_s = max(share.used_s, self._least_used_s)

    def _count_ready(self, share: _Share[Job], jobs: int) -> None:
        if not share.waiting:
            self._catch_up(share)
        share.waiting += jobs
        self._length += jobs
        if share.waiting:
            self._ready[share] = None
        else:
            self._ready.pop(share, None)

    def _make_room(self, newest: _Share[Job], added_bytes: int, *, takes_place: bool) -> Iterator[Job]:
        """Remove as much as was added, if that is too much; of shares that hold as much, the newest job's gives way."""
        if takes_place and self._length > self._max_jobs:
            yield self._remove_newest(max(self._ready, key=lambda each: (each.waiting, each is newest)).ready)
        least_bytes = self._bytes - added_bytes
        while self._bytes > max(self._max_bytes, least_bytes):
            most = max(self._shares.values(), key=lambda each: (each.waiting_bytes, each is newest))
            yield self._remove_newest(most.ready, most.set_aside)

    def _remove_newest(self, *parts: Fifos[Job]) -> Job:
        """Remove the newest job, of those that may still be refused if there is one."""
        jobs = [*islice(_newest_first(*parts), MAX_LOOKED_AT)]
        job = next((job for job in jobs if not job.is_admitted), jobs[0])
        self.remove(job)
        return job


def _newest_first(*parts: Fifos[Job]) -> Iterator[Job]:
    """Return the jobs of the caller that has the most, then the others': behind one address there may be many."""
    fifos = [fifo for each in parts for fifo in each.values()][::-1]
    return (job for fifo in (max(fifos, key=len), *fifos) for job in reversed(fifo))
