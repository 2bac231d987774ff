"""The endpoints that only read: health, and the page as one document with its policy."""

import base64
import hashlib
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

from support.http_front import READY, Front, ask, request
from xformd.http.endpoints import HealthEndpoints, build_page
from xformd.telemetry.status import readiness

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "xformd" / "http" / "page"
SOURCES = {path.name: path.read_text() for path in sorted(PAGE.iterdir())}


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


class Outline(HTMLParser):
    """The tags of the page, and what stands in its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(build_page()[0].decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.inline and self.tags[-1][0] == self.lasttag and data.strip():
            self.inline[self.lasttag].append(data)


def test_the_page_is_small_and_built_once() -> None:
    assert len(build_page()[0]) < 100_000
    assert build_page() is build_page()
    assert max(len(text.splitlines()) for text in SOURCES.values()) < 300


def test_every_source_is_inlined() -> None:
    inline = Outline().inline
    assert [len(inline[kind]) for kind in ("style", "script")] == [1, 1]
    for name, text in SOURCES.items():
        if name != "index.html":
            assert text in inline["style" if name.endswith(".css") else "script"][0], name


def test_the_policy_allows_only_this_style_and_script() -> None:
    hashes = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, (text,) in Outline().inline.items()
    }
    assert dict(part.strip().partition(" ")[::2] for part in build_page()[1].split(";")) == {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }


def test_the_page_loads_nothing_else() -> None:
    for tag, attributes in Outline().tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_the_script_parses_no_markup() -> None:
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser|setHTML"
    assert re.findall(dangerous, Outline().inline["script"][0]) == []


def test_the_server_answers_the_page_with_its_policy() -> None:
    answer = ask(request("/"))
    assert (answer.status, answer.body) == (200, build_page()[0])
    assert answer.headers["content-security-policy"] == build_page()[1]
    names = ("content-type", "x-content-type-options", "referrer-policy")
    assert [answer.headers[name] for name in names] == ["text/html; charset=utf-8", "nosniff", "no-referrer"]


def test_the_wheel_has_the_sources_of_the_page(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="install hatchling to build packages")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        assert {f"xformd/http/page/{name}" for name in SOURCES} <= set(archive.namelist())
