"""A bounded queue in which callers share what is scarce: workers, and the places and the memory of the queue itself.

A share is a peer, however many connections it has: an address, a Unix user, or whoever a trusted proxy names.
Invariant: of the shares that wait, the one that has had the least time is next; and where there is no room, the share
that holds the most gives way. Pure: the time comes in as a value.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Set
from itertools import islice
from math import inf
from typing import Any, Generic, Protocol, TypeVar

import attrs

from xformd.runners import Caller, Reader

JOB_BYTES = 1_024  # what a job counts for besides its poem
KILL_S = 0.02  # of use that ending and starting a worker counts as, besides its job (``--work q``)

MAX_KILLS, KILLS_PER_S = 20, 5.0
"""How many workers a share may cost at once, and from then on: past that its next job waits."""

UNKNOWN_JOB_S = 0.001  # what the first job of a share is likely to take
FORGET_ABOVE = 1_000  # shares without a job are forgotten once there are more
MAX_LOOKED_AT = 1_000  # newest jobs of a share, to find one to refuse: it may have 250,000 in ``max_bytes``


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


@attrs.frozen(cache_hash=True)
class Lane:
    """Jobs that a worker may run together, and that do not wait for those of another lane."""

    name: str = ""  # of their transform; empty for jobs that run one by one
    options: tuple[tuple[str, str], ...] = ()  # that the jobs of a batch have in common
    most: int = 1  # how many of them a worker runs at a time
    wait_s: float = 0.0  # how many seconds a job may wait for others
    on_asyncio: bool = False  # whether workers of its own run them, and shares take turns by the time of those alone
    is_alone: bool = False  # whether each has a worker for itself, after one has died that ran several


ONE_BY_ONE = Lane()

Job = TypeVar("Job", bound=QueuedJob)
Fifo = OrderedDict[Job, None]
_Place = tuple[Lane, Caller]


@attrs.define(eq=False)
class _Share(Generic[Job]):
    """What one share has waiting, and what it has used."""

    workers: Lane | None  # whose time it has used: those of an asyncio lane, or the others
    used_s: float
    ready: OrderedDict[Lane, OrderedDict[Caller, Fifo[Job]]] = attrs.field(factory=OrderedDict)  # the next one's first
    set_aside: dict[_Place, Fifo[Job]] = attrs.field(factory=dict)  # of callers whose reader has no room for a result
    waiting: int = 0  # jobs that are ready
    waiting_bytes: int = 0  # of all jobs
    running: int = 0
    mean_job_s: float = UNKNOWN_JOB_S
    kills: float = 0.0  # that have not been forgiven yet
    killed_at: float = 0.0
    held_until: float = 0.0


class FairQueue(Generic[Job]):
    """One FIFO for each caller of each share; shares take turns by the time that they have used, callers one by one.

    What is set aside, because its reader has no room for the result, takes none of the ``max_jobs`` places.
    A caller has a FIFO in each lane, and the lanes of a share take turns too.
    """

    def __init__(
        self,
        max_jobs: int,  # that may wait
        max_bytes: int,  # that they may hold in memory, those set aside too
        max_running: float = inf,  # jobs of one share at once
        lane_of: Callable[[Job], Lane] = lambda _: ONE_BY_ONE,  # it stays the same while a job waits or runs
    ) -> None:
        self.max_jobs, self.max_bytes, self.max_running = max_jobs, max_bytes, max_running
        self._lane_of = lane_of
        self._shares: dict[tuple[Lane | None, str], _Share[Job]] = {}
        self._ready: dict[_Share[Job], None] = {}  # those with jobs that could begin
        self.lanes: dict[Lane, Fifo[Job]] = {}
        """The same jobs by lane, those of all shares in the order in which they came or had room again."""
        self._set_aside: dict[Reader, dict[_Place, None]] = {}
        # Of the share whose job was taken last: what a new share begins with.
        self._least_used_s: defaultdict[Lane | None, float] = defaultdict(float)
        self._length = self._bytes = 0
        self._forget_at = FORGET_ABOVE

    def __len__(self) -> int:
        """Return how many jobs could begin if there was a worker."""
        return self._length

    @property
    def takes_newcomers(self) -> bool:
        """Whether a share that has nothing here gets a place."""
        return self._length < self.max_jobs or any(share.waiting > 1 for share in self._ready)

    def put(self, job: Job) -> list[Job]:
        """Add a job; return those that have to leave for it, the newest of the share that has the most: it, perhaps."""
        share, lane = self._share_of(job), self._lane_of(job)
        if (fifo := share.set_aside.get((lane, job.caller))) is not None:
            fifo[job] = None
        else:
            share.ready.setdefault(lane, OrderedDict()).setdefault(job.caller, OrderedDict())[job] = None
            self._add_ready(share, lane, (job,))
        self._count_bytes(share, JOB_BYTES + job.size_bytes)
        return [*self._make_room(share, JOB_BYTES + job.size_bytes, takes_place=not job.is_admitted)]

    def first(self, now: float, lanes: Set[Lane] | None = None) -> Job | None:
        """Return the next job, of some lanes or of any, and leave it in the queue: its reader has room for the result.

        A share that has cost many workers, or that runs as many jobs as it may, has to wait.
        """
        able = []
        for share in self._ready:
            if share.held_until > now or share.running >= self.max_running:
                self._catch_up(share)
            elif lanes is None or not lanes.isdisjoint(share.ready):
                able.append(share)
        while able:
            share = min(able, key=lambda each: each.used_s)
            for lane in [*share.ready] if lanes is None else [each for each in share.ready if each in lanes]:
                if (job := self._first_in(share, lane)) is not None:
                    self._least_used_s[share.workers] = max(self._least_used_s[share.workers], share.used_s)
                    return job
            able.remove(share)
        return None

    def _first_in(self, share: _Share[Job], lane: Lane) -> Job | None:
        """Return the first job of a lane whose reader has room; set those before it aside."""
        while callers := share.ready.get(lane):
            caller, fifo = next(iter(callers.items()))
            if caller.reader is None or caller.reader.takes_results:
                return next(iter(fifo))
            _drop(share.ready, lane, caller)
            share.set_aside[lane, caller] = fifo
            self._set_aside.setdefault(caller.reader, {})[lane, caller] = None
            self._remove_ready(share, lane, fifo)
        return None

    def next_s(self, now: float) -> float | None:
        """Return in how many seconds the first share need not wait any more; None if none has to."""
        waits = [share.held_until - now for share in self._ready if share.held_until > now]
        return min(waits, default=None)

    def remove(self, job: Job) -> bool:
        """Remove a job, wherever it is, and move its caller to the end; return whether it was there."""
        share, lane, caller = self._share_of(job), self._lane_of(job), job.caller
        callers: OrderedDict[Caller, Fifo[Job]] = share.ready.get(lane, OrderedDict())
        if caller in callers and job in callers[caller]:
            del callers[caller][job]
            if callers[caller]:
                share.ready[lane].move_to_end(caller)
                share.ready.move_to_end(lane)
            else:
                _drop(share.ready, lane, caller)
            self._remove_ready(share, lane, (job,))
        elif job in share.set_aside.get((lane, caller), ()):
            del share.set_aside[lane, caller][job]
            if not share.set_aside[lane, caller]:
                del share.set_aside[lane, caller]
                _drop(self._set_aside, caller.reader, (lane, caller))
        else:
            return False
        self._count_bytes(share, -JOB_BYTES - job.size_bytes)
        return True

    def has_room(self, reader: Reader) -> None:
        """Queue again what was set aside for want of room."""
        for lane, caller in self._set_aside.pop(reader, ()):
            share = self._share(lane, caller.share)
            fifo = share.set_aside.pop((lane, caller))
            share.ready.setdefault(lane, OrderedDict())[caller] = fifo
            self._add_ready(share, lane, fifo)

    def clear(self) -> list[Job]:
        """Remove and return every job."""
        jobs = [job for share in self._shares.values() for fifo in _fifos(share, set_aside=True) for job in fifo]
        for job in jobs:
            self.remove(job)
        return jobs

    # What the shares use.

    def started(self, job: Job) -> float:
        """Note that a job has begun; return the seconds that its share is charged with until it has ended."""
        share = self._share_of(job)
        share.running += 1
        share.used_s += share.mean_job_s
        return share.mean_job_s

    def ended(self, job: Job, charged_s: float, took_s: float) -> None:
        """Charge a share with what its job has really taken."""
        share = self._share_of(job)
        share.running -= 1
        share.used_s += took_s - charged_s
        share.mean_job_s += (took_s - share.mean_job_s) / 4

    def running(self, name: str) -> int:
        """Return how many jobs of a share are running."""
        return self._share(ONE_BY_ONE, name).running

    def killed(self, job: Job, now: float) -> None:
        """Note that a job has cost its worker."""
        share = self._share_of(job)
        share.used_s += KILL_S
        share.kills = max(0.0, share.kills - (now - share.killed_at) * KILLS_PER_S) + 1
        share.killed_at = now
        share.held_until = now + max(0.0, share.kills - MAX_KILLS) / KILLS_PER_S

    def _share_of(self, job: Job) -> _Share[Job]:
        return self._share(self._lane_of(job), job.caller.share)

    def _share(self, lane: Lane, name: str) -> _Share[Job]:
        workers = lane if lane.on_asyncio else None
        if (share := self._shares.get((workers, name))) is None:
            if len(self._shares) >= self._forget_at:
                self._forget()
            share = self._shares[workers, name] = _Share(workers, self._least_used_s[workers])
        return share

    def _forget(self) -> None:
        """Forget shares that a new one would hardly differ from: half of them stay, those that have used the most."""
        idle = [name for name, each in self._shares.items() if not (each.ready or each.set_aside or each.running)]
        idle.sort(key=lambda name: (self._shares[name].kills, self._shares[name].used_s))
        for name in idle[: -FORGET_ABOVE // 2]:
            del self._shares[name]
        self._forget_at = max(FORGET_ABOVE, 2 * len(self._shares))

    def _count_bytes(self, share: _Share[Job], size_bytes: int) -> None:
        share.waiting_bytes += size_bytes
        self._bytes += size_bytes

    def _catch_up(self, share: _Share[Job]) -> None:
        """Let a share that did not ask, or may not get, save up nothing."""
        share.used_s = max(share.used_s, self._least_used_s[share.workers])

    def _add_ready(self, share: _Share[Job], lane: Lane, jobs: Collection[Job]) -> None:
        if not share.waiting:
            self._catch_up(share)
            self._ready[share] = None
        share.waiting += len(jobs)
        self._length += len(jobs)
        self.lanes.setdefault(lane, OrderedDict()).update(dict.fromkeys(jobs))

    def _remove_ready(self, share: _Share[Job], lane: Lane, jobs: Collection[Job]) -> None:
        share.waiting -= len(jobs)
        self._length -= len(jobs)
        if not share.waiting:
            del self._ready[share]
        for job in jobs:
            _drop(self.lanes, lane, job)

    def _make_room(self, newest: _Share[Job], added_bytes: int, *, takes_place: bool) -> Iterator[Job]:
        """Remove as much as was added, if that is too much; of shares that hold as much, the newest job's gives way."""
        if takes_place and self._length > self.max_jobs:
            yield self._remove_newest(max(self._ready, key=lambda each: (each.waiting, each is newest)))
        least_bytes = self._bytes - added_bytes
        while self._bytes > max(self.max_bytes, least_bytes):
            most = max(self._shares.values(), key=lambda each: (each.waiting_bytes, each is newest))
            yield self._remove_newest(most, set_aside=True)

    def _remove_newest(self, share: _Share[Job], *, set_aside: bool = False) -> Job:
        """Remove the newest job, of those that may still be refused if there is one."""
        jobs = [*islice(_newest_first(_fifos(share, set_aside=set_aside)), MAX_LOOKED_AT)]
        job = next((job for job in jobs if not job.is_admitted), jobs[0])
        self.remove(job)
        return job


def _fifos(share: _Share[Job], *, set_aside: bool) -> list[Fifo[Job]]:
    ready = [fifo for callers in share.ready.values() for fifo in callers.values()]
    return [*ready, *share.set_aside.values()] if set_aside else ready


def _newest_first(fifos: list[Fifo[Job]]) -> Iterator[Job]:
    """Return the jobs of the caller that has the most, then the others': behind one address there may be many."""
    return (job for fifo in (max(fifos, key=len), *reversed(fifos)) for job in reversed(fifo))


def _drop(parts: dict[Any, Any], name: object, inner: object) -> None:
    """Remove an entry of a part, and the part with its last one."""
    del parts[name][inner]
    if not parts[name]:
        del parts[name]
