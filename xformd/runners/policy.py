"""Decisions about workers and transforms: where a transform runs, when it is quarantined, when a worker is replaced.

Pure: the time comes in as a value, and the pool and its supervisor act on what is decided here.
"""

import math
from collections import deque

import attrs

from xformd.errors import ConfigError, XformError
from xformd.limits import Limits
from xformd.plugins.definition import Transform
from xformd.plugins.registry import Registry

MAX_DEATHS = 5  # a transform that kills this many workers within ``DEATH_WINDOW_S`` is quarantined
MAX_DEATHS_BY_ONE = 2  # of the deaths that one share causes, so many count towards the quarantine for everybody

DEATH_WINDOW_S = 60.0
QUARANTINE_S = 30.0  # how long a quarantine lasts before one request may try again
JOBS_FOR_ANOTHER_CORE = 8  # that a worker on asyncio has before there is another, until there is one for each core
MAX_WORKERS_ON_ASYNCIO = 16  # they mostly wait, and need no cores; 1,000 jobs need 10 of the default ``concurrency``

LONG_POEM_BYTES = 64 * 1024
"""What runs in the reactor gets no longer poem: built-in transforms take up to 4 ms for one, and 1 s for 10 MiB."""


@attrs.frozen
class Placement:
    """Which transforms run in the reactor and which in workers: as declared, unless the operator overrules it.

    A long poem goes to a worker whatever a transform declares: only the operator, and what needs the reactor, keep it.
    """

    inline: frozenset[str] = frozenset()  # names of those that the operator has run in the reactor
    isolate: frozenset[str] = frozenset()  # and in a worker
    isolates_all: bool = False  # whether every transform that can do so runs in a worker

    def is_isolated(self, transform: Transform, poem_bytes: int = 0) -> bool:
        """Whether a transform runs in a worker, for a poem of this length."""
        if transform.needs_reactor or transform.name in self.inline:
            return False
        is_chosen = self.isolates_all or transform.name in self.isolate
        return is_chosen or not transform.inline or poem_bytes > LONG_POEM_BYTES

    def check(self, registry: Registry) -> None:
        """Raise ``ConfigError`` if a transform that the operator names does not exist, or cannot run in a worker."""
        for setting, names in (("inline", self.inline), ("isolate", self.isolate)):
            for name in sorted(names):
                try:
                    entry = registry.resolve(name)
                except XformError as error:
                    raise ConfigError(error.message, setting=setting) from error
                if setting == "inline" and entry.transform.runs_on_asyncio:
                    reason = f"{name} runs on asyncio, and so in a worker: the server's reactor is another loop"
                    raise ConfigError(reason, setting=setting)
                if setting == "isolate" and entry.transform.needs_reactor:
                    reason = f"{name} awaits Deferreds and can only run in the server's reactor"
                    raise ConfigError(reason, setting=setting)


@attrs.frozen
class Scope:
    """Which requests a quarantine is for: those of one share alone, or long poems alone, where others are innocent."""

    share: str | None = None  # None for everybody's
    min_bytes: int = 0  # the shortest poem

    def covers(self, share: str | None, poem_bytes: int) -> bool:
        """Whether a request is among them, or those of another scope."""
        return self.share in (None, share) and poem_bytes >= self.min_bytes

    def __str__(self) -> str:
        """Return what follows "in quarantine" in the log."""
        words = f" for {self.share}" if self.share else ""
        return f"{words} for poems of {self.min_bytes} bytes and more" if self.min_bytes else words


EVERYBODY = Scope()


@attrs.define
class _Term:
    """One quarantine."""

    until: float
    is_on_trial: bool = False  # a request is running, and its outcome decides


@attrs.define
class _Record:
    """The deaths of workers that one transform has caused: when, whose request it was, and the length of its poem."""

    deaths: deque[tuple[float, str, int]] = attrs.field(factory=lambda: deque(maxlen=20 * MAX_DEATHS))
    terms: dict[Scope, _Term] = attrs.field(factory=dict)

    def scope(self, now: float, share: str) -> Scope | None:
        """Return which requests to quarantine after a death that a share has caused; None if there were too few."""
        sizes: dict[str, list[int]] = {}
        for died_at, by, poem_bytes in self.deaths:
            if now - died_at <= DEATH_WINDOW_S:
                sizes.setdefault(by, []).append(poem_bytes)
        # A program's own requests are no share of somebody's: all of them count.
        counted = (each[-MAX_DEATHS_BY_ONE:] if by else each for by, each in sizes.items())
        everybodys = [poem_bytes for each in counted for poem_bytes in each]
        own = sizes[share][-MAX_DEATHS:]
        if len(everybodys) < MAX_DEATHS and len(own) < MAX_DEATHS:
            return None
        return Scope(None, _long(everybodys)) if len(everybodys) >= MAX_DEATHS else Scope(share, _long(own))


def _long(sizes: list[int]) -> int:
    return min(sizes) if min(sizes) > LONG_POEM_BYTES else 0


class Quarantine:
    """Tracks which transforms kill workers, and keeps those that do it too often from running for a while.

    A transform that has never killed one has no record. What one peer does, and what long poems do, is no reason to
    refuse others: they are refused once they too have killed workers.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def wait_s(self, name: str, now: float, share: str = "", poem_bytes: int = 0) -> float | None:
        """Return how many seconds a transform must still wait for a request; None if it may run now."""
        if not (terms := self._terms(name, share, poem_bytes)):
            return None
        waits = (QUARANTINE_S if term.is_on_trial else term.until - now for term in terms)
        return max((wait_s for wait_s in waits if wait_s > 0), default=None)

    def begin(self, name: str, now: float, share: str = "", poem_bytes: int = 0) -> None:
        """Note that a transform runs now. If the time of its quarantine is over, this run is its trial."""
        for term in self._terms(name, share, poem_bytes):
            term.is_on_trial = term.is_on_trial or term.until <= now

    def died(self, name: str, now: float, share: str = "", poem_bytes: int = 0) -> Scope | None:
        """Note that a transform has killed its worker; return the scope of the quarantine that this begins, if any."""
        record = self._records.setdefault(name, _Record())
        record.deaths.append((now, share, poem_bytes))
        tried = [scope for scope, term in record.terms.items() if term.is_on_trial and scope.covers(share, poem_bytes)]
        record.terms = {scope: term for scope, term in record.terms.items() if now - term.until <= DEATH_WINDOW_S}
        begun = record.scope(now, share)
        for new in (*tried, *([] if begun is None else [begun])):
            # In place of what it covers: a share that sends shorter poems each time has one all the same.
            kept = {scope: term for scope, term in record.terms.items() if not new.covers(scope.share, scope.min_bytes)}
            record.terms = {**kept, new: _Term(now + QUARANTINE_S)}
        return begun if begun is not None else next(iter(tried), None)

    def survived(self, name: str, share: str = "", poem_bytes: int = 0) -> bool:
        """Note that a run has ended and its worker is alive; return whether that ends a quarantine."""
        if (record := self._records.get(name)) is None:
            return False
        ended = [scope for scope, term in record.terms.items() if term.is_on_trial and scope.covers(share, poem_bytes)]
        for scope in ended:
            del record.terms[scope]
        if ended and not record.terms:
            del self._records[name]
        return bool(ended)

    def undecided(self, name: str, share: str = "", poem_bytes: int = 0) -> None:
        """Note that a run was given up before its outcome was known: the next one is the trial."""
        for term in self._terms(name, share, poem_bytes):
            term.is_on_trial = False

    @property
    def names(self) -> frozenset[str]:
        """The transforms in quarantine for everybody."""
        return frozenset(name for name, record in self._records.items() if EVERYBODY in record.terms)

    @property
    def names_in_part(self) -> frozenset[str]:
        """The transforms in quarantine for some requests only."""
        return frozenset(name for name, record in self._records.items() if record.terms) - self.names

    def _terms(self, name: str, share: str, poem_bytes: int) -> list[_Term]:
        if (record := self._records.get(name)) is None:
            return []
        return [term for scope, term in record.terms.items() if scope.covers(share, poem_bytes)]


def why_worn(jobs: int, growth_bytes: int, limits: Limits) -> str:
    """Return why a worker should be replaced; an empty string if it should not."""
    if jobs >= limits.max_jobs_per_worker:
        return f"has done {jobs} jobs"
    if growth_bytes > limits.max_worker_growth_bytes:
        return f"has grown by {growth_bytes} bytes"
    return ""


def workers_on_asyncio(jobs: int, concurrency: int, cores: int) -> int:
    """Return how many workers should run so many jobs of one transform on asyncio."""
    return max(math.ceil(jobs / concurrency), min(cores, math.ceil(jobs / JOBS_FOR_ANOTHER_CORE)))


def max_workers_on_asyncio(cores: int) -> int:
    """Return how many there may be; but each transform may have one."""
    return max(cores, min(8 * cores, MAX_WORKERS_ON_ASYNCIO))


def retry_after_ms(waiting: int, workers: int, mean_job_s: float) -> int:
    """Return in how many milliseconds half of the queue is likely to be done: 100 to 30,000."""
    return int(1000 * min(30.0, max(0.1, waiting * mean_job_s / workers / 2)))
