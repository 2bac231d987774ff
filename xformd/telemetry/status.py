"""How a server is: what waits, what runs, and how its workers are. Values alone, for whoever asks."""

from collections.abc import Mapping

import attrs


@attrs.define
class WorkerHistory:
    """What has become of workers since the server's start, whichever generation they were of.

    Args:
        starts: how many processes were started.
        failed_starts: how often a start came to nothing, so that the next one was put off.
        deaths: how many ended that should not have: by a crash, for want of memory, by somebody else's hand.
    """

    starts: int = 0
    failed_starts: int = 0
    deaths: int = 0


@attrs.frozen(kw_only=True)
class ServerStatus:
    """How a server is at one moment.

    Args:
        queue_length: how many jobs wait for a worker.
        max_queue: how many may.
        workers: how many processes are in each state: ``starting``, ``idle``, ``busy``, ``ending``.
        proven_workers: how many have run their example well and can be given work that comes now.
        needs_workers: whether there are transforms that run in workers.
        history: what has become of workers so far.
        quarantined: the transforms that are in quarantine.
        in_flight: how many requests have been taken on and have no outcome yet.
    """

    queue_length: int
    max_queue: int
    workers: Mapping[str, int]
    proven_workers: int
    needs_workers: bool
    history: WorkerHistory
    quarantined: frozenset[str]
    in_flight: int
