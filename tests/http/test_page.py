"""The page as one document, and the policy that it comes with."""

import base64
import hashlib
import re
import zipfile
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from support.http_front import Front, request
from xformd.http.endpoints import build_page

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


def test_the_page_is_small_and_made_once() -> None:
    document, _ = build_page()
    assert len(document) < MOST_BYTES
    assert build_page() is build_page()


def test_the_document_has_one_style_and_one_script_with_every_source_in_them() -> None:
    inline = Outline(build_page()[0].decode()).inline
    assert [len(inline[kind]) for kind in ("style", "script")] == [1, 1]
    for name in SOURCES:
        text = (files("xformd.http") / "page" / name).read_text()
        if name != "index.html":
            assert text in inline["style" if name.endswith(".css") else "script"][0], name


def test_the_policy_knows_the_style_and_the_script_by_their_hashes() -> None:
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


def test_the_document_asks_for_nothing_from_elsewhere() -> None:
    for tag, attributes in Outline(build_page()[0].decode()).tags:
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag


def test_the_script_makes_no_markup_of_text() -> None:
    script = Outline(build_page()[0].decode()).inline["script"][0]
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser|setHTML"
    assert re.findall(dangerous, script) == []


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_a_page_that_one_can_read(name: str) -> None:
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
