"""Selecting and loading, with plugins that are made in the test; real packages are in tests/integration."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

import xformd
from support.registries import plugin_of
from xformd import ConfigError, Transform, hookimpl, transform
from xformd.plugins import discovery, hookspecs, loader
from xformd.plugins.discovery import Candidate
from xformd.plugins.registry import BUILT_IN, Plugin, Registry
from xformd.plugins.selection import Selection


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


@pytest.mark.parametrize("required", ["both", "Both==1", "both>=1,<2", "other==1.*", "other>=1.0a1"])
def test_what_is_required_and_there_is_no_problem(required: str) -> None:
    assert len(loader.find(Selection(required=frozenset({required})))) > 3


def test_each_required_distribution_that_is_not_there_is_a_line(imported: list[str]) -> None:
    required = frozenset({"both>=2", "other", "shout==1.*"})
    with pytest.raises(ConfigError) as caught:
        loader.load(Selection(required=required, blocked=frozenset({"three"}), distributions=frozenset({"both"})))
    assert caught.value.details == (
        "both>=2: version 1 is installed; run: pip install 'both>=2'",
        "other: other is installed, but blocked by the setting 'block'",
        "shout==1.*: no installed distribution 'shout' has xformd plugins; those that do: both, other, xformd",
    )
    assert (caught.value.setting, imported) == ("require", [])


def test_a_version_that_is_none_fits_only_where_any_does(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = attrs.evolve(candidate("odd", "odd", []), version="of the year")
    monkeypatch.setattr(discovery, "installed", lambda: [odd])
    assert loader.find(Selection(required=frozenset({"odd"})))
    with pytest.raises(ConfigError):
        loader.find(Selection(required=frozenset({"odd!=2"})))


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


# The version of the contract.


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (1, ""),
        (2, "it needs plugin API 2, and this xformd has plugin API 1: install a newer xformd, or "),
        (0, "it needs plugin API 0, and this xformd has plugin API 1: install an older xformd, or "),
        ("2", "xformd_api must be the number of a plugin API such as 1, not '2'"),
        (True, "xformd_api must be the number of a plugin API such as 1, not True"),
        (None, "xformd_api must be the number of a plugin API such as 1, not None"),
    ],
    ids=str,
)
def test_a_plugin_may_say_which_plugin_api_it_needs(
    monkeypatch: pytest.MonkeyPatch, wanted: object, reason: str
) -> None:
    made = candidate("new", "new", [])
    module = made.load()
    module.xformd_api = wanted
    monkeypatch.setattr(discovery, "installed", lambda: [attrs.evolve(made, load=lambda: module)])
    (plugin,) = (each for each in loader.load().plugins if each.name == "new")
    assert (plugin.state, len(plugin.reason.splitlines())) == (("failed", 1) if reason else ("active", 0))
    assert plugin.reason.startswith(reason)


def test_the_plugin_api_stands_in_the_module_whatever_the_entry_point_names(monkeypatch: pytest.MonkeyPatch) -> None:
    made = attrs.evolve(candidate("new", "new", []), source="new_module:hooks")
    monkeypatch.setitem(sys.modules, "new_module", cast(Any, SimpleNamespace(xformd_api=2)))
    monkeypatch.setattr(discovery, "installed", lambda: [made])
    (plugin,) = loader.load().with_state("failed")
    assert plugin.reason.startswith("it needs plugin API 2")


# Warm-ups.


def warmed(name: str, warm_up: Callable[[], object] | None) -> Transform:
    return attrs.evolve(echo, name=name, warm_up=warm_up)


def warm_up(
    *plugins: Plugin,
    is_due: Callable[[Plugin, Transform], bool] = lambda *_: True,
    around: Callable[[Plugin], AbstractContextManager[object]] = nullcontext,
) -> Registry:
    return loader.warm_up(loader.assemble(plugins, Selection()), Selection(), is_due, around)


def refuse(error: BaseException) -> Callable[[], None]:
    def load() -> None:
        raise error

    return load


def test_a_warm_up_that_several_transforms_share_is_called_once() -> None:
    calls: list[str] = []
    loads = [partial(calls.append, name) for name in "ab"]
    plugin = plugin_of(warmed("one", loads[0]), warmed("two", loads[0]), warmed("three", loads[1]), echo)
    registry = warm_up(plugin)
    assert calls == ["a", "b"]
    assert [*registry.entries] == ["echo", "one", "three", "two"]
    assert registry.plugins[0].warm_up_time_s > 0


def test_only_what_is_due_is_warmed_up_and_each_plugin_is_surrounded_once() -> None:
    calls: list[str] = []

    @contextmanager
    def around(plugin: Plugin) -> Iterator[None]:
        calls.append(f"before {plugin.name}")
        yield
        calls.append("after")

    loads = [partial(calls.append, name) for name in "abc"]
    first = plugin_of(warmed("one", loads[0]), warmed("two", loads[1]), name="first")
    second = plugin_of(warmed("three", loads[2]), name="second")
    warm_up(first, second, is_due=lambda _, each: each.name != "two", around=around)
    assert calls == ["before first", "a", "after", "before second", "c", "after"]
    registry = loader.assemble([first, second], Selection())
    assert loader.warm_up(registry, Selection(), lambda *_: False, around) is registry


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\nway"), "warm-up of bad failed: ValueError: no way"),
        (SystemExit(3), "warm-up of bad failed: SystemExit: 3"),
        (KeyboardInterrupt(), "warm-up of bad failed: KeyboardInterrupt"),
        (MemoryError(), "warm-up of bad failed: MemoryError; worker_memory_bytes is too low for it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_warm_up_that_raises_fails_its_plugin_alone(error: BaseException, reason: str) -> None:
    rival = warmed("bad", None)
    registry = warm_up(
        plugin_of(warmed("fine", list), warmed("bad", refuse(error)), distribution="broken"),
        plugin_of(rival, distribution="rival"),
    )
    broken, whole = registry.plugins
    assert (broken.state, broken.reason, broken.transforms) == ("failed", reason, ())
    assert whole.state == "active"
    assert [(name, entry.transform) for name, entry in registry.entries.items()] == [("bad", rival)]
    assert registry.conflicts == ()


def test_a_warm_up_that_raises_shows_no_secret() -> None:
    (plugin,) = warm_up(plugin_of(warmed("one", refuse(OSError("no host k3y@api"))), secrets=["k3y"])).plugins
    assert plugin.reason == "warm-up of one failed: OSError: no host ***@api"
    assert "k3y" not in repr(plugin)


def test_a_warm_up_that_returns_a_coroutine_has_not_run() -> None:
    async def load() -> None:
        raise AssertionError

    (plugin,) = warm_up(plugin_of(warmed("one", lambda: load()))).plugins
    reason = "warm_up of one must not be async: it is called before the event loop runs"
    assert (plugin.state, plugin.reason) == ("failed", reason)
