"""The endpoints that only read: health, and the page."""

from typing import Any

import attrs
import pytest

from support.http_front import READY, Front, ask, request
from xformd.http.endpoints import HealthEndpoints
from xformd.http.web_page import build_page
from xformd.telemetry.status import readiness


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
def test_readiness_follows_the_status(
    changes: dict[str, Any], is_stopping: bool, verdict: str, reasons: list[str]
) -> None:
    status = attrs.evolve(READY, **changes)
    assert readiness(status, is_stopping=is_stopping) == {
        "status": verdict,
        "reasons": reasons,
        "quarantined": sorted(status.quarantined),
        "workers": {"idle": 1},
        "queue_length": status.queue_length,
        "in_flight": 3,
    }


@pytest.mark.parametrize(("quarantined", "is_stopping", "code"), [("", False, 200), ("a", False, 200), ("", True, 503)])
def test_readyz_has_the_status_code_of_readiness(quarantined: str, is_stopping: bool, code: int) -> None:
    status = attrs.evolve(READY, quarantined=frozenset(quarantined))
    health = HealthEndpoints(lambda: status, lambda: is_stopping)
    for target, expected in (("/livez", 200), ("/readyz", code)):
        answer = Front(health=health).ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (expected, "no-store")


def test_the_server_answers_the_page_with_its_policy() -> None:
    answer = ask(request("/"))
    document, policy = build_page("")
    assert (answer.status, answer.body) == (200, document)
    assert answer.headers["content-security-policy"] == policy
    names = ("content-type", "x-content-type-options", "referrer-policy")
    assert [answer.headers[name] for name in names] == ["text/html; charset=utf-8", "nosniff", "no-referrer"]
