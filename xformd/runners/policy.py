"""Decisions about workers, as functions of values: when to start another, when one is worn, when to ask again."""

from collections.abc import Mapping
from typing import Any

from xformd.limits import Limits

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 10.0


def start_delay_s(failures: int) -> float:
    """Say how long to wait before a worker is started.

    Args:
        failures: how many in a row have ended before they were ready.

    Returns:
        Seconds: none after a first failure is past, then twice as long each time.
    """
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(failures - 1, 16)) if failures else 0.0


def why_worn(jobs: int, growth_bytes: int, limits: Limits) -> str:
    """Say why a worker should make room for a fresh one; nothing if it should not.

    Args:
        jobs: how many it has done.
        growth_bytes: how much more memory it has in use than when it was ready.
        limits: how much of either is too much.
    """
    if jobs >= limits.max_jobs_per_worker:
        return f"has done {jobs} jobs"
    if growth_bytes > limits.max_worker_growth_bytes:
        return f"has grown by {growth_bytes} bytes"
    return ""


def retry_after_ms(waiting: int, workers: int, mean_job_s: float) -> int:
    """Say when to ask again.

    Args:
        waiting: how many jobs wait.
        workers: how many run at a time.
        mean_job_s: how long one takes, in seconds.

    Returns:
        Milliseconds until half of them are likely to be done: from a tenth of a second to half a minute.
    """
    return int(1000 * min(30.0, max(0.1, waiting * mean_job_s / workers / 2)))


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say in what the plugins of two workers differ.

    Args:
        first: what the first has listed; nothing where there was none yet.
        other: what another has listed.

    Returns:
        The first difference; nothing where there is none.
    """
    versions, others = _versions(first), _versions(other)
    for name, source in sorted(versions.items()):
        if others.get(name) != source:
            return f"{name} from {others.get(name, 'nowhere')}, not from {source}"
    added = others.keys() - versions.keys() if versions else ()
    return f"{min(added)}, which is new" if added else ""


def _versions(listed: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: f"{each['distribution']} {each['version']}" for each in listed.get("transforms", ())}
