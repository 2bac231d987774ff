"""Every limit, named with its unit, its default and its reason, and how sizes and durations are written.

What happens past each is a table in ``docs/settings.md``. Invariant: no limit is a global; the code that enforces one
is given a ``Limits``.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

import attrs

MIB = 1024 * 1024
GIB = 1024 * MIB

MAX_NUMBER = 2**63 - 1
MAX_DURATION_S = 1e9

_QUANTITY = re.compile(r"(?P<number>[0-9]{1,20}(\.[0-9]{1,20})?) ?(?P<unit>[A-Za-z]*)\Z")
_SIZE_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_DURATION_UNITS = {"": 1, "ms": 0.001, "s": 1, "min": 60, "h": 3600}


def _limit(default: float | None, reason: str) -> Any:
    positive = attrs.validators.optional(attrs.validators.gt(0)) if default is None else attrs.validators.gt(0)
    return attrs.field(default=cast(Any, default), validator=positive, metadata={"reason": reason})


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of one server.

    Every field is a positive number, or None for no limit, or 0, where that is allowed; its metadata holds the
    ``reason``.
    """

    max_request_bytes: int = _limit(10 * MIB, "a request is held in memory as a whole")
    max_result_bytes: int = _limit(10 * MIB, "a result is held in memory as a whole")
    max_connections: int = _limit(10_000, "each connection costs memory and a file descriptor")
    max_connections_per_peer: int | None = _limit(None, "one address must not use up all connections")
    listen_backlog: int = _limit(1_024, "clients come in bursts: this many may wait to be accepted at each endpoint")
    max_in_flight: int = _limit(64, "one session must not take over the whole server")
    max_unread_output_bytes: int = _limit(MIB, "a client that does not read must not fill the server's memory")
    request_timeout_s: float = _limit(30.0, "a client that sends slowly must not hold a connection forever")
    idle_timeout_s: float = _limit(300.0, "a client that sends nothing must not hold a connection forever")
    write_timeout_s: float = _limit(30.0, "a client that does not read must not hold a reply forever")
    min_read_rate_bytes_per_s: int = _limit(1024, "a client that reads hardly anything must not hold a reply for hours")
    linger_timeout_s: float = _limit(5.0, "a refused client may finish sending, so that it sees a clean close")
    transform_timeout_s: float = _limit(30.0, "a transform that hangs must not block its client forever")
    max_queue: int = _limit(1_000, "a request that would wait too long is better refused at once")
    max_arriving_bytes: int = _limit(512 * MIB, "one address must not fill the memory with requests that it never ends")
    max_queue_bytes: int = _limit(256 * MIB, "requests that wait for a worker must not fill the server's memory")
    worker_memory_bytes: int = _limit(GIB, "a transform must not use up the machine's memory")
    max_jobs_per_worker: int = _limit(10_000, "what transforms leave behind in a worker must not stay forever")
    max_worker_growth_bytes: int = _limit(256 * MIB, "a leak in a transform must not fill the memory over time")
    max_jobs: int = _limit(1_000, "each job that was started over HTTP costs memory until its result is forgotten")
    max_jobs_bytes: int = _limit(GIB, "the poems and results of jobs must not fill the disk")
    job_keep_s: float = _limit(3_600.0, "the result of a job that nobody fetches must not be kept forever")
    plugin_load_timeout_s: float = _limit(60.0, "a plugin that hangs when it is imported must not hold up the others")
    drain_delay_s: float = attrs.field(
        default=0.0,
        validator=attrs.validators.ge(0),
        metadata={"reason": "who sends requests here must learn that the server stops before it does; 0 stops at once"},
    )
    shutdown_grace_s: float = _limit(30.0, "a server that is told to stop must stop")


WORKER_LIMITS = frozenset(
    {"worker_memory_bytes", "max_jobs_per_worker", "max_worker_growth_bytes", "plugin_load_timeout_s"}
    | {"max_jobs", "max_jobs_bytes", "job_keep_s"}
)
"""Limits that have no effect on a server without workers and jobs, such as a caching proxy."""


def parse_size(value: object) -> int:
    """Return a number of bytes above 0, written as ``100000`` or ``10MiB``."""
    size_bytes = _parse_quantity(value, _SIZE_UNITS) if isinstance(value, str) else value
    if type(size_bytes) is int and 0 < size_bytes <= MAX_NUMBER:
        return size_bytes
    raise ValueError(f"invalid size {show_value(value)}: try 100000 or 10MiB")


def parse_duration(value: object) -> float:
    """Return a number of seconds, written as ``0.5``, ``500ms``, ``30s``, ``5min`` or ``2h``."""
    duration_s = _parse_quantity(value, _DURATION_UNITS) if isinstance(value, str) else value
    if isinstance(duration_s, int | float) and not isinstance(duration_s, bool) and 0 <= duration_s <= MAX_DURATION_S:
        return float(duration_s)
    raise ValueError(f"invalid duration {show_value(value)}: try 0.5, 30 or 5min")


def parse_timeout(value: object) -> float:
    """Return a number of seconds above 0, written as for ``parse_duration``."""
    if duration_s := parse_duration(value):
        return duration_s
    raise ValueError(f"invalid duration {show_value(value)}: it must be above 0; try 0.5, 30 or 5min")


def _parse_quantity(text: str, units: Mapping[str, float]) -> float | None:
    match = _QUANTITY.match(text)
    factor = units.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        return None
    quantity = (int(match["number"]) if match["number"].isdigit() else float(match["number"])) * factor
    return int(quantity) if quantity == int(quantity) else quantity


def show_value(value: object) -> str:
    """Return a value as TOML has it, for a message."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
