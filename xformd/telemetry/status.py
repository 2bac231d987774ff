"""The status of a server: what waits, what runs, the state of its workers, and whether it is ready."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

MAX_SHARES = 1_000
OTHER_SHARES = "(others)"  # all shares after the first ``MAX_SHARES``, together

READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"


@attrs.define
class WorkerHistory:
    """The workers since the server's start, of all generations."""

    starts: int = 0
    failed_starts: int = 0  # after which the next one was delayed
    deaths: int = 0  # unexpected ones: by a crash, lack of memory, or a signal
    cpu_s: Counter[str] = attrs.field(factory=Counter)  # of jobs, by share

    def used_cpu(self, share: str, seconds: float) -> None:
        """Count what a job has used."""
        is_known = share in self.cpu_s or len(self.cpu_s) < MAX_SHARES
        self.cpu_s[share if is_known else OTHER_SHARES] += seconds  # type: ignore[assignment]


@attrs.frozen(kw_only=True)
class ServerStatus:
    """A server at one moment."""

    queue_length: int  # jobs that wait for a worker
    max_queue: int
    takes_newcomers: bool = True  # a share with no job here would still get a place
    workers: Mapping[str, int]  # how many are ``starting``, ``idle``, ``busy``, ``ending``
    proven_workers: int  # which have passed their self-test and can take jobs now
    needs_workers: bool  # there are transforms that run in workers
    history: WorkerHistory
    quarantined: frozenset[str]  # transforms
    quarantined_in_part: frozenset[str] = frozenset()  # for some shares, or for long poems, only
    in_flight: int  # accepted requests that are not done yet
    fingerprint: str = ""  # of its transforms: what tells them from those of another server
    loading: str = ""  # which plugins are still being loaded, in words
    memory_bytes: tuple[tuple[str, int, int], ...] = ()  # ``server``, ``fork-server`` or ``worker``, its number, bytes


def readiness(status: ServerStatus, *, is_stopping: bool) -> dict[str, Any]:
    """Decide whether a server can take requests; the ``reasons`` explain it to a person.

    The ``status`` is ``ready``, ``degraded`` (takes requests, but some transforms are missing) or ``not ready``.
    """
    reasons = []
    if is_stopping:
        reasons.append("the server is stopping")
    if status.needs_workers and not status.proven_workers:
        reasons.append("no worker is ready; if that lasts, see the log")
    if not status.takes_newcomers:
        reasons.append(f"the queue is full: {status.queue_length} jobs are waiting")
    verdict = NOT_READY if reasons else DEGRADED if status.quarantined or status.loading else READY
    reasons += [status.loading] if status.loading else []
    reasons += [f"transform {name} is in quarantine" for name in sorted(status.quarantined)]
    return {
        "status": verdict,
        "reasons": reasons,
        "fingerprint": status.fingerprint,
        "quarantined": sorted(status.quarantined),
        "workers": dict(status.workers),
        "queue_length": status.queue_length,
        "in_flight": status.in_flight,
    }
