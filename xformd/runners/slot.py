"""What a supervisor knows of a worker, and what it needs of one."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import attrs
from twisted.internet.interfaces import IDelayedCall

from xformd.runners.worker_handle import WorkerEvents
from xformd.wire import session

WorkerState = Literal["starting", "idle", "busy"]


class Worker(Protocol):
    """What is needed of a worker process."""

    pid: int | None

    def send(self, request: session.Request) -> None:
        """Give it a job."""
        ...

    def kill(self, why: str = "") -> None:
        """End it; ``worker_ended`` says when that is done."""
        ...

    def resident_bytes(self) -> int:
        """Give how much memory it has in use."""
        ...


Launch = Callable[[WorkerEvents], Worker]
"""Starts a worker; raises ``OSError`` where the system cannot."""


@attrs.frozen
class SelfTest:
    """An example that a worker must run well before it is given work."""

    request: session.Request
    result: bytes


@attrs.define(eq=False)
class WorkerSlot:
    """What is known of one worker.

    Args:
        worker: its process.
        state: what it does.
        job: whatever its user notes here while it is busy.
        jobs: how many it has been given.
    """

    worker: Worker
    state: WorkerState = "starting"
    job: Any = None
    jobs: int = 0
    first_resident_bytes: int = 0
    measured_at: float = 0.0
    start_timer: IDelayedCall | None = None

    @property
    def request_id(self) -> int:
        """The id of the request that it has; its example had the first."""
        return self.jobs + 1
