"""The Registry: a name is found, suggested, or contested, and it can be listed."""

import json

import pytest

from xformd import AmbiguousTransform, NoSuchTransform, Transform, transform
from xformd.plugins import listing
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry


@transform(examples=[("a", "A!", {"marks": 1})], media_type="text/html")
def shout(poem: str, *, marks: int = 1, loud: bool = True, end: str) -> str:
    """Say it louder."""
    return poem


@transform(examples=[(b"\xff", b"\xff")])
def same(poem: bytes) -> bytes:
    """Change nothing."""
    return poem


def registry_of(*transforms: Transform) -> Registry:
    plugin = Plugin(name="shout", distribution="xformd-shout", version="1.2", source="shout", transforms=transforms)
    broken = Plugin(name="b", distribution="broken", version="1", source="b", state="failed", reason="it is broken")
    loose = Plugin(
        name="x",
        distribution="x.py",
        source="/somewhere/x.py",
        state="blocked",
        reason="blocked by the setting 'block'",
    )
    rivals = tuple(Plugin(name="e", distribution=name, version="1", source="e") for name in ("b-dist", "a-dist"))
    conflict = Conflict("echo", rivals, None)
    entries = {transform.name: Entry(transform, plugin) for transform in transforms}
    return Registry(entries, (broken, plugin, loose), (conflict,))


def test_a_name_is_found_with_where_it_came_from() -> None:
    entry = registry_of(shout).resolve("shout")
    assert entry.transform is shout
    assert entry.plugin.label == "xformd-shout 1.2 (shout)"


def test_a_misspelled_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(NoSuchTransform, match=r"no transform 'shuot' here; did you mean 'shout'\?"):
        registry_of(shout).resolve("shuot")
    with pytest.raises(NoSuchTransform, match="see 'xformd list-transforms'"):
        registry_of(shout).resolve("entirely-else")


def test_a_contested_name_is_answered_with_who_contests_it_and_what_to_do() -> None:
    with pytest.raises(AmbiguousTransform, match="a-dist and b-dist: nobody has it; choose with --prefer echo=a-dist"):
        registry_of().resolve("echo")


def test_a_conflict_within_one_distribution_gets_advice_that_can_be_followed() -> None:
    one, two = (Plugin(name=name, distribution="both", version="1", source=name) for name in ("one", "two"))
    assert str(Conflict("echo", (one, two), None)) == (
        "transform echo is provided by both 1 (one) and both 1 (two): nobody has it; keep all but one out with --block"
    )


def test_plugins_are_found_by_their_state() -> None:
    assert [plugin.name for plugin in registry_of().with_state("failed")] == ["b"]


def test_the_json_tells_all_and_names_no_file() -> None:
    listed = json.loads(json.dumps(listing.to_json(registry_of(shout, same))))
    assert listed["transforms"][1] == {
        "name": "shout",
        "summary": "Say it louder.",
        "kind": "text",
        "options": [
            {"name": "marks", "type": "int", "required": False, "default": 1},
            {"name": "loud", "type": "bool", "required": False, "default": True},
            {"name": "end", "type": "str", "required": True},
        ],
        "options_schema": {
            "type": "object",
            "properties": {
                "marks": {"type": "integer", "default": 1},
                "loud": {"type": "boolean", "default": True},
                "end": {"type": "string"},
            },
            "required": ["end"],
            "additionalProperties": False,
        },
        "examples": [{"poem": "a", "result": "A!", "options": {"marks": 1}}],
        "inline": False,
        "asynchronous": False,
        "timeout_s": None,
        "memory_bytes": None,
        "deterministic": False,
        "media_type": "text/html",
        "state": "active",
        "plugin": "shout",
        "distribution": "xformd-shout",
        "version": "1.2",
    }
    assert listed["transforms"][0]["examples"][0]["poem"] == "\u00ff"
    assert listed["plugins"][0]["reason"] == "it is broken"
    (conflict,) = listed["conflicts"]
    assert (conflict["distributions"], conflict["winner"]) == (["a-dist", "b-dist"], None)
    assert conflict["message"].startswith("transform echo is provided by a-dist and b-dist: nobody has it")
    assert "/somewhere" not in json.dumps(listed)


def test_the_table_has_a_row_for_each_transform_and_a_line_for_each_problem() -> None:
    table = listing.to_table(listing.to_json(registry_of(shout, same))).splitlines()
    assert [line.split()[0] for line in table] == ["NAME", "same", "shout", "failed:", "blocked:", "conflict:"]
    assert "marks=1,loud=true,end=<str>" in table[2]
    assert table[2].endswith("xformd-shout 1.2")
    assert "broken 1 (b): it is broken" in table[3]


def test_what_a_plugin_writes_cannot_reach_the_terminal() -> None:
    @transform
    def sly(poem: str, *, colour: str = "\x1b[31m") -> str:
        """Clear the screen: \x1b[2J."""
        return poem

    assert all(line.isprintable() for line in listing.to_table(listing.to_json(registry_of(sly))).splitlines())


def test_a_narrow_terminal_shortens_summaries_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    @transform
    def wordy(poem: str) -> str:
        """Say very much about very little, in a very long line that goes on and on and on and on."""
        return poem

    monkeypatch.setenv("COLUMNS", "60")
    row = listing.to_table(listing.to_json(registry_of(wordy))).splitlines()[1]
    assert "…" in row
    assert row.endswith("xformd-shout 1.2")
