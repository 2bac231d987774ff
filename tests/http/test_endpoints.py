"""The endpoints that only read: the listing, health, and the page."""

import json
from typing import Any
from unittest.mock import Mock

import attrs
import pytest

from support.http_front import READY, Front, ask, markup, request
from support.registries import registry_of
from xformd.http import endpoints, openapi
from xformd.http.endpoints import HealthEndpoints
from xformd.http.web_page import build_page
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.telemetry.status import readiness


@pytest.mark.parametrize(
    ("changes", "is_stopping", "verdict", "reasons"),
    [
        ({}, False, "ready", []),
        ({}, True, "not ready", ["the server is stopping"]),
        ({"proven_workers": 0}, False, "not ready", ["no worker is ready; if that lasts, see the log"]),
        ({"proven_workers": 0, "needs_workers": False}, False, "ready", []),
        ({"queue_length": 1}, False, "ready", []),
        ({"queue_length": 2}, False, "ready", []),  # of one caller, whose last would give way
        (
            {"queue_length": 2, "takes_newcomers": False},
            False,
            "not ready",
            ["the queue is full: 2 jobs are waiting"],
        ),
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
        "fingerprint": "3f9c",
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


def test_where_others_need_credentials_readyz_tells_nothing_of_transforms() -> None:
    """Not even their fingerprint, which would show that one has come that they may not know of."""
    status = attrs.evolve(READY, quarantined=frozenset("a"))
    health = HealthEndpoints(lambda: status, lambda: False, names_plugins=False)
    shown = json.loads(Front(health=health).ask(request("/readyz")).body)
    assert shown.keys() == {"status", "workers", "queue_length", "in_flight"}


def test_the_server_answers_the_page_with_its_policy() -> None:
    answer = ask(request("/"))
    document, policy = build_page("")
    assert (answer.status, answer.body) == (200, document)
    assert answer.headers["content-security-policy"] == policy
    names = ("content-type", "x-content-type-options", "referrer-policy")
    assert [answer.headers[name] for name in names] == ["text/html; charset=utf-8", "nosniff", "no-referrer"]


def get(front: Front, target: str, **headers: Any) -> Any:
    return json.loads(front.ask(request(target, **headers)).body)


def test_the_interface_is_described_once_for_each_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Mock(wraps=openapi.build)
    monkeypatch.setattr(openapi, "build", build)
    front = Front(trusted_proxies=["127.0.0.1"])
    urls = [
        get(front, "/openapi.json", x_forwarded_prefix=prefix)["servers"][0]["url"] for prefix in ("/a", "/b", "/a")
    ]
    assert (urls, build.call_count) == (["/a", "/b", "/a"], 1)
    front.service.swap(Generation(registry_of(markup), InlineRunner(1_000, front.clock)))
    assert "/transform/upper" not in get(front, "/openapi.json")["paths"]


def test_a_transform_is_described_from_one_reading_of_the_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Mock(wraps=json.loads)
    monkeypatch.setattr(endpoints, "json", Mock(loads=loads, dumps=json.dumps))
    front = Front()
    found = [front.ask(request(f"/transforms/{name}")) for name in ("markup", "upper", "markup")]
    assert ([answer.status for answer in found], loads.call_count) == ([200] * 3, 1)
    front.service.swap(Generation(registry_of(markup, version="2.0"), InlineRunner(1_000, front.clock)))
    assert get(front, "/transforms/markup")["version"] == "2.0"
    assert front.ask(request("/transforms/upper")).status == 404
