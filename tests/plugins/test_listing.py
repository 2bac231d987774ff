"""A registry survives the way through its JSON, and the table shows every problem."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.registries import plugin_of, registry_of
from xformd import Example, Option, Transform, transform
from xformd.plugins import listing
from xformd.plugins.definition import PoemKind
from xformd.plugins.options import OptionType, options_schema
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=10)


@st.composite
def options(draw: st.DrawFn) -> Option:
    kind = draw(st.sampled_from(get_args(OptionType)))
    values: dict[str, Any] = {
        "int": st.integers(-(2**53), 2**53),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "bool": st.booleans(),
        "str": TEXTS,
    }
    if kind == "choice":
        choices = tuple(draw(st.lists(TEXTS | st.integers(), min_size=1, max_size=3, unique_by=str)))
        return Option(draw(NAMES), "choice", draw(st.none() | st.sampled_from(choices)), choices, draw(TEXTS))
    return Option(draw(NAMES), kind, draw(st.none() | values[kind]), description=draw(TEXTS))


@st.composite
def transforms(draw: st.DrawFn, name: str) -> Transform:
    kind = draw(st.sampled_from(get_args(PoemKind)))
    poems = TEXTS if kind == "text" else st.binary(max_size=10)
    return Transform(
        name=name,
        function=print,
        kind=kind,
        options=tuple(draw(st.lists(options(), max_size=2, unique_by=lambda option: option.name))),
        summary=draw(TEXTS),
        examples=tuple(draw(st.lists(st.builds(Example, poems, poems), max_size=2))),
        inline=draw(st.booleans()),
        asynchronous=draw(st.booleans()),
        timeout_s=draw(st.none() | st.integers(1, 9) | st.floats(0.1, 9)),
        memory_bytes=draw(st.none() | st.integers(1, 10**12)),
        deterministic=draw(st.booleans()),
        media_type=draw(st.sampled_from([None, "text/html", "text/csv; header=present"])),
    )


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    names = draw(st.lists(NAMES, max_size=5, unique=True))
    plugins: list[Plugin] = []
    entries: dict[str, Entry] = {}
    for index in range(draw(st.integers(0, 3))):
        own = tuple(draw(transforms(name)) for name in names[index::3])
        state = "active" if own else draw(st.sampled_from(["active", "blocked", "failed"]))
        fields = {"name": draw(NAMES), "version": draw(TEXTS), "reason": "" if state == "active" else draw(TEXTS)}
        import_time_s = draw(st.integers(0, 10_000)) / 1000
        plugins.append(plugin_of(*own, distribution=f"d{index}", state=state, import_time_s=import_time_s, **fields))
        entries.update((made.name, Entry(made, plugins[-1])) for made in own)
    return Registry(entries, tuple(plugins))


@transform(examples=[("a", "A!", {"marks": 1})], media_type="text/html")
def shout(poem: str, *, marks: int = 1, loud: bool = True, end: str, how: Literal["up", "down"] = "up") -> str:
    """Say it louder.

    :param marks: how many marks.
    """
    return "own"


@transform(examples=[(b"\xff", b"\xff")])
def same(poem: bytes) -> bytes:
    """Change nothing."""
    return poem


def shouts(*distributions: str) -> list[Plugin]:
    return [plugin_of(shout, name=f"p{at}", distribution=name) for at, name in enumerate(distributions)]


def troubled() -> Registry:
    """A registry with two transforms, a failed plugin, a blocked one and a conflict."""
    broken = plugin_of(distribution="broken", name="b", state="failed", reason="it is broken")
    loose = plugin_of(distribution="x.py", source="/somewhere/x.py", state="blocked", reason="blocked by you")
    whole = registry_of(shout, same)
    conflict = Conflict("echo", tuple(shouts("b-dist", "a-dist")), None)
    return Registry(whole.entries, (broken, *whole.plugins, loose), (conflict,))


def through_json(registry: Registry) -> Any:
    return json.loads(json.dumps(listing.to_json(registry)))


def from_worker(listed: Any, own: Registry | None = None) -> Registry:
    return listing.from_json(listed, own or Registry({}, ()), lambda transform: not transform.inline or own is None)


@given(registries())
def test_a_registry_survives_the_way_through_json(registry: Registry) -> None:
    made = from_worker(through_json(registry))
    assert through_json(made) == through_json(registry)
    for name, entry in registry.entries.items():
        found = made.resolve(name).transform
        assert found == attrs.evolve(entry.transform, function=found.function)


@pytest.mark.parametrize("distributions", [("a", "b"), ("both", "both")])
@pytest.mark.parametrize("winner", [None, 0, 1])
@pytest.mark.parametrize("preferred", [False, True])
def test_a_conflict_survives_the_way_through_json(
    distributions: tuple[str, str], winner: int | None, preferred: bool
) -> None:
    plugins = shouts(*distributions)
    won = None if winner is None or distributions[0] == distributions[1] else plugins[winner]
    silent = plugin_of(distribution=distributions[0])
    conflict = Conflict("shout", tuple(plugins), won, preferred)
    entries = {} if won is None else {"shout": Entry(shout, won)}
    made = from_worker(listed := through_json(Registry(entries, (plugins[0], silent, plugins[1]), (conflict,))))
    assert through_json(made) == listed
    assert str(made.conflicts[0]) == str(conflict)


def test_a_transform_of_a_worker_does_not_run_here() -> None:
    with pytest.raises(RuntimeError, match="runs in a worker"):
        from_worker(through_json(registry_of(shout))).resolve("shout").transform("poem")


def test_a_transform_that_runs_in_the_server_is_the_servers_own() -> None:
    own = registry_of(attrs.evolve(shout, inline=True))
    made = from_worker(through_json(registry_of(attrs.evolve(shout, inline=True), same)), own)
    assert made.entries["shout"] is own.entries["shout"]
    assert made.entries["same"].transform.function is not same.function
    assert made.plugins[0].source == "verses"


def of_plugins(*plugins: Plugin) -> Registry:
    return Registry({one.name: Entry(one, plugin) for plugin in plugins for one in plugin.transforms}, plugins)


QUICK = plugin_of(attrs.evolve(shout, inline=True), attrs.evolve(same, name="other"), distribution="x-quick")


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (
            plugin_of(distribution="x-quick", state="failed", reason="import of quick failed: no"),
            "it runs in the server, which cannot import it: import of quick failed: no",
        ),
        (
            plugin_of(same, distribution="x-quick"),
            "it runs in the server, which finds other transforms in it than a worker: restart the server",
        ),
        (None, "it runs in the server, which finds other transforms in it than a worker: restart the server"),
    ],
    ids=["fails", "differs", "is missing"],
)
def test_a_plugin_that_the_server_cannot_import_as_a_worker_did_has_failed(own: Plugin | None, reason: str) -> None:
    listed = through_json(of_plugins(QUICK, plugin_of(same)))
    made = from_worker(listed, Registry({}, (own,) if own else ()))
    assert {plugin.distribution: plugin.reason for plugin in made.with_state("failed")} == {"x-quick": reason}
    assert [*made.entries] == ["same"]
    assert listing.to_json(made)["plugins"][0]["transforms"] == []


def test_a_plugin_does_not_fail_for_the_name_that_it_shares_with_one_that_does() -> None:
    quick, rival = plugin_of(attrs.evolve(shout, inline=True), distribution="x-quick"), plugin_of(shout, same)
    both = of_plugins(rival, quick)
    conflict = Conflict("shout", (quick, rival), quick, preferred=True)
    failed = plugin_of(distribution="x-quick", state="failed", reason="no")
    made = from_worker(through_json(attrs.evolve(both, conflicts=(conflict,))), Registry({}, (failed,)))
    assert [plugin.distribution for plugin in made.with_state("failed")] == ["x-quick"]
    assert [*made.entries] == ["same"]


def test_the_json_describes_everything_and_names_no_file() -> None:
    listed = through_json(troubled())
    assert listed["transforms"][1] == {
        "name": "shout",
        "summary": "Say it louder.",
        "kind": "text",
        "options": [
            {"name": "marks", "type": "int", "required": False, "default": 1, "description": "how many marks."},
            {"name": "loud", "type": "bool", "required": False, "default": True},
            {"name": "end", "type": "str", "required": True},
            {"name": "how", "type": "choice", "required": False, "default": "up", "choices": ["up", "down"]},
        ],
        "options_schema": options_schema(shout.options),
        "examples": [{"poem": "a", "result": "A!", "options": {"marks": 1}}],
        "inline": False,
        "asynchronous": False,
        "timeout_s": None,
        "memory_bytes": None,
        "deterministic": False,
        "media_type": "text/html",
        "state": "active",
        "plugin": "verses",
        "distribution": "xformd-verses",
        "version": "1.0",
    }
    assert listed["transforms"][0]["examples"][0]["poem"] == "\u00ff"
    assert listed["plugins"][0]["reason"] == "it is broken"
    (conflict,) = listed["conflicts"]
    assert (conflict["distributions"], conflict["winner"]) == (["a-dist", "b-dist"], None)
    assert conflict["message"].startswith("transform echo is provided by a-dist and b-dist: ")
    assert "/somewhere" not in json.dumps(listed)


@pytest.mark.parametrize(
    ("state", "told"), [("blocked", "why"), ("loading", "why"), ("failed", ""), ("odd", ""), (None, "")]
)
def test_clients_are_not_told_why_a_plugin_failed(state: str | None, told: str) -> None:
    row = {"name": "verses", "distribution": "verses", "version": "1", "reason": "why", "state": state}
    listed = {"transforms": [], "plugins": [row], "conflicts": [], "cache": {}}
    shown = listing.public(listed)
    assert shown == {**listed, "plugins": shown["plugins"]}
    assert [each["reason"] for each in shown["plugins"]] == [told]
    assert row["reason"] == "why"


def test_a_table_without_the_reason_says_where_it_is() -> None:
    failed = plugin_of(state="failed", reason="no numpy")
    shown = listing.to_table(listing.public(listing.to_json(Registry({}, (failed,)))))
    assert shown.splitlines()[1:] == ["failed: plugin xformd-verses 1.0 (verses): see the log of the server"]


@pytest.mark.parametrize("row", ["transforms", "options", "options_schema", "examples", "plugins", "conflicts"])
def test_each_list_has_the_fields_that_the_page_names(row: str) -> None:
    table = PAGE.partition("\n## list-transforms --json\n")[2].partition("\n## ")[0]
    (cell,) = re.findall(rf"^\| `{row}`[^|]*\| ([^|]+) \|$", table, re.MULTILINE)
    named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", cell.partition(";")[0]))  # without values and remarks
    listed = through_json(attrs.evolve(troubled(), entries=registry_of(shout).entries))
    (found,) = [found[row] for found in (listed, *listed["transforms"]) if row in found]
    fields = set(found) if isinstance(found, dict) else set().union(*found)
    assert fields == set(named)


def test_the_table_has_a_row_per_transform_and_a_line_per_problem() -> None:
    table = listing.to_table(listing.to_json(troubled())).splitlines()
    assert [line.split()[0] for line in table] == ["NAME", "same", "shout", "failed:", "blocked:", "conflict:"]
    assert "marks=1,loud=true,end=<str>,how=up" in table[2]
    assert table[2].endswith("xformd-verses 1.0")
    assert "broken 1.0 (b): it is broken" in table[3]


def test_what_a_plugin_writes_cannot_reach_the_terminal() -> None:
    sly = attrs.evolve(same, summary="Clear: \x1b[2J.", options=(Option("colour", "str", "\x1b[31m"),))
    assert all(line.isprintable() for line in listing.to_table(listing.to_json(registry_of(sly))).splitlines())


def test_a_narrow_terminal_shortens_only_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    wordy = attrs.evolve(same, summary="Say very much about very little, in a line that goes on and on and on.")
    row = listing.to_table(listing.to_json(registry_of(wordy))).splitlines()[1]
    assert "…" in row
    assert row.endswith("xformd-verses 1.0")
