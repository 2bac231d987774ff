"""Every limit, named with its unit, its default and its reason.

The names, defaults and consequences are those of the table in ``docs/operating.md``. Invariant: no limit is a global;
the code that enforces one is given a ``Limits``.
"""

from typing import Any, cast

import attrs

MIB = 1024 * 1024
GIB = 1024 * MIB


def _limit(default: float | None, reason: str) -> Any:
    positive = attrs.validators.optional(attrs.validators.gt(0)) if default is None else attrs.validators.gt(0)
    return attrs.field(default=cast(Any, default), validator=positive, metadata={"reason": reason})


@attrs.frozen(kw_only=True)
class Limits:
    """The limits of one server.

    Every field is a positive number, or None for no limit where that is allowed; its metadata holds the ``reason``.
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
    plugin_load_timeout_s: float = _limit(60.0, "a plugin that hangs when it is imported must not hold up the others")
    shutdown_grace_s: float = _limit(30.0, "a server that is told to stop must stop")


WORKER_LIMITS = frozenset(
    {"worker_memory_bytes", "max_jobs_per_worker", "max_worker_growth_bytes", "plugin_load_timeout_s"}
)
"""Limits that have no effect on a server without workers, such as a caching proxy."""
