"""A registry that is made from a listing says what the one said from which the listing was made."""

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.registries import registry_of
from xformd import Example, Option, Transform, transform
from xformd.plugins import listing
from xformd.plugins.described import registry_from
from xformd.plugins.registry import Conflict, Entry, Plugin, Registry

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
TEXTS = st.text(max_size=10)


@st.composite
def options(draw: st.DrawFn) -> Option:
    kind = draw(st.sampled_from(["int", "float", "bool", "str", "choice"]))
    values: dict[str, Any] = {
        "int": st.integers(-(2**53), 2**53),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "bool": st.booleans(),
        "str": TEXTS,
    }
    if kind == "choice":
        choices = tuple(draw(st.lists(TEXTS | st.integers(), min_size=1, max_size=3, unique_by=str)))
        return Option(draw(NAMES), "choice", draw(st.none() | st.sampled_from(choices)), choices)
    return Option(draw(NAMES), kind, draw(st.none() | values[kind]))


@st.composite
def transforms(draw: st.DrawFn, name: str) -> Transform:
    kind = draw(st.sampled_from(["text", "bytes"]))
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
        plugins.append(
            Plugin(
                name=draw(NAMES),
                distribution=f"d{index}",
                version=draw(TEXTS),
                source="somewhere",
                state=state,
                reason="" if state == "active" else draw(TEXTS),
                transforms=own,
                import_time_s=draw(st.integers(0, 10_000)) / 1000,
            )
        )
        entries.update((made.name, Entry(made, plugins[-1])) for made in own)
    return Registry(entries, tuple(plugins))


def everything(transform: Transform) -> bool:
    return True


def through_json(registry: Registry) -> Any:
    return json.loads(json.dumps(listing.to_json(registry)))


@given(registries())
def test_it_says_what_the_worker_said(registry: Registry) -> None:
    listed = through_json(registry)
    made = registry_from(listed, Registry({}, ()), everything)
    assert through_json(made) == listed
    for name, entry in registry.entries.items():
        assert made.resolve(name).transform == attrs.evolve(
            entry.transform, function=made.resolve(name).transform.function
        )


def shouts(*distributions: str) -> list[Plugin]:
    @transform
    def shout(poem: str) -> str:
        return poem

    return [
        Plugin(name="p", distribution=name, version="1", source=name, transforms=(shout,)) for name in distributions
    ]


@pytest.mark.parametrize("winner", [None, 0, 1])
@pytest.mark.parametrize("preferred", [False, True])
def test_a_contested_name_stays_contested(winner: int | None, preferred: bool) -> None:
    plugins = shouts("a", "b")
    entries = {} if winner is None else {"shout": Entry(plugins[winner].transforms[0], plugins[winner])}
    conflict = Conflict("shout", tuple(plugins), None if winner is None else plugins[winner], preferred)
    listed = through_json(Registry(entries, tuple(plugins), (conflict,)))
    made = registry_from(listed, Registry({}, ()), everything)
    assert through_json(made) == listed
    assert str(made.conflicts[0]) == str(conflict)


def test_only_those_contest_a_name_that_provide_it() -> None:
    first, second = shouts("a", "b")
    silent = Plugin(name="q", distribution="a", version="1", source="a")
    conflict = Conflict("shout", (first, second), None)
    listed = through_json(Registry({}, (first, silent, second), (conflict,)))
    made = registry_from(listed, Registry({}, ()), everything)
    assert str(made.conflicts[0]) == str(conflict)


def test_two_plugins_of_one_distribution_that_contest_a_name_are_told_apart() -> None:
    one, two = shouts("both", "both")
    plugins = (one, attrs.evolve(two, name="q"))
    listed = through_json(Registry({}, plugins, (Conflict("shout", plugins, None),)))
    made = registry_from(listed, Registry({}, ()), everything)
    assert through_json(made) == listed


def test_a_transform_that_is_known_by_its_description_runs_nowhere_here() -> None:
    (plugin,) = shouts("a")
    listed = through_json(Registry({"shout": Entry(plugin.transforms[0], plugin)}, (plugin,)))
    made = registry_from(listed, Registry({}, ()), everything)
    with pytest.raises(RuntimeError, match="runs in a worker"):
        made.resolve("shout").transform("poem")


def test_what_runs_in_the_server_is_the_servers_own() -> None:
    @transform(inline=True)
    def quick(poem: str) -> str:
        return "own"

    @transform(inline=True)
    def new(poem: str) -> str:
        return "new"

    own = registry_of(quick)
    listed = through_json(registry_of(quick, new))
    made = registry_from(listed, own, lambda transform: not transform.inline)
    assert made.entries == {"quick": own.entries["quick"]}
    assert made.plugins[0].source == "verses"
