"""``/livez`` and ``/readyz``: whether the process turns, and whether it can do its work. Both cost next to nothing."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from xformd.telemetry.status import Vitals

READY, DEGRADED, NOT_READY = "ready", "degraded", "not ready"

_NOT_KEPT = {"cache-control": "no-store"}


def judge(vitals: Vitals, *, is_stopping: bool) -> dict[str, Any]:
    """Say whether a server can take requests.

    Args:
        vitals: how it is.
        is_stopping: whether it takes nothing new.

    Returns:
        ``status`` is ``ready``, ``degraded`` (it takes requests, but not for each transform) or ``not ready``;
        ``reasons`` says why, for a person.
    """
    reasons = []
    if is_stopping:
        reasons.append("the server is stopping")
    if vitals.needs_workers and not vitals.proven_workers:
        reasons.append("no worker is ready; the log says why, if that lasts")
    if vitals.queue_length >= vitals.max_queue:
        reasons.append(f"the queue is full: {vitals.queue_length} jobs wait")
    status = NOT_READY if reasons else DEGRADED if vitals.quarantined else READY
    reasons += [f"transform {name} is in quarantine" for name in sorted(vitals.quarantined)]
    return {
        "status": status,
        "reasons": reasons,
        "quarantined": sorted(vitals.quarantined),
        "workers": dict(vitals.workers),
        "queue_length": vitals.queue_length,
        "in_flight": vitals.in_flight,
    }


class Health:
    """Says how the server is.

    Args:
        vitals: gives how it is now.
        is_stopping: says whether it takes nothing new.
    """

    def __init__(self, vitals: Callable[[], Vitals], is_stopping: Callable[[], bool]) -> None:
        self._vitals = vitals
        self._is_stopping = is_stopping

    def routes(self) -> list[Route]:
        """Give what is answered here."""
        return [Route("/livez", self._live), Route("/readyz", self._ready)]

    async def _live(self, request: Request) -> JSONResponse:
        del request
        return JSONResponse({"status": "alive"}, headers=_NOT_KEPT)

    async def _ready(self, request: Request) -> JSONResponse:
        del request
        found = judge(self._vitals(), is_stopping=self._is_stopping())
        return JSONResponse(found, 503 if found["status"] == NOT_READY else 200, _NOT_KEPT)
