"""Decisions about workers and transforms: where a transform runs, when it is quarantined, when a worker is replaced.

Pure: the time comes in as a value, and the pool and its supervisor act on what is decided here.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs

from xformd.errors import ConfigError, XformError
from xformd.limits import Limits
from xformd.plugins.definition import Transform
from xformd.plugins.registry import Registry

MAX_DEATHS = 5
"""A transform that kills this many workers within ``DEATH_WINDOW_S`` is quarantined."""

DEATH_WINDOW_S = 60.0
QUARANTINE_S = 30.0
"""How long a quarantine lasts before one request may try again."""

LONG_POEM_BYTES = 64 * 1024
"""What runs in the reactor gets no longer poem: built-in transforms take up to 4 ms for one, and 1 s for 10 MiB."""


@attrs.frozen
class Placement:
    """Which transforms run in the reactor and which in workers: as declared, unless the operator overrules it.

    A long poem goes to a worker whatever a transform declares: only the operator, and what needs the reactor, keep it.

    Args:
        inline: names of transforms that run in the reactor, whatever they declare.
        isolate: names of transforms that run in a worker, whatever they declare.
        isolates_all: whether every transform that can do so runs in a worker.
    """

    inline: frozenset[str] = frozenset()
    isolate: frozenset[str] = frozenset()
    isolates_all: bool = False

    def is_isolated(self, transform: Transform, poem_bytes: int = 0) -> bool:
        """Whether a transform runs in a worker, for a poem of this length."""
        if transform.asynchronous or transform.name in self.inline:
            return False
        is_chosen = self.isolates_all or transform.name in self.isolate
        return is_chosen or not transform.inline or poem_bytes > LONG_POEM_BYTES

    def check(self, registry: Registry) -> None:
        """Check the operator's names against the registry.

        Raises:
            ConfigError: a transform does not exist, or needs the reactor and is to be isolated.
        """
        for setting, names in (("inline", self.inline), ("isolate", self.isolate)):
            for name in sorted(names):
                try:
                    entry = registry.resolve(name)
                except XformError as error:
                    raise ConfigError(error.message, setting=setting) from error
                if setting == "isolate" and entry.transform.asynchronous:
                    reason = f"{name} is asynchronous and can only run in the server's reactor"
                    raise ConfigError(reason, setting=setting)


@attrs.define
class _Record:
    """The deaths of workers that one transform has caused."""

    deaths: deque[float] = attrs.field(factory=lambda: deque(maxlen=MAX_DEATHS))
    until: float | None = None  # None: not in quarantine
    is_on_trial: bool = False  # a request is running, and its outcome decides


class Quarantine:
    """Tracks which transforms kill workers, and keeps those that do it too often from running for a while.

    A transform that has never killed one has no record.
    """

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def wait_s(self, name: str, now: float) -> float | None:
        """Return how many seconds a transform must still wait; None if it may run now."""
        record = self._records.get(name)
        if record is None or record.until is None:
            return None
        if record.is_on_trial:
            return QUARANTINE_S
        return record.until - now if record.until > now else None

    def begin(self, name: str) -> None:
        """Note that a transform runs now. If it is in quarantine, this run is its trial."""
        if (record := self._records.get(name)) is not None and record.until is not None:
            record.is_on_trial = True

    def died(self, name: str, now: float) -> bool:
        """Note that a transform has killed its worker.

        Returns:
            Whether that begins or renews a quarantine.
        """
        record = self._records.setdefault(name, _Record())
        record.deaths.append(now)
        is_full = len(record.deaths) == MAX_DEATHS and now - record.deaths[0] <= DEATH_WINDOW_S
        if not is_full and not record.is_on_trial:
            return False
        record.until, record.is_on_trial = now + QUARANTINE_S, False
        return True

    def survived(self, name: str) -> bool:
        """Note that a run has ended with a result or an error, and the worker is alive.

        Returns:
            Whether that ends a quarantine.
        """
        record = self._records.get(name)
        if record is None or not record.is_on_trial:
            return False
        del self._records[name]
        return True

    def undecided(self, name: str) -> None:
        """Note that a run was given up before its outcome was known: the next one is the trial."""
        if (record := self._records.get(name)) is not None:
            record.is_on_trial = False

    @property
    def names(self) -> frozenset[str]:
        """The transforms in quarantine."""
        return frozenset(name for name, record in self._records.items() if record.until is not None)


def why_worn(jobs: int, growth_bytes: int, limits: Limits) -> str:
    """Return why a worker should be replaced; an empty string if it should not."""
    if jobs >= limits.max_jobs_per_worker:
        return f"has done {jobs} jobs"
    if growth_bytes > limits.max_worker_growth_bytes:
        return f"has grown by {growth_bytes} bytes"
    return ""


def retry_after_ms(waiting: int, workers: int, mean_job_s: float) -> int:
    """Return in how many milliseconds half of the queue is likely to be done: 100 to 30,000."""
    return int(1000 * min(30.0, max(0.1, waiting * mean_job_s / workers / 2)))


def plugin_difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first difference between two workers' listings; an empty string if there is none.

    The first one's is empty before there was a worker.
    """
    versions, others = _versions(first), _versions(other)
    for name, source in sorted(versions.items()):
        if name not in others:
            return f"{name} from {source} is missing"
        if others[name] != source:
            return f"{name} is from {others[name]}, not from {source}"
    added = others.keys() - versions.keys() if versions else ()
    return f"{min(added)} is new" if added else ""


def _versions(listing: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: f"{each['distribution']} {each['version']}" for each in listing.get("transforms", ())}
