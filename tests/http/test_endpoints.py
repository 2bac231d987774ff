"""The endpoints that only read: health, and the page as one document with its policy."""

import base64
import hashlib
import re
import zipfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.http_front import Front, request
from xformd.http.application import HttpDependencies, make_monitoring_application
from xformd.http.endpoints import HealthEndpoints, build_page, readiness
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
def test_readiness_follows_the_status(
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
    [(WELL, False, 200), (attrs.evolve(WELL, quarantined=frozenset("a")), False, 200), (WELL, True, 503)],
)
async def test_readyz_has_the_status_code_of_readiness(status: ServerStatus, is_stopping: bool, code: int) -> None:
    front = watched(HealthEndpoints(lambda: status, lambda: is_stopping))
    for target, expected in (("/livez", 200), ("/readyz", code)):
        (answer,) = await front.ask(request(target))
        assert (answer.status, answer.headers["cache-control"]) == (expected, "no-store")


def watched(health: HealthEndpoints) -> Front:
    """Return a front with the monitoring endpoints only."""
    whole = Front()
    parts = HttpDependencies(
        service=whole.service, metrics=whole.metrics, limits=whole.limits, health=health, render_metrics=lambda: b"1"
    )
    return Front(application=make_monitoring_application(parts))


MOST_BYTES = 100_000
ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.name for path in (files("xformd.http") / "page").iterdir())


class Outline(HTMLParser):
    """The tags of a document, and what stands in its scripts and styles."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.inline and self.tags[-1][0] == self.lasttag and data.strip():
            self.inline[self.lasttag].append(data)


def directives(policy: str) -> dict[str, str]:
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


def test_the_page_is_small_and_built_once() -> None:
    document, _ = build_page()
    assert len(document) < MOST_BYTES
    assert build_page() is build_page()


def test_every_source_is_inlined() -> None:
    inline = Outline(build_page()[0].decode()).inline
    assert [len(inline[kind]) for kind in ("style", "script")] == [1, 1]
    for name in SOURCES:
        text = (files("xformd.http") / "page" / name).read_text()
        if name != "index.html":
            assert text in inline["style" if name.endswith(".css") else "script"][0], name


def test_the_policy_has_the_hashes_of_style_and_script() -> None:
    document, policy = build_page()
    for kind, (text,) in Outline(document.decode()).inline.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives(policy)[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_policy_allows_nothing_else() -> None:
    allowed = directives(build_page()[1])
    del allowed["script-src"], allowed["style-src"]
    assert allowed == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_page_loads_nothing_else() -> None:
    for tag, attributes in Outline(build_page()[0].decode()).tags:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_the_script_parses_no_markup() -> None:
    script = Outline(build_page()[0].decode()).inline["script"][0]
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser|setHTML"
    assert re.findall(dangerous, script) == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_short(name: str) -> None:
    lines = (files("xformd.http") / "page" / name).read_text().splitlines()
    assert len(lines) < 300


async def test_the_server_answers_the_page_with_its_policy() -> None:
    (answer,) = await Front().connect().ask(request("/"))
    assert answer.status == 200
    assert answer.body == build_page()[0]
    headers = ("content-type", "content-security-policy", "x-content-type-options", "referrer-policy")
    assert [answer.headers[name] for name in headers] == [
        "text/html; charset=utf-8",
        build_page()[1],
        "nosniff",
        "no-referrer",
    ]


def test_the_wheel_has_the_sources_of_the_page(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="install hatchling to build packages")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        assert {f"xformd/http/page/{name}" for name in SOURCES} <= set(archive.namelist())
