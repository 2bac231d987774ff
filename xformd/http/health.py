"""``/livez`` and ``/readyz``: whether the process turns, and whether it can do its work. Both cost next to nothing."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from xformd.telemetry.status import ServerStatus

READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"

_NOT_KEPT = {"cache-control": "no-store"}


def judge(status: ServerStatus, *, is_stopping: bool) -> dict[str, Any]:
    """Say whether a server can take requests.

    Args:
        status: how it is.
        is_stopping: whether it takes nothing new.

    Returns:
        ``status`` is ``ready``, ``degraded`` (it takes requests, but not for each transform) or ``not ready``;
        ``reasons`` says why, for a person.
    """
    reasons = []
    if is_stopping:
        reasons.append("the server is stopping")
    if status.needs_workers and not status.proven_workers:
        reasons.append("no worker is ready; the log says why, if that lasts")
    if status.queue_length >= status.max_queue:
        reasons.append(f"the queue is full: {status.queue_length} jobs wait")
    verdict = NOT_READY if reasons else DEGRADED if status.quarantined else READY
    reasons += [f"transform {name} is in quarantine" for name in sorted(status.quarantined)]
    return {
        "status": verdict,
        "reasons": reasons,
        "quarantined": sorted(status.quarantined),
        "workers": dict(status.workers),
        "queue_length": status.queue_length,
        "in_flight": status.in_flight,
    }


class Health:
    """Says how the server is.

    Args:
        status: gives how it is now.
        is_stopping: says whether it takes nothing new.
    """

    def __init__(self, status: Callable[[], ServerStatus], is_stopping: Callable[[], bool]) -> None:
        self._status = status
        self._is_stopping = is_stopping

    def routes(self) -> list[Route]:
        """Give what is answered here."""
        return [Route("/livez", self._live), Route("/readyz", self._ready)]

    async def _live(self, request: Request) -> JSONResponse:
        del request
        return JSONResponse({"status": "alive"}, headers=_NOT_KEPT)

    async def _ready(self, request: Request) -> JSONResponse:
        del request
        found = judge(self._status(), is_stopping=self._is_stopping())
        return JSONResponse(found, 503 if found["status"] == NOT_READY else 200, _NOT_KEPT)
