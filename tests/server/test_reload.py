"""Reloads: a new generation takes over unless that would break a transform, and no request notices."""

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import FakeWorker, Launcher
from support.logs import Log
from support.registries import plain, quick, registry_of
from xformd import Example, ShuttingDown, Transform, transform
from xformd.config import Settings
from xformd.errors import ConfigError, NoSuchTransform
from xformd.limits import Limits
from xformd.plugins import listing, loader
from xformd.plugins.registry import BUILT_IN, Conflict, Registry
from xformd.plugins.selection import Selection
from xformd.runners.messages import WorkerSetup
from xformd.runners.policy import Placement
from xformd.server.reload import RELOAD_TIMEOUT_S, Reloader, choose_self_test, what_breaks, what_changes
from xformd.spec import parse


@transform
def other(poem: str) -> str:
    return poem


FIRST = registry_of(plain, quick)
SECOND = registry_of(plain, quick, other)
FAILED = registry_of(state="failed", reason="it is broken")


class Site:
    """A reloader whose workers are fake, on a machine whose plugins the test changes."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.installed: Registry | Exception = FIRST
        self.launcher = Launcher()
        self.setups: list[WorkerSetup] = []
        monkeypatch.setattr("xformd.server.reload.WorkerHandle", lambda setup, events, _: self._launch(setup, events))
        monkeypatch.setattr(loader, "load", lambda selection, only=None: self._load())
        self.reloader = Reloader(Settings(**{"workers": 1, **settings}), clock)
        self.service = self.reloader.service

    def _launch(self, setup: WorkerSetup, events: Any) -> FakeWorker:
        self.setups.append(setup)
        worker: FakeWorker = self.launcher(events)
        return worker

    def _load(self) -> Registry:
        if isinstance(self.installed, Exception):
            raise self.installed
        return self.installed

    @property
    def alive(self) -> list[FakeWorker]:
        return self.launcher.alive

    def say_hello(self, registry: Registry | None = None) -> None:
        """Have each starting worker list what is installed, or another registry."""
        for worker in self.alive:
            if worker.pid is None:
                worker.listing = listing.to_json(registry or self._load())
                worker.say_hello()

    def start(self) -> "Site":
        self.reloader.start()
        self.say_hello()
        return self

    def reload(self, registry: Registry) -> None:
        """Reload to its end."""
        self.installed = registry
        reloaded = self.reloader.reload()
        self.say_hello()
        assert has_fired(reloaded)

    def stop(self) -> None:
        """Stop to its end."""
        stopped = self.reloader.stop()
        assert self.alive == []
        self.launcher.end_all()
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
    sizes = [(setup.max_request_bytes, setup.max_result_bytes) for setup in make(limits=limits).start().setups]
    assert sizes == [(1_000, result_bytes)] * 2


def test_workers_are_not_strict(make: Callable[..., Site]) -> None:
    """The server has been: what breaks on the disk later must not keep every other transform from running."""
    selection = Selection(strict=True, blocked=frozenset({"x"}))
    setups = make(selection=selection).start().setups
    assert [setup.selection for setup in setups] == [attrs.evolve(selection, strict=False, ignore_unknown=True)] * 2


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
    before = site.alive
    site.reload(FAILED)
    assert log.lines == [
        "not reloaded: transform plain: plugin xformd-verses 1.0 (verses) failed: it is broken",
        "not reloaded: transform quick: plugin xformd-verses 1.0 (verses) failed: it is broken",
        "not reloaded: transforms that work now would stop working",
    ]
    assert site.alive == before
    assert site.service.registry is FIRST
    assert site.xform("plain")


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


def test_a_plugin_that_fails_only_in_workers_is_failed(make: Callable[..., Site], log: Log) -> None:
    site = make()
    site.reloader.start()
    site.say_hello(FAILED)
    assert log.lines == ["plugin xformd-verses 1.0 (verses) fails in workers: it is broken"]
    (plugin,) = site.service.describe()["plugins"]
    assert (plugin["state"], plugin["reason"]) == ("failed", "it is broken")
    with pytest.raises(NoSuchTransform):
        site.xform("plain")


def test_a_reload_whose_workers_are_never_ready_changes_nothing(clock: Clock, site: Site, log: Log) -> None:
    before = site.alive
    reloaded = site.reloader.reload()
    for worker in site.alive:
        if worker not in before:
            worker.end("ended with exit status 1")
    clock.advance(RELOAD_TIMEOUT_S)
    assert has_fired(reloaded)
    assert log.lines[-1] == "not reloaded: no new worker was ready within 130 s; the log says why"
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
    assert len(site.launcher.workers) == 6


def test_stopping_during_a_reload_ends_both(clock: Clock, site: Site, log: Log) -> None:
    reloaded = site.reloader.reload()
    assert len(site.alive) == 4
    stopped = site.reloader.stop()
    assert has_fired(reloaded)
    assert log.lines == ["not reloaded: the server is stopping"]
    assert site.alive == []
    for worker in site.launcher.workers:
        assert not has_fired(stopped)
        worker.end()
    assert has_fired(stopped)
    assert clock.getDelayedCalls() == []
    assert has_fired(site.reloader.reload())
    assert len(site.launcher.workers) == 4


def test_stopping_waits_for_the_workers_of_a_failed_reload(site: Site) -> None:
    used = site.alive
    site.reload(FAILED)
    stopped = site.reloader.stop()
    for worker in used:
        worker.end()
    assert not has_fired(stopped)
    site.launcher.end_all()
    assert has_fired(stopped)


def test_stopping_answers_what_an_old_generation_runs(site: Site) -> None:
    result = site.xform("plain", b"poem")
    site.reload(SECOND)
    site.stop()
    error_of(result, ShuttingDown)


def test_a_reload_before_the_start_leaves_one_generation(make: Callable[..., Site]) -> None:
    site = make()
    site.reload(SECOND)
    site.start()
    assert len(site.alive) == 2
    site.stop()


def test_without_workers_a_reload_switches_at_once(make: Callable[..., Site], log: Log) -> None:
    site = make(workers=0).start()
    assert site.xform("plain") == b"a"
    site.reload(SECOND)
    assert site.xform("other") == b"a"
    site.reload(FAILED)
    assert log.lines[-1] == "not reloaded: transforms that work now would stop working"
    assert site.xform("other") == b"a"
    assert site.launcher.workers == []
    assert has_fired(site.reloader.stop())


def test_a_reload_keeps_the_transforms_that_the_operator_places(make: Callable[..., Site], log: Log) -> None:
    site = make(isolate=frozenset({"quick"})).start()
    site.reload(registry_of(plain))
    assert log.lines[-1] == "not reloaded: isolate: no transform 'quick' here; see 'xformd list-transforms'"
    assert "quick" in site.service.registry.entries
    with pytest.raises(ConfigError, match="inline: no transform 'nope' here"):
        make(inline=frozenset({"nope"}))


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
    lines = [*what_changes(Registry({}, ()), FAILED)]
    assert lines[1:] == [
        "xformd-verses: not installed -> 1.0",
        "failed: plugin xformd-verses 1.0 (verses): it is broken",
    ]
