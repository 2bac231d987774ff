"""Reloads: a new generation takes over unless that would break a transform, and no request notices."""

import functools
import gc
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import FakeWorker, Launcher
from support.logs import Log
from support.registries import plain, plugin_of, quick, registry_of
from xformd import Example, ShuttingDown, Transform, transform
from xformd.config import Settings
from xformd.errors import ConfigError, NoSuchTransform, Unavailable
from xformd.limits import Limits
from xformd.plugins import listing, loader
from xformd.plugins.registry import BUILT_IN, LOADING, WARMING_UP, Conflict, Entry, Plugin, PluginKey, Registry
from xformd.plugins.selection import Selection, check_required
from xformd.runners.messages import WorkerSetup
from xformd.runners.policy import Placement
from xformd.server.reload import Reloader, choose_self_test, what_breaks, what_changes
from xformd.spec import parse
from xformd.telemetry.reloads import ReloadOutcome


@transform
def other(poem: str) -> str:
    return poem


FIRST = registry_of(plain, quick)
SECOND = registry_of(plain, quick, other)
FAILED = registry_of(state="failed", reason="it is broken")
NONE = Registry({}, ())


class Loading(Launcher):
    """Starts the fake workers of one generation, and may find a plugin slow."""

    def __init__(self, setup: WorkerSetup, plugins: Mapping[PluginKey, Plugin], on_slow: Callable[..., object]):
        super().__init__()
        self.setup = setup
        self._plugins = plugins
        self._on_slow = on_slow

    def find_slow(self, plugin: Plugin, reason: str = LOADING) -> None:
        """Take long to load a plugin."""
        failed = {key: ("failed", why) for key, why in self.left_out.items()}
        slow = attrs.evolve(self._plugins[plugin.key], state="loading", reason=reason, transforms=())
        self._on_slow(slow, {**self.setup.left_out, **failed})

    @property
    def left_out_at_start(self) -> set[str]:
        """The distributions of the plugins that it does without."""
        return {distribution for distribution, _ in self.setup.left_out}

    def say_hello(self, registry: Registry) -> None:
        """Have each starting worker list these plugins."""
        for worker in self.alive:
            if worker.pid is None:
                worker.listing = listing.to_json(registry)
                worker.say_hello()


class Site:
    """A reloader whose workers are fake, on a machine whose plugins the test changes."""

    def __init__(
        self,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        *,
        local: bool = False,
        warm_ups: frozenset[str] | None = None,
        **settings: Any,
    ) -> None:
        self.installed: Registry | Exception = settings.pop("installed", FIRST)
        self.launchers: list[Loading] = []
        monkeypatch.setattr("xformd.server.reload.Launcher", self._launcher)
        monkeypatch.setattr(loader, "find", self._find)
        monkeypatch.setattr(loader, "load", lambda _, known=None, **others: NONE if known is not None else self._load())
        self.settings = Settings(**{"workers": 1, **settings})
        more: Any = {"is_local": local, "warm_ups": warm_ups, "read_again": self._read_again}
        self.reloader = Reloader(self.settings, clock, **more)
        self.service = self.reloader.service
        self.started: Deferred[None] = Deferred()

    def _read_again(self) -> Settings:
        return self.settings

    def _launcher(self, setup: WorkerSetup, _: float, plugins: Any, on_slow: Any, reactor: object) -> Loading:
        del reactor
        self.launchers.append(Loading(setup, plugins, on_slow))
        return self.launchers[-1]

    def _load(self) -> Registry:
        if isinstance(self.installed, Exception):
            raise self.installed
        return self.installed

    def _find(self, selection: Selection) -> tuple[Plugin, ...]:
        plugins = () if isinstance(self.installed, Exception) else self.installed.plugins
        if not selection.ignore_unknown:
            check_required(selection, plugins)
        return plugins

    @property
    def workers(self) -> list[FakeWorker]:
        """Every worker that was ever started."""
        return [worker for launcher in self.launchers for worker in launcher.workers]

    @property
    def alive(self) -> list[FakeWorker]:
        return [worker for launcher in self.launchers for worker in launcher.alive]

    def say_hello(self, registry: Registry | None = None) -> None:
        """Have each starting worker list what is installed, or another registry."""
        for launcher in [*self.launchers]:
            if any(worker.pid is None for worker in launcher.alive):
                launcher.say_hello(registry or self._load())

    def start(self) -> "Site":
        started = self.reloader.start()
        self.say_hello()
        assert result_of(started) is None
        return self

    def reload(self, registry: Registry) -> None:
        """Reload to its end."""
        self.installed = registry
        reloaded = self.reloader.reload()
        self.say_hello()
        assert has_fired(reloaded)

    def end_all(self) -> None:
        """End the processes that are left."""
        for launcher in self.launchers:
            launcher.end_all()

    def stop(self) -> None:
        """Stop to its end."""
        stopped = self.reloader.stop()
        assert self.alive == []
        self.end_all()
        assert has_fired(stopped)

    def xform(self, spec: str, poem: bytes = b"a") -> Any:
        return self.service.xform(parse(spec), poem)


@pytest.fixture
def make(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Site]:
    return functools.partial(Site, clock, monkeypatch)


@pytest.fixture
def site(clock: Clock, make: Callable[..., Site]) -> Iterator[Site]:
    made = make().start()
    yield made
    made.stop()
    assert clock.getDelayedCalls() == []


def test_requests_run_in_workers_and_in_the_reactor(site: Site) -> None:
    result = site.xform("plain+quick", b"poem")
    site.alive[-1].answer(b"POEM")
    assert result_of(result) == b"POEM"
    assert site.xform("quick") == b"a"


@pytest.mark.parametrize(("request_bytes", "result_bytes"), [(10, 1_000), (1_000, 10)])
def test_a_worker_accepts_another_steps_result(
    make: Callable[..., Site], request_bytes: int, result_bytes: int
) -> None:
    limits = Limits(max_request_bytes=request_bytes, max_result_bytes=result_bytes)
    (launcher,) = make(limits=limits).start().launchers
    assert (launcher.setup.max_request_bytes, launcher.setup.max_result_bytes) == (1_000, result_bytes)


def test_workers_are_not_strict(make: Callable[..., Site]) -> None:
    """The server has been: what breaks on the disk later must not keep every other transform from running."""
    selection = Selection(strict=True, blocked=frozenset({"x"}))
    (launcher,) = make(selection=selection).start().launchers
    assert launcher.setup.selection == attrs.evolve(selection, strict=False, ignore_unknown=True)


def test_a_reload_finds_what_was_installed_a_moment_ago(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("xformd_installed_since") is None  # from now on Python caches the folder's content
    seen = tmp_path.stat()
    (tmp_path / "xformd_installed_since.py").touch()
    os.utime(tmp_path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # as on a disk with a coarse clock
    found = set()

    def load() -> Registry:
        found.add(importlib.util.find_spec("xformd_installed_since") is not None)
        return FIRST

    monkeypatch.setattr(site, "_load", load)
    site.reload(FIRST)
    assert found == {True}


def test_a_reload_brings_new_transforms_and_ends_old_workers(site: Site, log: Log) -> None:
    before = site.alive
    site.reload(SECOND)
    assert all(worker.killed for worker in before)
    assert len(site.alive) == 2
    assert log.lines == ["reloaded: 3 transforms from 1 plugins"]
    site.xform("other", b"x")
    assert [worker.sent[-1].poem for worker in site.alive if worker.sent] == [b"x"]


def test_a_running_request_ends_on_the_old_generation(site: Site) -> None:
    result = site.xform("plain", b"poem")
    (worker,) = [worker for worker in site.alive if worker.sent]
    site.reload(SECOND)
    assert not worker.killed
    worker.answer(b"old")
    assert result_of(result) == b"old"
    assert worker.killed


def test_a_reload_that_would_break_a_transform_changes_nothing(site: Site, log: Log) -> None:
    before, registry = site.alive, site.service.registry
    site.reload(FAILED)
    assert log.lines == [
        "not reloaded: transform plain: plugin xformd-verses 1.0 (verses) failed: it is broken",
        "not reloaded: transform quick: plugin xformd-verses 1.0 (verses) failed: it is broken",
        "not reloaded: transforms that work now would stop working",
    ]
    assert site.alive == before
    assert site.service.registry is registry
    assert site.xform("plain")


def test_a_reload_without_what_is_required_by_then_changes_nothing(site: Site, log: Log) -> None:
    before = site.alive
    site.settings = attrs.evolve(site.settings, selection=Selection(required=frozenset({"xformd-verses>=2"})))
    site.reload(SECOND)
    assert log.lines == [
        "not reloaded: xformd-verses>=2: version 1.0 is installed; run: pip install 'xformd-verses>=2'",
        "not reloaded: require: what is installed is not what is required",
    ]
    assert (site.alive, "other" in site.service.registry.entries) == (before, False)
    site.settings = attrs.evolve(site.settings, selection=Selection(required=frozenset({"xformd-verses<2"})))
    site.reload(SECOND)
    assert "other" in site.service.registry.entries


@pytest.mark.parametrize("error", [ConfigError("no such folder"), ValueError("a bug")])
def test_a_reload_that_cannot_load_changes_nothing(site: Site, log: Log, error: Exception) -> None:
    before = site.alive
    reloaded = site.reloader.reload()
    site.installed = error
    site.say_hello(FIRST)
    assert has_fired(reloaded)
    assert [worker for worker in site.alive if not worker.killed] == before
    is_expected = isinstance(error, ConfigError)
    assert log.lines == ["not reloaded: no such folder" if is_expected else "not reloaded"]
    assert len(log.tracebacks) == (0 if is_expected else 1)
    site.reload(SECOND)
    assert "other" in site.service.registry.entries


def test_a_plugin_that_fails_is_failed(make: Callable[..., Site]) -> None:
    site = make()
    site.reloader.start()
    site.say_hello(FAILED)
    (plugin,) = site.service.registry.plugins
    assert (plugin.state, plugin.reason) == ("failed", "it is broken")
    with pytest.raises(NoSuchTransform):
        site.xform("plain")


def test_why_a_plugin_failed_is_logged_at_the_start_and_no_client_is_told(make: Callable[..., Site], log: Log) -> None:
    site = make()
    site.reloader.start()
    site.say_hello(FAILED)
    assert log.lines == ["plugin xformd-verses 1.0 (verses) failed: it is broken"]
    (plugin,) = json.loads(site.service.listing())["plugins"]
    assert (plugin["state"], plugin["reason"], plugin["import_time_ms"]) == ("failed", "", 0)
    assert b"it is broken" not in site.service.listing()


def test_a_reload_tells_again_what_fails_still(make: Callable[..., Site], log: Log) -> None:
    site = make()
    site.reloader.start()
    site.say_hello(FAILED)
    site.reload(FAILED)
    assert log.lines == 2 * ["plugin xformd-verses 1.0 (verses) failed: it is broken"] + [
        "reloaded: 0 transforms from 0 plugins"
    ]


def test_a_plugin_that_the_server_cannot_import_is_failed_with_the_reason(make: Callable[..., Site]) -> None:
    """Although a worker could: an import that needs another state of the interpreter, say."""
    site = make(installed=registry_of(state="failed", reason="import of verses failed: no"))
    site.reloader.start()
    site.say_hello(FIRST)
    (plugin,) = site.service.registry.plugins
    reason = "it runs in the server, which cannot load it: import of verses failed: no"
    assert (plugin.state, plugin.reason) == ("failed", reason)
    for name in ("plain", "quick"):
        with pytest.raises(NoSuchTransform) as raised:
            site.xform(name)
        assert raised.value.log_message.endswith(f"plugin xformd-verses 1.0 (verses) failed: {reason}")
        assert reason not in raised.value.message


def test_a_reload_whose_workers_are_never_ready_changes_nothing(clock: Clock, site: Site, log: Log) -> None:
    before = site.alive
    reloaded = site.reloader.reload()
    for delay_s in (0.1, 0.2, 0.4):
        for worker in site.launchers[-1].alive:
            worker.end("ended with exit status 1")
        clock.advance(delay_s)
    assert has_fired(reloaded)
    why = "a worker ended with exit status 1 before it was ready"
    assert f"not reloaded: no new worker became ready: {why}" in log.lines
    assert log.tracebacks == []
    assert site.alive == before


def test_reloads_requested_during_another_are_one_after_it(site: Site) -> None:
    first, second, third = (site.reloader.reload() for _ in range(3))
    site.say_hello()
    assert not has_fired(first)
    site.installed = SECOND
    site.say_hello()
    assert all(map(has_fired, (first, second, third)))
    assert "other" in site.service.registry.entries
    assert len(site.workers) == 6


def test_stopping_during_a_reload_ends_both(clock: Clock, site: Site, log: Log) -> None:
    reloaded = site.reloader.reload()
    assert len(site.alive) == 4
    stopped = site.reloader.stop()
    assert has_fired(reloaded)
    assert log.lines == ["not reloaded: the server is stopping, or loads its plugins anew"]
    assert site.alive == []
    for worker in site.workers:
        assert not has_fired(stopped)
        worker.end()
    assert has_fired(stopped)
    assert clock.getDelayedCalls() == []
    assert has_fired(site.reloader.reload())
    assert len(site.workers) == 4


def test_stopping_waits_for_the_workers_of_a_failed_reload(site: Site) -> None:
    used = site.alive
    site.reload(FAILED)
    stopped = site.reloader.stop()
    for worker in used:
        worker.end()
    assert not has_fired(stopped)
    site.end_all()
    assert has_fired(stopped)


def test_stopping_answers_what_an_old_generation_runs(site: Site) -> None:
    result = site.xform("plain", b"poem")
    site.reload(SECOND)
    site.stop()
    error_of(result, ShuttingDown)


def test_a_reload_that_is_requested_during_the_start_follows_it(
    clock: Clock, make: Callable[..., Site], log: Log
) -> None:
    """Something may have been installed after the start had looked for plugins."""
    site = make()
    site.reloader.start()
    assert not any(map(has_fired, [site.reloader.reload() for _ in range(2)]))
    assert len(site.launchers) == 1
    site.say_hello()
    clock.advance(0)
    assert len(site.launchers) == 2
    site.say_hello(SECOND)
    assert site.xform("other", b"x")
    assert log.lines == ["reloaded: 3 transforms from 1 plugins"]
    site.stop()


def test_a_start_whose_workers_do_not_get_ready_is_given_up_for_a_reload_that_was_requested(
    clock: Clock, make: Callable[..., Site]
) -> None:
    site = make()
    site.reloader.start()
    site.reloader.reload()
    fail_three_starts(clock, site)
    complete, reloaded = site.launchers
    reloaded.say_hello(SECOND)
    assert complete.alive == []
    assert site.xform("other", b"x")
    site.stop()


def test_without_workers_a_reload_switches_at_once(make: Callable[..., Site], log: Log) -> None:
    site = make(workers=0).start()
    assert site.xform("plain") == b"a"
    site.reload(SECOND)
    assert site.xform("other") == b"a"
    site.reload(FAILED)
    assert log.lines[-1] == "not reloaded: transforms that work now would stop working"
    assert site.xform("other") == b"a"
    assert site.alive == []  # each was asked what there is, and no more
    site.stop()


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 3), (3, 1)])
def test_a_reload_changes_how_many_workers_there_are(
    make: Callable[..., Site], before: int, after: int, clock: Clock
) -> None:
    site = make(workers=before).start()
    site.settings = attrs.evolve(site.settings, workers=after)
    site.reload(SECOND)
    assert len(site.alive) == (after and after + 1)  # with the spare one
    result = site.xform("plain")
    assert (result == b"a") is (after == 0)
    site.stop()
    assert clock.getDelayedCalls() == []


def test_a_reload_keeps_the_transforms_that_the_operator_places(make: Callable[..., Site], log: Log) -> None:
    site = make(isolate=frozenset({"quick"})).start()
    site.reload(registry_of(plain))
    assert log.lines[-1] == "not reloaded: isolate: no transform 'quick' here; see 'xformd list-transforms'"
    assert "quick" in site.service.registry.entries


# Settings.


def test_a_reload_changes_what_may_change_and_names_what_needs_a_restart(site: Site, log: Log) -> None:
    limits = Limits(transform_timeout_s=2, max_result_bytes=7, listen_backlog=5)
    site.settings = attrs.evolve(site.settings, limits=limits, workers=3, http=(), log_level="warn")
    given: list[Settings] = []
    site.reloader.on_change = given.append
    site.reload(SECOND)
    changed = Limits(transform_timeout_s=2, max_result_bytes=7)
    (settings,) = given
    assert (settings.limits, settings.log_level, settings.workers) == (changed, "warn", 3)
    assert (site.service.limits, site.service.max_result_bytes) == (changed, 7)
    assert site.launchers[-1].setup.max_result_bytes == 7
    assert log.lines[1:] == [
        "changed settings: workers, log_level, max_result_bytes, transform_timeout_s",
        "changed settings that need a restart: http, listen_backlog",
    ]
    log.clear()
    site.reload(SECOND)  # they still do
    assert log.lines[1:] == ["changed settings that need a restart: http, listen_backlog"]


def test_a_reload_that_is_refused_changes_no_setting(site: Site, log: Log) -> None:
    before = site.service.limits
    site.settings = attrs.evolve(site.settings, limits=Limits(max_queue=7))
    site.reload(FAILED)
    assert (site.service.limits, site.reloader.status().max_queue) == (before, before.max_queue)
    site.reload(FIRST)
    assert (site.service.limits.max_queue, site.reloader.status().max_queue) == (7, 7)


def test_a_setting_that_cannot_be_used_fails_a_reload(site: Site, log: Log) -> None:
    def refuse(settings: Settings) -> None:
        raise ConfigError("cannot open it", setting="log_file")

    before = [*site.alive]
    site.reloader.on_change = refuse
    reloading = site.reloader.reload()
    site.say_hello()
    assert result_of(reloading) == ReloadOutcome(errors=("log_file: cannot open it",))
    assert site.alive == before


def test_settings_that_cannot_be_read_fail_a_reload(site: Site, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.reloader, "_read_again", Mock(side_effect=ConfigError("xformd.toml, line 2: no")))
    assert result_of(site.reloader.reload()).errors == ("xformd.toml, line 2: no",)
    assert log.lines == ["not reloaded: xformd.toml, line 2: no"]


# The start.


LEFT_OUT = attrs.evolve(FIRST.plugins[0], state="loading", reason=LOADING, transforms=())
OWL = plugin_of(other, name="owl", distribution="x-owl")
CAT = plugin_of(attrs.evolve(other, name="purr"), name="cat", distribution="x-cat")


def of_plugins(*plugins: Plugin) -> Registry:
    entries = {one.name: Entry(one, plugin) for plugin in plugins for one in plugin.transforms}
    return Registry(entries, plugins)


def loading(*plugins: Plugin, without: Sequence[Plugin]) -> Registry:
    """What a worker lists that does without some plugins."""
    missing = (attrs.evolve(plugin, state="loading", reason="", transforms=()) for plugin in without)
    return of_plugins(*plugins, *missing)


ALL = of_plugins(*FIRST.plugins, OWL, CAT)
VERSES = FIRST.plugins[0]


def test_a_start_waits_for_the_plugins_and_a_worker(make: Callable[..., Site]) -> None:
    site = make()
    assert site.launchers == []
    started = site.reloader.start()
    assert not has_fired(started)
    with pytest.raises(NoSuchTransform):
        site.xform("quick")  # no plugin's code runs here before a worker has survived importing it
    site.say_hello()
    assert result_of(started) is None
    assert site.xform("quick") == b"a"
    site.stop()


def test_what_does_not_exist_fails_the_start(make: Callable[..., Site]) -> None:
    for settings in ({"inline": frozenset({"nope"})}, {"selection": Selection(preferred={"nope": "x"})}):
        site = make(**settings)
        started = site.reloader.start()
        site.say_hello()
        assert "'nope'" in str(error_of(started, ConfigError))
        site.stop()


def test_a_strict_selection_fails_the_start_if_a_plugin_fails(make: Callable[..., Site]) -> None:
    site = make(selection=Selection(strict=True))
    started = site.reloader.start()
    site.say_hello(FAILED)
    error = error_of(started, ConfigError)
    assert error.details == ("plugin xformd-verses 1.0 (verses): it is broken",)
    site.stop()


def test_a_start_that_fails_leaves_no_failure_that_nobody_has_heard_of(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    site = make(selection=Selection(strict=True))
    error_of_start: list[object] = []
    site.reloader.start().addErrback(lambda failure: error_of_start.append(failure.type))
    site.say_hello(FAILED)
    assert error_of_start == [ConfigError]
    site.stop()
    monkeypatch.undo()
    del site
    gc.collect()  # Twisted logs such a failure when it is forgotten
    assert log.lines == []


def fail_three_starts(clock: Clock, site: Site, launcher: Loading | None = None, *, wait: bool = True) -> None:
    """Have three starts fail; and ``wait`` for the fourth."""
    for delay_s in (0.1, 0.2, 0.4 if wait else 0):
        for worker in (launcher or site).alive:
            worker.end("ended with exit status 1")
        clock.advance(delay_s)


@pytest.fixture
def failing(clock: Clock, make: Callable[..., Site]) -> Iterator[Site]:
    """A server whose first three starts of workers have failed."""
    site = make()
    site.started = site.reloader.start()
    fail_three_starts(clock, site)
    yield site
    site.stop()
    assert clock.getDelayedCalls() == []


def test_a_server_whose_workers_do_not_get_ready_listens_and_goes_on_trying(failing: Site) -> None:
    assert result_of(failing.started) is None
    assert failing.reloader.status().workers["starting"] == 2
    failing.say_hello()
    result = failing.xform("plain", b"poem")
    (busy,) = (worker for worker in failing.alive if worker.sent)
    busy.answer(b"POEM")
    assert result_of(result) == b"POEM"


def test_a_failed_start_is_not_followed_sooner_because_the_server_listens(
    clock: Clock, make: Callable[..., Site]
) -> None:
    site = make()
    site.reloader.start()
    fail_three_starts(clock, site, wait=False)
    assert site.alive == []
    clock.advance(0.4)
    assert len(site.alive) == 2
    site.stop()


def test_a_reload_that_fails_too_leaves_the_workers_that_are_still_tried(clock: Clock, failing: Site) -> None:
    reloaded = failing.reloader.reload()
    fail_three_starts(clock, failing, failing.launchers[1])
    assert has_fired(reloaded)
    assert failing.launchers[0].alive
    assert failing.launchers[1].alive == []
    failing.reload(SECOND)
    assert failing.launchers[0].alive == []
    assert failing.xform("other", b"x")


def test_without_workers_too_a_start_that_fails_is_tried_again(clock: Clock, make: Callable[..., Site]) -> None:
    site = make(workers=0)
    site.started = site.reloader.start()
    fail_three_starts(clock, site)
    assert result_of(site.started) is None
    site.say_hello()
    assert site.xform("plain") == b"a"
    assert site.alive == []
    site.stop()


def test_who_runs_a_transform_at_home_is_told_why_no_worker_gets_ready(clock: Clock, make: Callable[..., Site]) -> None:
    site = make(local=True)
    started = site.reloader.start()
    assert len(site.alive) == 1  # no spare
    fail_three_starts(clock, site)
    assert str(error_of(started, ConfigError)) == (
        "no worker is ready: a worker ended with exit status 1 before it was ready"
    )
    site.stop()


def test_a_stop_during_the_start_ends_it(clock: Clock, make: Callable[..., Site], log: Log) -> None:
    site = make()
    started = site.reloader.start()
    stopped = site.reloader.stop()
    assert result_of(started) is None
    assert site.alive == []
    assert not has_fired(stopped)
    site.end_all()
    assert has_fired(stopped)
    assert log.lines == []
    assert clock.getDelayedCalls() == []


# A slow plugin.


@pytest.fixture
def slow(make: Callable[..., Site], log: Log) -> Iterator[Site]:
    """A server that is starting and has found a plugin of two slow."""
    del log  # it has that
    site = make(installed=of_plugins(VERSES, OWL))
    site.started = site.reloader.start()
    site.launchers[0].is_loading = True
    site.launchers[0].find_slow(OWL)
    yield site
    site.stop()


def test_the_others_work_while_a_slow_plugin_is_loaded_and_then_it_joins(slow: Site, log: Log) -> None:
    assert log.lines == ["plugin x-owl 1.0 (owl) is still loading after 1 s"]
    assert not has_fired(slow.started)
    complete, without = slow.launchers
    assert dict(without.setup.left_out) == {OWL.key: ("loading", LOADING)}
    without.say_hello(loading(VERSES, without=[OWL]))
    assert result_of(slow.started) is None
    assert slow.xform("quick") == b"a"
    with pytest.raises(Unavailable, match=r"no transform 'other' here yet: .*x-owl 1.0 \(owl\)") as caught:
        slow.xform("other")
    assert caught.value.retry_after_ms is not None
    assert slow.reloader.status().loading == "still loading x-owl 1.0 (owl)"
    running = slow.xform("plain", b"poem")
    (busy,) = (worker for worker in without.alive if worker.sent)
    complete.say_hello(ALL)
    assert slow.reloader.status().loading == ""
    assert log.lines[1:] == ["plugin x-owl 1.0 (owl) is loaded"]
    assert slow.xform("other", b"x")
    assert without.alive == [busy]  # no request notices
    busy.answer(b"POEM")
    assert result_of(running) == b"POEM"
    assert without.alive == []


def test_what_crashed_before_a_slow_plugin_is_not_tried_again_meanwhile(make: Callable[..., Site], log: Log) -> None:
    site = make(installed=of_plugins(VERSES, OWL))
    site.started = site.reloader.start()
    site.launchers[0].is_loading = True
    site.launchers[0].leave_out(VERSES.key, "was killed by SIGSEGV")
    site.launchers[0].find_slow(OWL)
    complete, without = site.launchers
    assert without.setup.left_out[VERSES.key] == ("failed", "was killed by SIGSEGV")
    crashed = attrs.evolve(VERSES, state="failed", reason="was killed by SIGSEGV", transforms=())
    without.say_hello(loading(crashed, without=[OWL]))
    log.clear()
    complete.say_hello(of_plugins(crashed, OWL))
    assert log.lines == ["plugin x-owl 1.0 (owl) is loaded"]  # what has failed was told at the start
    site.stop()


def test_a_slow_plugin_that_fails_after_all_is_logged(slow: Site, log: Log) -> None:
    complete, without = slow.launchers
    without.say_hello(loading(VERSES, without=[OWL]))
    log.clear()
    failed = attrs.evolve(OWL, state="failed", reason="was not loaded within 60 s", transforms=())
    complete.say_hello(of_plugins(VERSES, failed))
    assert log.lines == ["plugin x-owl 1.0 (owl) failed: was not loaded within 60 s"]
    with pytest.raises(NoSuchTransform):
        slow.xform("other")
    assert slow.xform("quick") == b"a"


def test_a_slow_plugin_that_is_loaded_first_after_all_needs_no_second_generation(slow: Site) -> None:
    complete, without = slow.launchers
    complete.say_hello(of_plugins(VERSES, OWL))
    assert result_of(slow.started) is None
    without.say_hello(loading(VERSES, without=[OWL]))
    assert without.alive == []
    assert slow.xform("other", b"x")


def test_a_reload_gives_up_a_slow_start(slow: Site, log: Log) -> None:
    complete, without = slow.launchers
    without.say_hello(loading(VERSES, without=[OWL]))
    log.clear()
    slow.installed = of_plugins(VERSES)
    reloaded = slow.reloader.reload()
    assert complete.alive == []
    slow.launchers[2].say_hello(of_plugins(VERSES))
    assert has_fired(reloaded)
    assert log.lines == ["reloaded: 2 transforms from 1 plugins", "x-owl: 1.0 -> removed"]
    assert without.alive == []
    assert slow.reloader.status().loading == ""


def test_a_plugin_that_is_slow_to_warm_up_too_is_waited_for_all_the_same(slow: Site) -> None:
    complete, without = slow.launchers
    without.say_hello(loading(VERSES, without=[OWL]))
    complete.find_slow(OWL, WARMING_UP)
    assert len(slow.launchers) == 2
    assert slow.service.missing() == slow.reloader.status().loading == "still loading x-owl 1.0 (owl)"
    with pytest.raises(Unavailable, match=r"no transform 'other' here yet: still loading x-owl 1.0 \(owl\)"):
        slow.xform("other")
    assert slow.xform("quick") == b"a"


def test_the_others_work_while_a_plugin_warms_up(make: Callable[..., Site], log: Log) -> None:
    site = make(installed=of_plugins(VERSES, OWL))
    started = site.reloader.start()
    site.launchers[0].find_slow(OWL, WARMING_UP)
    assert log.lines == ["plugin x-owl 1.0 (owl) is still warming up after 1 s"]
    assert dict(site.launchers[1].setup.left_out) == {OWL.key: ("loading", WARMING_UP)}
    site.launchers[1].say_hello(loading(VERSES, without=[OWL]))
    assert result_of(started) is None
    log.clear()
    site.launchers[0].say_hello(of_plugins(VERSES, attrs.evolve(OWL, warm_up_time_s=2.04)))
    assert log.lines == ["plugin x-owl 1.0 (owl) is loaded", "plugin x-owl 1.0 (owl) took 2.0 s to warm up"]
    site.stop()


# Warm-ups in the server.


def loads_of(*transforms: Transform) -> tuple[list[str], Registry]:
    """Return a plugin of transforms that are warmed up, and the names of those that have been."""
    calls: list[str] = []
    warmed = (attrs.evolve(each, warm_up=functools.partial(calls.append, each.name)) for each in transforms)
    return calls, registry_of(*warmed)


@pytest.mark.parametrize(("workers", "expected"), [(1, ["quick"]), (0, ["plain", "quick"])])
def test_what_runs_in_the_server_is_warmed_up_there_once(
    make: Callable[..., Site], workers: int, expected: list[str]
) -> None:
    calls, registry = loads_of(plain, quick)
    site = make(workers=workers, installed=registry).start()
    assert calls == expected
    site.reload(registry)
    assert calls == expected
    site.stop()


def test_only_what_somebody_wants_is_warmed_up(make: Callable[..., Site]) -> None:
    calls, registry = loads_of(plain, quick)
    site = make(workers=0, installed=registry, warm_ups=frozenset({"quick"})).start()
    assert calls == ["quick"]
    assert site.launchers[0].setup.warm_ups == frozenset({"quick"})
    site.stop()


def test_a_plugin_whose_warm_up_fails_in_the_server_alone_has_failed(make: Callable[..., Site]) -> None:
    def load() -> None:
        raise OSError("no such device")

    site = make(installed=registry_of(attrs.evolve(quick, warm_up=load))).start()
    (plugin,) = site.service.registry.with_state("failed")
    reason = "it runs in the server, which cannot load it: warm-up of quick failed: OSError: no such device"
    assert plugin.reason == reason
    site.stop()


def test_a_reload_whose_warm_up_fails_changes_nothing(site: Site, log: Log) -> None:
    reason = "warm-up of plain failed: OSError: no such file"
    site.reload(registry_of(state="failed", reason=reason))
    assert f"not reloaded: transform plain: plugin xformd-verses 1.0 (verses) failed: {reason}" in log.lines
    assert "plain" in site.service.registry.entries


def test_a_stop_during_a_slow_start_ends_everything(slow: Site, log: Log) -> None:
    slow.launchers[1].say_hello(loading(VERSES, without=[OWL]))
    log.clear()
    slow.stop()
    assert log.lines == []


@pytest.mark.parametrize("settings", [{"local": True}, {"selection": Selection(strict=True)}], ids=["local", "strict"])
def test_who_needs_every_plugin_waits_for_the_slow_ones(make: Callable[..., Site], settings: dict[str, Any]) -> None:
    site = make(installed=of_plugins(VERSES, OWL), **settings)
    started = site.reloader.start()
    site.launchers[0].find_slow(OWL)
    assert len(site.launchers) == 1
    assert not has_fired(started)
    site.say_hello()
    assert result_of(started) is None
    site.stop()


def test_several_slow_plugins_are_left_out_one_after_the_other_until_something_works(make: Callable[..., Site]) -> None:
    site = make(installed=ALL)
    started = site.reloader.start()
    complete = site.launchers[0]
    complete.find_slow(OWL)
    site.launchers[1].find_slow(CAT)
    assert [launcher.left_out_at_start for launcher in site.launchers] == [set(), {"x-owl"}, {"x-owl", "x-cat"}]
    site.launchers[2].say_hello(loading(VERSES, without=[OWL, CAT]))
    assert result_of(started) is None
    complete.find_slow(CAT)  # something works already
    assert len(site.launchers) == 3
    site.launchers[1].say_hello(loading(VERSES, CAT, without=[OWL]))
    assert site.reloader.status().loading == "still loading x-owl 1.0 (owl)"
    complete.say_hello(ALL)
    assert site.reloader.status().loading == ""
    assert site.launchers[1].alive == site.launchers[2].alive == []
    site.stop()


def test_what_does_without_more_never_takes_over_from_what_does_without_less(make: Callable[..., Site]) -> None:
    site = make(installed=ALL)
    site.reloader.start()
    site.launchers[0].find_slow(OWL)
    site.launchers[1].find_slow(CAT)
    _, without_owl, without_both = site.launchers
    without_owl.say_hello(loading(VERSES, CAT, without=[OWL]))
    without_both.say_hello(loading(VERSES, without=[OWL, CAT]))
    assert site.reloader.status().loading == "still loading x-owl 1.0 (owl)"
    assert without_both.alive == []
    site.stop()


def test_a_complete_generation_gives_up_those_that_are_still_being_started(make: Callable[..., Site]) -> None:
    site = make(installed=of_plugins(VERSES, OWL))
    site.reloader.start()
    site.launchers[0].find_slow(OWL)
    site.launchers[0].say_hello(of_plugins(VERSES, OWL))
    assert site.launchers[1].alive == []
    site.stop()


def test_a_plugin_that_is_slow_at_a_reload_is_named_and_waited_for(site: Site, log: Log) -> None:
    site.installed = of_plugins(VERSES, OWL)
    reloaded = site.reloader.reload()
    site.launchers[1].find_slow(OWL)
    assert log.lines == ["plugin x-owl 1.0 (owl) is still loading after 1 s"]
    assert len(site.launchers) == 2
    assert site.xform("quick") == b"a"
    site.say_hello()
    assert has_fired(reloaded)
    assert site.xform("other", b"x")


@pytest.mark.parametrize("workers", [0, 1])
def test_imported_code_keeps_its_version_in_the_server(make: Callable[..., Site], log: Log, workers: int) -> None:
    site = make(workers=workers).start()
    for version in ("2.0", "3.0"):
        log.clear()
        site.reload(registry_of(plain, quick, version=version))
        assert "transform quick runs in the server: version 1.0 stays until a restart" in log.lines
        assert site.service.registry.resolve("quick").plugin.version == "1.0"
    assert site.service.registry.resolve("plain").plugin.version == ("3.0" if workers else "1.0")
    assert "xformd-verses: 2.0 -> 3.0" in log.lines


def test_there_are_as_many_workers_as_processors(make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert len(make(workers=None).start().alive) == 4


# Decisions.


def built_in(*transforms: Transform) -> Registry:
    return registry_of(*transforms, distribution=BUILT_IN)


def with_example(poem: Any, result: Any, kind: Any = "text", **options: Any) -> Transform:
    return Transform("shown", print, kind, examples=(Example(poem, result),), **options)


@pytest.mark.parametrize(
    ("example", "poem", "result"),
    [(("é", "É"), "é".encode(), "É".encode()), ((b"\xff", b"\x00", "bytes"), b"\xff", b"\x00")],
    ids=["text", "bytes"],
)
def test_the_self_test_is_an_example_of_a_built_in(example: tuple[Any, ...], poem: bytes, result: bytes) -> None:
    self_test = choose_self_test(built_in(plain, with_example(*example)), Placement())
    assert self_test is not None
    assert (str(self_test.request.spec), self_test.request.poem, self_test.result) == ("shown", poem, result)


@pytest.mark.parametrize(
    "registry",
    [built_in(plain), built_in(with_example("a", "b", inline=True)), registry_of(with_example("a", "b"))],
    ids=["no example", "inline", "plugin"],
)
def test_without_such_an_example_there_is_no_self_test(registry: Registry) -> None:
    assert choose_self_test(registry, Placement()) is None


CONFLICT = Conflict("plain", FIRST.plugins, None)


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (Registry({"quick": FIRST.entries["quick"]}, FIRST.plugins, (CONFLICT,)), [f"transform plain: {CONFLICT}"]),
        (registry_of(quick), ["transform plain is gone from xformd-verses; if that is meant, restart the server"]),
        (Registry({}, ()), []),
    ],
    ids=["ambiguous", "left out", "uninstalled"],
)
def test_what_a_reload_would_break(after: Registry, lines: list[str]) -> None:
    assert [*what_breaks(FIRST, after)] == lines


def test_what_a_reload_has_changed() -> None:
    assert [*what_changes(FIRST, Registry({}, ()))] == [
        "reloaded: 0 transforms from 0 plugins",
        "xformd-verses: 1.0 -> removed",
    ]
    loose = of_plugins(plugin_of(other, distribution="owl.py", version=""))
    assert [*what_changes(loose, loose)][1:] == []
    assert [*what_changes(loose, Registry({}, ()))][1:] == ["owl.py: installed -> removed"]
    lines = [*what_changes(Registry({}, ()), FAILED)]
    assert lines[1:] == ["xformd-verses: not installed -> 1.0"]


# What is tried first.


@transform(examples=[("Owl", "owl")])
def lower(poem: str) -> str:
    return poem.lower()


LOWER = registry_of(lower)


def reload_lower(site: Site, new: bytes, old: bytes | None = None) -> ReloadOutcome:
    """Reload, and have the new workers answer the example, and then the old ones, if they should be asked."""
    before = {*site.workers}
    reloaded = site.reloader.reload()
    site.say_hello()
    next(worker for worker in site.alive if worker not in before and worker.running).answer(new)
    if old is not None:
        next(worker for worker in site.alive if worker in before and worker.running).answer(old)
    outcome: ReloadOutcome = result_of(reloaded)
    return outcome


def test_a_reload_whose_examples_hold_takes_over(make: Callable[..., Site]) -> None:
    site = make(installed=LOWER).start()
    assert reload_lower(site, b"owl").errors == ()
    assert len(site.launchers) == 2
    site.stop()


def test_a_reload_is_refused_if_an_example_fails_that_did_not_before(make: Callable[..., Site], log: Log) -> None:
    site = make(installed=LOWER).start()
    running = {*site.alive}
    outcome = reload_lower(site, b"OWL", b"owl")
    advice = 'mend the plugin, or set reload_check = "off"'
    assert outcome.errors == (
        "lower('Owl') gave 'OWL', not 'owl'",
        f"examples fail that did not fail before: {advice}",
    )
    assert running <= {*site.alive}
    answer = site.xform("lower", b"A")
    next(worker for worker in running if worker.running).answer(b"a")
    assert result_of(answer) == b"a"
    assert "not reloaded: lower('Owl') gave 'OWL', not 'owl'" in log.lines
    site.stop()


def test_more_transforms_than_the_queue_has_room_for_are_tried(make: Callable[..., Site]) -> None:
    many = registry_of(*(attrs.evolve(lower, name=name) for name in ("one", "two", "three", "four")))
    site = make(installed=many, limits=Limits(max_queue=1)).start()
    before, reloaded = {*site.workers}, site.reloader.reload()
    site.say_hello()
    for _ in range(4):
        if not reloaded.called:
            next(worker for worker in site.alive if worker not in before and worker.running).answer(b"owl")
    assert result_of(reloaded).errors == ()
    site.stop()


def test_an_example_that_failed_before_is_no_reason_against_a_reload(make: Callable[..., Site]) -> None:
    site = make(installed=LOWER).start()
    assert reload_lower(site, b"OWL", b"OWL").errors == ()
    site.stop()


def test_a_server_that_is_too_busy_to_try_an_example_is_no_excuse(
    make: Callable[..., Site],
) -> None:
    site = make(installed=LOWER, limits=Limits(max_queue=1)).start()
    waiting = [site.xform("lower", b"A") for _ in range(2)]
    assert reload_lower(site, b"OWL").errors[0] == "lower('Owl') gave 'OWL', not 'owl'"
    for each in waiting:
        each.addErrback(lambda _: None)
    site.stop()


def test_a_changed_example_must_hold(make: Callable[..., Site]) -> None:
    site = make(installed=LOWER).start()
    site.installed = registry_of(attrs.evolve(lower, examples=(Example("Owl", "OWL!"),)))
    assert reload_lower(site, b"owl").errors[0] == "lower('Owl') gave 'owl', not 'OWL!'"
    site.stop()


def test_a_new_transform_must_hold_its_examples(make: Callable[..., Site]) -> None:
    site = make(installed=registry_of(plain)).start()
    site.installed = registry_of(plain, lower)
    assert reload_lower(site, b"OWL").errors != ()
    site.stop()


def test_examples_are_not_tried_where_the_operator_does_not_want_it(make: Callable[..., Site]) -> None:
    site = make(installed=LOWER, reload_check="off").start()
    site.reload(LOWER)
    assert all(worker.sent == [] for worker in site.workers)
    site.stop()
