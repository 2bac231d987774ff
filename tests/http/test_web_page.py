"""The page as one document with its policy."""

import base64
import hashlib
import re
import zipfile
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

import pytest

from xformd.http import web_page
from xformd.http.web_page import build_page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "xformd" / "http" / "page"
SOURCES = {path.name: path.read_text() for path in sorted(PAGE.iterdir())}
ADDRESS = "127.0.0.1:11000"


class Outline(HTMLParser):
    """The tags of the page, and what stands in its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(build_page(ADDRESS)[0].decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.inline and self.tags[-1][0] == self.lasttag and data.strip():
            self.inline[self.lasttag].append(data)


def test_the_page_is_small_and_built_once() -> None:
    assert len(build_page(ADDRESS)[0]) < 100_000
    assert build_page(ADDRESS) is build_page(ADDRESS)
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
    assert dict(part.strip().partition(" ")[::2] for part in build_page(ADDRESS)[1].split(";")) == {
        "default-src": "'none'",
        "script-src": hashes["script"],
        "style-src": hashes["style"],
        "connect-src": "'self' blob:",
        "img-src": "data: blob:",
        "frame-src": "blob:",
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
    sinks = r"(?:inner|outer)HTML\s*\+?=|insertAdjacentHTML|document\.write|srcdoc\s*[=:]|DOMParser|setHTML"
    dangerous = rf"{sinks}|\beval\(|new Function"
    assert re.findall(dangerous, Outline().inline["script"][0]) == []


def meta(document: bytes) -> dict[str, str]:
    return dict(re.findall(r'<meta name="xformd-([a-z-]+)" content="([^"]*)">', document.decode()))


def test_the_page_has_the_address_and_its_policy_is_the_same_for_all() -> None:
    document, policy = build_page('unix:/run/"><script>alert(1)</script>')
    assert meta(document)["netstring-address"] == "unix:/run/&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"
    assert policy == build_page(ADDRESS)[1]
    assert set(meta(build_page("")[0]).values()) == {""}
    assert meta(build_page("", takes_tokens=True)[0])["takes-tokens"] == "yes"


def test_the_page_has_the_url_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    described = Message()
    described["Project-URL"] = "Source, https://example.org/source"
    described["Project-URL"] = "Documentation, https://example.org/docs?a&b"
    monkeypatch.setattr(web_page, "metadata", lambda _: described)
    assert meta(build_page("elsewhere:1")[0])["documentation"] == "https://example.org/docs?a&amp;b"


def test_the_wheel_has_what_is_not_python(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="install hatchling to build packages")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        names = {f"xformd/http/page/{name}" for name in SOURCES} | {"xformd/http/openapi.json"}
        assert names <= set(archive.namelist())
