"""Every page has its place in the site, and its links lead somewhere; ``make docs`` builds the site itself."""

import re
from collections import Counter
from fnmatch import fnmatchcase
from os.path import normpath
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "index.md"
OUTER = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = [
    *(ROOT / name for name in OUTER),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("plugins-example/README.md"),
    *ROOT.glob("plugins-example/*/README.md"),
]
PARTS = ["Tutorials", "How-to guides", "Reference", "Explanation"]

FENCED = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
CONTENTS = re.compile(r"^```\{toctree\}\n:caption: ([^\n]+)\n((?::\w+:\n)*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCED.sub("", page.read_text())


def anchors_of(page: Path) -> set[str]:
    """Return what a link to this page may have after its ``#``, as GitHub and MyST make it of headings."""
    headings = (re.sub(r"\[(.+?)\]\(.*?\)", r"\1", each) for each in HEADING.findall(text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def entries() -> list[tuple[str, str]]:
    """Return each part of the site with each entry of its contents, as a pattern of a page's name."""
    found = [(part, line) for part, _, lines in CONTENTS.findall(INDEX.read_text()) for line in lines.splitlines()]
    names = [(part, re.sub(r".*<(.+)>", r"\1", line)) for part, line in found]
    return [(part, normpath(f"docs/{name}.md")) for part, name in names]


def test_the_site_has_four_parts() -> None:
    assert [part for part, _, _ in CONTENTS.findall(INDEX.read_text())] == PARTS


def test_every_page_is_in_one_part_of_the_site() -> None:
    contents = entries()
    places = {
        name_of(page): [part for part, pattern in contents if fnmatchcase(name_of(page), pattern)]
        for page in PAGES
        if page != INDEX
    }
    assert {name: parts for name, parts in places.items() if len(parts) != 1} == {}


def test_every_entry_of_the_contents_is_a_page() -> None:
    names = [name_of(page) for page in PAGES]
    assert [pattern for _, pattern in entries() if not any(fnmatchcase(name, pattern) for name in names)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(text_of(page)):
        there = page.parent / target if target else page
        assert there.is_file(), target  # the site has no folders
        assert not anchor or anchor in anchors_of(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_two_headings_of_a_page_have_the_same_anchor(page: Path) -> None:
    if page.name != "CHANGELOG.md":
        headings = Counter(HEADING.findall(text_of(page)))
        assert [heading for heading, count in headings.items() if count > 1] == []
