"""Selecting and loading, with plugins that are made in the test; real packages are in tests/integration."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import attrs
import pytest

import xformd
from xformd import ConfigError, hookimpl, transform
from xformd.plugins import discovery, hookspecs, loader
from xformd.plugins.discovery import Candidate
from xformd.plugins.registry import BUILT_IN, Plugin
from xformd.plugins.selection import Selection, parse_distributions


@transform
def echo(poem: str) -> str:
    return poem


def candidate(name: str, distribution: str, imported: list[str]) -> Candidate:
    @hookimpl
    def xformd_transforms() -> list[object]:
        return [echo]

    def load() -> SimpleNamespace:
        imported.append(name)
        return SimpleNamespace(xformd_transforms=xformd_transforms)

    return Candidate(name=name, distribution=distribution, version="1", source=name, load=load)


@pytest.fixture
def imported() -> list[str]:
    """The plugins that have been imported, in order."""
    return []


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, imported: list[str]) -> None:
    """Two plugins of one distribution and one of another, all with the transform ``echo``."""
    pairs = [("one", "both"), ("two", "both"), ("three", "other")]
    found = [candidate(name, distribution, imported) for name, distribution in pairs]
    monkeypatch.setattr(discovery, "installed", lambda: found)


def test_a_preferred_distribution_provides_the_transform() -> None:
    assert loader.load(Selection(preferred={"echo": "other"})).resolve("echo").plugin.name == "three"


@pytest.mark.parametrize(
    ("name", "distribution", "says"),
    [
        ("echo", "both", r"echo is provided by both 1 \(one\) and both 1 \(two\) and other 1 \(three\)"),
        ("owl", "other", "no loaded plugin provides a transform 'owl'"),
    ],
)
def test_a_preference_must_match_exactly_one_plugin(name: str, distribution: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loader.load(Selection(preferred={name: distribution}))


def test_a_blocked_plugin_leaves_its_distributions_other_plugins() -> None:
    registry = loader.load(Selection(blocked=frozenset({"one", "three"})))
    assert registry.resolve("echo").plugin.name == "two"
    assert registry.conflicts == ()


def test_the_plugins_of_one_distribution_are_those_of_any_spelling_of_its_name() -> None:
    plugins = loader.load().plugins
    assert [plugin.name for plugin in loader.of_distribution("BOTH", plugins)] == ["one", "two"]


def test_an_unknown_distribution_has_none() -> None:
    with pytest.raises(ConfigError, match=r"^no installed distribution 'owl' has xformd plugins") as caught:
        loader.of_distribution("owl", loader.find())
    assert caught.value.setting is None


def test_a_strict_selection_accepts_a_resolved_conflict() -> None:
    with pytest.raises(ConfigError, match="strict: some plugins failed or provide the same transform"):
        loader.load(Selection(strict=True))
    registry = loader.load(Selection(preferred={"echo": "other"}, strict=True))
    assert len([plugin for plugin in registry.plugins if plugin.distribution != BUILT_IN]) == 3


def test_finding_plugins_imports_none(imported: list[str]) -> None:
    found = loader.find(Selection(blocked=frozenset({"one"})))
    assert {plugin.name: plugin.state for plugin in found if plugin.distribution != BUILT_IN} == {
        "one": "blocked",
        "two": "loading",
        "three": "loading",
    }
    with pytest.raises(ConfigError, match="owl"):
        loader.find(Selection(blocked=frozenset({"owl"})))
    assert imported == []


def test_a_plugin_that_is_known_is_taken_as_it_is_and_not_imported(imported: list[str]) -> None:
    (three,) = (plugin for plugin in loader.find() if plugin.name == "three")
    failed = attrs.evolve(three, state="failed", reason="was killed by SIGSEGV")
    registry = loader.load(known={three.key: failed})
    assert registry.with_state("failed") == (failed,)
    assert imported == ["one", "two"]


def test_plugins_that_another_process_loads_count_as_blocked(imported: list[str]) -> None:
    registry = loader.load(Selection(blocked=frozenset({"one"})), only=lambda plugin: plugin.name == "three")
    states = {plugin.name: (plugin.state, plugin.reason) for plugin in registry.plugins}
    assert states["one"] == ("blocked", "blocked by the setting 'block'")
    assert states["two"] == ("blocked", "not loaded in this process")
    assert imported == ["three"]


def test_each_import_is_surrounded(imported: list[str]) -> None:
    surrounded: list[tuple[str, list[str]]] = []

    @contextmanager
    def around(plugin: Plugin) -> Iterator[None]:
        before = [*imported]
        yield
        surrounded.append((plugin.name, [name for name in imported if name not in before]))

    loader.load(Selection(distributions=frozenset({"both"})), around=around)
    assert [one for one in surrounded if one[1]] == [("one", ["one"]), ("two", ["two"])]


def test_what_surrounds_an_import_may_fail_its_plugin_alone() -> None:
    @contextmanager
    def around(plugin: Plugin) -> Iterator[None]:
        yield
        if plugin.name == "two":
            raise SystemExit("no")

    registry = loader.load(around=around)
    assert [(plugin.name, plugin.reason) for plugin in registry.with_state("failed")] == [("two", "SystemExit: no")]


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_a_plugins_own_time_is_above_0(seconds: float) -> None:
    with pytest.raises(ValueError, match="set_load_timeout takes seconds above 0, not "):
        xformd.set_load_timeout(seconds)


def test_a_plugin_asks_for_its_own_time_where_somebody_listens() -> None:
    told: list[float] = []
    xformd.set_load_timeout(1)
    with hookspecs.timeouts_told_to(told.append):
        xformd.set_load_timeout(300)
        with hookspecs.timeouts_told_to(lambda _: None):
            xformd.set_load_timeout(7)
        xformd.set_load_timeout(0.5)
    xformd.set_load_timeout(2)
    assert told == [300.0, 0.5]


@pytest.mark.parametrize("text", ["all,other", "none,other", "", " , "])
def test_a_contradictory_or_empty_selection_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="none"):
        parse_distributions(text)
