"""Health: when a server takes requests, when not for each transform, and what it says to those who ask."""

from typing import Any

import attrs
import pytest

from support.http_front import Front, request
from xformd.http.application import HttpDependencies, make_monitoring_application
from xformd.http.endpoints import HealthEndpoints, readiness
from xformd.telemetry.status import ServerStatus, WorkerHistory

WELL = ServerStatus(
    queue_length=0,
    max_queue=2,
    workers={"idle": 1},
    proven_workers=1,
    needs_workers=True,
    history=WorkerHistory(),
    quarantined=frozenset(),
    in_flight=3,
)


@pytest.mark.parametrize(
    ("changes", "is_stopping", "verdict", "reasons"),
    [
        ({}, False, "ready", []),
        ({}, True, "not ready", ["the server is stopping"]),
        ({"proven_workers": 0}, False, "not ready", ["no worker is ready; if that lasts, see the log"]),
        ({"proven_workers": 0, "needs_workers": False}, False, "ready", []),
        ({"queue_length": 1}, False, "ready", []),
        ({"queue_length": 2}, False, "not ready", ["the queue is full: 2 jobs are waiting"]),
        ({"quarantined": {"b", "a"}}, False, "degraded", [f"transform {name} is in quarantine" for name in "ab"]),
        ({"quarantined": {"a"}}, True, "not ready", ["the server is stopping", "transform a is in quarantine"]),
    ],
)
def test_a_server_is_judged_by_its_status(
    changes: dict[str, Any], is_stopping: bool, verdict: str, reasons: list[str]
) -> None:
    status = attrs.evolve(WELL, **changes)
    assert readiness(status, is_stopping=is_stopping) == {
        "status": verdict,
        "reasons": reasons,
        "quarantined": sorted(status.quarantined),
        "workers": {"idle": 1},
        "queue_length": status.queue_length,
        "in_flight": 3,
    }


@pytest.mark.parametrize(
    ("status", "is_stopping", "code"),
    [(WELL, False, 200), (attrs.evolve(WELL, quarantined={"a"}), False, 200), (WELL, True, 503)],
)
async def test_what_is_asked_is_answered_by_its_status(status: ServerStatus, is_stopping: bool, code: int) -> None:
    front = watched(HealthEndpoints(lambda: status, lambda: is_stopping))
    for target, expected in (("/livez", 200), ("/readyz", code)):
        (answer,) = await front.ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (expected, "no-store")


def watched(health: HealthEndpoints) -> Front:
    """Give a front that answers those alone who watch a server."""
    whole = Front()
    parts = HttpDependencies(
        service=whole.service, metrics=whole.metrics, limits=whole.limits, health=health, render_metrics=lambda: b"1"
    )
    return Front(application=make_monitoring_application(parts))
