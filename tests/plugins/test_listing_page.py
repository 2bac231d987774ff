"""The page says which fields the JSON of ``list-transforms`` has."""

import re
from pathlib import Path
from typing import Literal

import pytest

from xformd import transform
from xformd.plugins import listing
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
TABLE = PAGE.partition("\n## list-transforms --json\n")[2].partition("\n## ")[0]


@transform(examples=[("a", "A")])
def shout(poem: str, *, how: Literal["loud", "louder"] = "loud") -> str:
    """Say it louder."""
    return poem


def fields_on_the_page(row: str) -> list[str]:
    """Give the fields of a row: what stands in parentheses is a value, what follows a semicolon a remark."""
    (cell,) = re.findall(rf"^\| `{row}`[^|]*\| ([^|]+) \|$", TABLE, re.MULTILINE)
    return sorted(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", cell.partition(";")[0])))


@pytest.mark.parametrize("row", ["transforms", "options", "options_schema", "examples", "plugins", "conflicts"])
def test_each_list_has_the_fields_that_the_page_names(row: str) -> None:
    plugin = Plugin(name="shout", distribution="xformd-shout", source="shout", transforms=(shout,))
    conflict = Conflict("shout", (plugin, plugin), plugin, preferred=True)
    listed = listing.to_json(Registry({"shout": Entry(shout, plugin)}, (plugin,), (conflict,)))
    (found,) = [found[row] for found in (listed, *listed["transforms"]) if row in found]
    thing = found if isinstance(found, dict) else found[0]
    assert sorted(thing) == fields_on_the_page(row)
