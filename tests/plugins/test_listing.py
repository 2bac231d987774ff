"""A registry survives the way through its JSON, and the table shows every problem."""

import json
import re
from datetime import UTC, date
from enum import Enum
from importlib.resources import files
from typing import Any, Literal, get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.registries import plugin_of, registry_of
from xformd import BadOptions, Example, Option, Transform, transform
from xformd.plugins import listing
from xformd.plugins.options import BOUNDS, OptionType, options_schema
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry
from xformd.plugins.signature import Kind

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=10)


class Mood(Enum):
    LOW = "low"
    HIGH = 3


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**53), 2**53),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "str": TEXTS,
    "date": st.dates(),
    "datetime": st.datetimes(timezones=st.none() | st.just(UTC)),
}


@st.composite
def options(draw: st.DrawFn) -> Option:
    kind, is_list = draw(st.sampled_from(get_args(OptionType))), draw(st.booleans())
    choices = tuple(draw(st.lists(TEXTS | st.integers(), min_size=1, max_size=3, unique_by=str)))
    values = VALUES.get(kind, st.sampled_from(choices))
    default = draw(st.none() | (st.lists(values, max_size=3) if is_list else values))
    bounds = {"max_items": draw(st.integers(3, 9))} if is_list else {}
    if default is None and kind in ("int", "float", "date", "datetime"):
        bounds |= {draw(st.sampled_from(["minimum", "exclusive_maximum"])): draw(values)}
    return Option(
        *(draw(NAMES), kind, default, choices if kind == "choice" else (), draw(TEXTS)),
        is_optional=default is None and draw(st.booleans()),
        is_list=is_list,
        bounds=bounds,
    )


@st.composite
def transforms(draw: st.DrawFn, name: str) -> Transform:
    kinds: list[Kind] = ["text", "bytes"]
    kind, result_kind = draw(st.sampled_from(kinds)), draw(st.sampled_from(kinds))
    poems, results = (TEXTS if each == "text" else st.binary(max_size=10) for each in (kind, result_kind))
    return Transform(
        name=name,
        function=print,
        kind=kind,
        result_kind=result_kind,
        options=tuple(draw(st.lists(options(), max_size=2, unique_by=lambda option: option.name))),
        summary=draw(TEXTS),
        examples=tuple(draw(st.lists(st.builds(Example, poems, results), max_size=2))),
        inline=draw(st.booleans()),
        asynchronous=draw(st.booleans()),
        timeout_s=draw(st.none() | st.integers(1, 9) | st.floats(0.1, 9)),
        memory_bytes=draw(st.none() | st.integers(1, 10**12)),
        deterministic=draw(st.booleans()),
        returns_deferred=draw(st.booleans()),
        produces=draw(st.sampled_from(["text/html", "text/csv; header=present"])),
        accepts=draw(st.sampled_from([("text/plain",), ("image/*", "application/pdf")])),
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
        times = {name: draw(st.integers(0, 10_000)) / 1000 for name in ("import_time_s", "warm_up_time_s")}
        plugins.append(plugin_of(*own, distribution=f"d{index}", state=state, **times, **fields))
        entries.update((made.name, Entry(made, plugins[-1])) for made in own)
    return Registry(entries, tuple(plugins))


@transform(examples=[("a", "A!", {"marks": 1})], produces="text/html")
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
            "it runs in the server, which cannot load it: import of quick failed: no",
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
        "result_kind": "text",
        "accepts": ["text/plain"],
        "produces": "text/html",
        "batch": None,
        "batch_wait_s": 0.005,
        "concurrency": 100,
        "returns_deferred": False,
        "options": [
            {
                "name": "marks",
                "type": "int",
                "required": False,
                "default": 1,
                "takes": "a whole number",
                "description": "how many marks.",
            },
            {"name": "loud", "type": "bool", "required": False, "default": True, "takes": "true or false"},
            {"name": "end", "type": "str", "required": True, "takes": "a string"},
            {
                "name": "how",
                "type": "choice",
                "required": False,
                "default": "up",
                "takes": "one of up, down",
                "choices": ["up", "down"],
            },
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
    assert conflict["message"].startswith("transform echo is provided by a-dist 1.0 (p1) and b-dist 1.0 (p0): ")
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


@pytest.mark.parametrize(
    ("row", "schema"),
    [
        ("transforms", "Transform"),
        ("options", "Option"),
        ("examples", "Example"),
        ("plugins", "Plugin"),
        ("conflicts", "Conflict"),
    ],
)
def test_each_list_has_the_fields_that_are_described(row: str, schema: str) -> None:
    described = json.loads((files("xformd.http") / "openapi.json").read_text())["components"]["schemas"][schema]
    listed = through_json(attrs.evolve(troubled(), entries=registry_of(shout, BOUNDED).entries))
    fields = {field for each in (listed, *listed["transforms"]) for found in each.get(row, ()) for field in found}
    assert fields <= set(described["properties"])
    assert set(described["required"]) <= fields
    if row != "options":
        assert fields == set(described["properties"])
    else:
        bounds = {"default", "choices", "description", "list", *BOUNDS}
        assert set(described["properties"]) == {*described["required"], *bounds}


BOUNDED = Transform(
    *("bounded", print, "text"),
    options=(
        Option("width", "int", 5, bounds={"minimum": 1, "maximum": 10}, description="how wide"),
        Option("share", "float", is_optional=True, bounds={"exclusive_minimum": 0}),
        Option("since", "date", bounds={"maximum": date(2026, 1, 31)}),
        Option("moods", "choice", [Mood.LOW], tuple(Mood), is_list=True),
    ),
    examples=(Example("a", "b", {"since": date(2026, 1, 1), "moods": [Mood.HIGH]}),),
)


def test_the_json_has_ranges_and_plain_values() -> None:
    (listed,) = through_json(registry_of(BOUNDED))["transforms"]
    assert listed["options"][0].items() >= {"minimum": 1, "maximum": 10, "description": "how wide"}.items()
    assert listed["options"][0]["takes"] == "a whole number from 1 to 10"
    assert "default" not in listed["options"][1]
    assert listed["options"][2].items() >= {"type": "date", "required": True, "maximum": "2026-01-31"}.items()
    shown = {"type": "choice", "list": True, "choices": ["low", 3], "default": ["low"], "required": False}
    assert listed["options"][3].items() >= shown.items()
    assert listed["examples"][0]["options"] == {"since": "2026-01-01", "moods": [3]}


def test_a_server_checks_values_although_it_has_no_enum() -> None:
    there = from_worker(through_json(registry_of(BOUNDED))).resolve("bounded").transform
    assert there.convert({"since": "2026-01-31", "moods": "3,low"}) == {"since": date(2026, 1, 31), "moods": (3, "low")}
    for wrong in ({"since": "2026-02-01"}, {"since": "2026-01-01", "moods": "high"}, {"width": "0"}):
        with pytest.raises(BadOptions):
            there.convert(wrong)


def test_a_table_has_ranges() -> None:
    ranges = "width=5 (1..10),[share=<float> (0..)],since=<date> (..2026-01-31),moods=['low']"
    assert f"  {ranges}  " in listing.to_table(through_json(registry_of(BOUNDED)))


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


# What servers offer


def offered(*transforms: Transform, **fields: Any) -> Any:
    return through_json(registry_of(*transforms, **fields))


def test_a_fingerprint_is_the_same_wherever_what_is_offered_is_the_same() -> None:
    listed = offered(shout, same)
    elsewhere = listing.to_json(from_worker(listed), quarantined={"shout"})
    elsewhere["transforms"].reverse()
    assert listing.fingerprint(elsewhere["transforms"]) == listed["fingerprint"]
    assert re.fullmatch("[0-9a-f]{12}", listed["fingerprint"])


def test_a_fingerprint_tells_apart_whatever_a_caller_would_notice() -> None:
    others = {
        offered(*transforms, **fields)["fingerprint"]
        for transforms, fields in (
            ((shout, same), {}),
            ((shout,), {}),
            ((shout, same), {"version": "1.1"}),
            ((shout, same), {"distribution": "other"}),
            *(
                ((attrs.evolve(shout, examples=(), **changes), same), {})
                for changes in (
                    {"deterministic": True},
                    {"produces": "text/plain"},
                    {"options": shout.options[:1]},
                    {"kind": "bytes"},
                    {"result_kind": "bytes"},
                    {"accepts": ("text/html",)},
                )
            ),
        )
    }
    assert len(others) == 10


def test_servers_that_differ_are_compared_with_what_most_have() -> None:
    many = [attrs.evolve(same, name=f"a{number}") for number in range(8)]
    listings = {
        "a:1": offered(same, version="0.9"),
        "b:2": offered(shout, same, *many),
        "c:3": offered(shout, same, *many),
        "d:4": offered(attrs.evolve(shout, options=(), examples=()), same, *many),
        "e:5": offered(shout, same, attrs.evolve(same, name="owl"), *many, distribution="owls"),
    }
    assert listing.differences(listings) == [
        "a:1 lacks a0, a1, a2, a3, a4 and 4 more (xformd-verses 1.0)",
        "a:1 has same of xformd-verses 0.9, and b:2 and 1 more of xformd-verses 1.0",
        "d:4 has shout (xformd-verses 1.0) with options other than those of b:2 and 1 more",
        "e:5 has a0, a1, a2, a3, a4 and 5 more of owls 1.0, and b:2 and 1 more of xformd-verses 1.0",
        "e:5 has owl (owls 1.0), unknown to b:2 and 1 more",
    ]
    assert listing.differences(dict.fromkeys("ab", listings["b:2"])) == listing.differences({}) == []
