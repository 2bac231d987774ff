"""The pages of settings and commands: what happens past each limit, and examples that are valid."""

import re
from pathlib import Path

import attrs

from xformd.config import Settings, configure
from xformd.limits import Limits

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "settings.md").read_text()
EXAMPLES = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_page_says_what_happens_past_each_limit() -> None:
    table = PAGE.partition("\n### Past a limit\n")[2].partition("\n### ")[0]
    first_cells = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    named = [name for cell in first_cells for name in re.findall(r"`(max_\w+|\w+_\w+)`", cell)]
    assert sorted(named) == sorted(attrs.fields_dict(Limits))


def read(page: str, number: int, folder: Path) -> Settings:
    """Read one of a page's examples."""
    file = folder / "xformd.toml"
    file.write_text(EXAMPLES.findall((DOCS / page).read_text())[number])
    return configure(file).settings


def test_the_tables_of_the_pages_are_those_of_plugins_and_commands(tmp_path: Path) -> None:
    table = read("settings.md", 1, tmp_path).selection.settings["xformd-summarise"]
    assert table.values == {"model": "large", "key_file": "summarise.key"}
    assert [*read("commands.md", 0, tmp_path).selection.commands] == ["narrow"]


def test_the_example_is_a_valid_file(tmp_path: Path) -> None:
    settings = read("settings.md", 0, tmp_path)
    assert (settings.workers, *settings.inline, *settings.isolate) == (4, "markdown", "shout")
    assert settings.limits.max_request_bytes == 65_536
    assert settings.selection.preferred == {"shout": "xformd-shout"}
