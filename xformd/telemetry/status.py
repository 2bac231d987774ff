"""The status of a server: what waits, what runs, and the state of its workers."""

from collections.abc import Mapping

import attrs


@attrs.define
class WorkerHistory:
    """The workers since the server's start, of all generations.

    Args:
        starts: how many processes were started.
        failed_starts: how many starts failed, so that the next one was delayed.
        deaths: how many ended unexpectedly: by a crash, lack of memory, or a signal.
    """

    starts: int = 0
    failed_starts: int = 0
    deaths: int = 0


@attrs.frozen(kw_only=True)
class ServerStatus:
    """A server at one moment.

    Args:
        queue_length: how many jobs wait for a worker.
        max_queue: how many may wait.
        workers: how many processes are in each state: ``starting``, ``idle``, ``busy``, ``ending``.
        proven_workers: how many have passed their self-test and can take jobs now.
        needs_workers: whether there are transforms that run in workers.
        history: the workers so far.
        quarantined: the transforms in quarantine.
        in_flight: how many accepted requests are not done yet.
    """

    queue_length: int
    max_queue: int
    workers: Mapping[str, int]
    proven_workers: int
    needs_workers: bool
    history: WorkerHistory
    quarantined: frozenset[str]
    in_flight: int
