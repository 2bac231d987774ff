"""Makes generations of plugins and workers: one when the server starts, and one for each reload.

No plugin's code runs in this process before a fork server has survived importing it, and then only that of transforms
which run here. Invariant: a reload that would break a transform changes nothing, and a successful one fails no request.
"""

import importlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from operator import attrgetter
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd import spec
from xformd.config import Settings
from xformd.config.resources import resident_bytes
from xformd.errors import ConfigError
from xformd.plugins import listing, loader
from xformd.plugins.definition import Transform
from xformd.plugins.process_state import isolated_import
from xformd.plugins.registry import BUILT_IN, Plugin, Registry
from xformd.plugins.selection import Selection
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.runners.launcher import SLOW_AFTER_S, Launcher
from xformd.runners.messages import LeftOut, WorkerHello, WorkerSetup
from xformd.runners.policy import Placement
from xformd.runners.pool import WorkerPool
from xformd.runners.supervisor import NotReady, SelfTest
from xformd.server.examples import failing_examples
from xformd.service import TransformService
from xformd.telemetry.reloads import ReloadOutcome
from xformd.telemetry.status import ServerStatus, WorkerHistory
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

END_TIMEOUT_S = 10.0  # killed processes end much sooner, unless the system cannot end them


class _Superseded(ConfigError):
    """A generation was given up before it was ready."""


class Reloader:
    """The service of a server, and the plugins and workers behind it.

    ``on_change`` is called with the settings that a reload is about to change to, and raises ``ConfigError`` to refuse.
    So does making one, if a setting names something that does not exist.
    """

    log = Logger()

    def __init__(
        self,
        settings: Settings,
        reactor: Any,
        *,
        report_slow: Callable[[Plugin], object] | None = None,  # of a plugin that takes long; by default it is logged
        is_local: bool = False,  # wait for every plugin, tell in full what a transform raises, and have no spare worker
        read_again: Callable[[], Settings] | None = None,  # for a reload, which takes what may change of them
        warm_ups: frozenset[str] | None = None,  # names of transforms or of their distributions; None for all
        starts_ahead: bool = False,  # start the next fork server before a reload, and switch whatever that breaks
    ) -> None:
        self._settings = settings
        self._read_again = read_again
        self.on_change: Callable[[Settings], object] = lambda _: None
        self._reactor = reactor
        self._report_slow = report_slow or self._log_slow
        self._is_local = is_local
        self._warm_ups = warm_ups
        self._starts_ahead = starts_ahead
        self._next_launcher: Launcher | None = None
        self._placement = Placement(settings.inline, settings.isolate, isolates_all=is_local)
        make_traceback = SafeTraceback.unredacted if is_local else SafeTraceback.redacted
        self._inline = InlineRunner(settings.limits.max_result_bytes, reactor, make_traceback=make_traceback)
        found = loader.find(settings.selection)
        self._selection = attrs.evolve(settings.selection, strict=False, ignore_unknown=True)
        others = {plugin.key: plugin for plugin in found if is_local or plugin.distribution != BUILT_IN}
        self._built_in = loader.load(self._selection, known=others)
        self._history = WorkerHistory()
        self._pool: WorkerPool | None = None
        self._starting: set[WorkerPool] = set()
        self._retiring: set[WorkerPool] = set()
        self._is_reloading = self._is_requested = self.is_stopping = False
        self._waiting: list[Deferred[ReloadOutcome]] = []
        self._is_complete = is_local or settings.selection.strict
        """Whether a slow plugin is waited for: until the first generation is complete, the others are started."""
        self._left_out: LeftOut | None = None
        """What the generation that works meanwhile does without; None while there is none."""
        self._started: Deferred[None] = Deferred()
        self.service = TransformService(self._generation(self._built_in), settings.limits, reactor)

    def start(self) -> Deferred[None]:
        """Load the plugins and start the workers; fires when that is done, or, if not strict, but for slow plugins.

        It fails with ``ConfigError`` if a setting names what does not exist, or if it is strict and a plugin failed.
        """
        Deferred.fromCoroutine(self._start()).addErrback(self._start_failed)
        return self._started

    async def _start(self) -> None:
        pool = self._make_pool({})
        while isinstance(ready := await self._first_worker(pool), NotReady):
            if self._is_local:
                raise ConfigError(f"no worker is ready: {ready.reason}")
            if self._has_workers and not self._started.called:
                self._swap(self._built_in, pool)  # its jobs wait for a worker
            self._has_started()
        self._is_complete = True
        self._swap(self._checked_registry(ready), pool)
        self._supersede()  # those without slow plugins
        self._has_started()

    def _log_loaded(self, before: Registry, after: Registry) -> None:
        states = {plugin.key: plugin.state for plugin in before.plugins}
        for plugin in after.plugins:
            if plugin.state == "failed" and (self._is_reloading or states.get(plugin.key) != "failed"):
                for reason in plugin.reasons:
                    self.log.error("plugin {plugin} failed: {reason}", plugin=plugin.label, reason=reason)
            elif self._started.called and plugin.state == "active" and states.get(plugin.key) == "loading":
                self.log.info("plugin {plugin} is loaded", plugin=plugin.label)
            if plugin.warm_up_time_s > SLOW_AFTER_S and (self._is_reloading or states.get(plugin.key) != "active"):
                message = "plugin {plugin} took {seconds:.1f} s to warm up"
                self.log.info(message, plugin=plugin.label, seconds=plugin.warm_up_time_s)

    def _start_failed(self, failure: Failure) -> None:
        if self.is_stopping or failure.check(_Superseded):
            self._has_started()
        elif self._started.called:
            self.log.failure("the plugins cannot be loaded", failure)
        else:
            self._started.errback(failure)

    def _has_started(self) -> None:
        if not self._started.called:
            self._started.callback(None)
            if self._is_requested:
                self._reactor.callLater(0, self.reload)

    def _found_slow(self, plugin: Plugin, others: LeftOut) -> None:
        """Report a plugin that takes long to be loaded; if nothing else works yet, start what does without it."""
        self._report_slow(plugin)
        if self._is_complete or self.is_stopping:
            return
        if self._left_out is None:
            left_out: LeftOut = {**others, plugin.key: ("loading", plugin.reason)}
            Deferred.fromCoroutine(self._start_without(left_out)).addErrback(self._start_failed)

    def _log_slow(self, plugin: Plugin) -> None:
        message = "plugin {plugin} is still {progress} after {seconds:g} s"
        self.log.warn(message, plugin=plugin.label, progress=plugin.progress, seconds=SLOW_AFTER_S)

    async def _start_without(self, left_out: LeftOut) -> None:
        pool = self._make_pool(left_out)
        ready = await self._first_worker(pool)
        is_better = self._left_out is None or len(left_out) < len(self._left_out)
        if is_better and not self._is_complete and isinstance(ready, WorkerHello):
            self._left_out = left_out
            self._swap(self._registry_of(ready), pool)
            self._has_started()
        else:
            self._retire(pool)

    def status(self) -> ServerStatus:
        """Return the server's status now."""
        now = self._pool.supervisor.states if self._pool is not None else {}
        generation = self.service.generation
        workers = Counter(dict.fromkeys(("starting", "idle", "busy", "ending"), 0))
        for pool in self._pools:
            workers.update(pool.supervisor.states)
        return ServerStatus(
            queue_length=sum(pool.waiting for pool in self._pools),
            max_queue=self._settings.limits.max_queue,
            takes_newcomers=self._pool is None or self._pool.takes_newcomers,
            workers=workers,
            proven_workers=now.get("idle", 0) + now.get("busy", 0),
            needs_workers=self._has_workers and generation.needs_workers,
            history=attrs.evolve(self._history),
            quarantined=generation.quarantined,
            quarantined_in_part=generation.quarantined_in_part,
            in_flight=self.service.in_flight,
            memory_bytes=(("server", 1, resident_bytes()), *self._memory()),
            fingerprint=generation.fingerprint,
            loading=self.service.missing(),
        )

    def _memory(self) -> Iterator[tuple[str, int, int]]:
        numbers = Counter[str]()
        for pool in self._pools:
            for process, used_bytes in pool.supervisor.memory_bytes:
                numbers[process] += 1
                yield process, numbers[process], used_bytes

    @property
    def _has_workers(self) -> bool:
        return self._settings.worker_count > 0

    @property
    def _pools(self) -> set[WorkerPool]:
        return {pool for pool in (self._pool, *self._starting, *self._retiring) if pool is not None}

    def stop(self) -> Deferred[Any]:
        """End every worker, of this generation and of earlier ones; fires when no process is left."""
        self.is_stopping = True
        self._supersede()
        ahead = [] if self._next_launcher is None else [self._next_launcher.stop()]
        stopped = DeferredList([*ahead, *(pool.stop() for pool in self._pools)])
        return stopped.addTimeout(END_TIMEOUT_S, self._reactor, self._give_up_waiting)

    def _give_up_waiting(self, result: object, seconds: float) -> None:  # noqa: ARG002 - Twisted's signature
        self.log.error("some worker processes have not ended {seconds:g} s after they were killed", seconds=seconds)

    def reload(self) -> Deferred[ReloadOutcome]:
        """Read the settings and load the plugins anew, start new workers, and switch to them if that breaks nothing.

        Fires with the outcome. A reload that is requested meanwhile follows, as does one during the start, and then
        the outcome is that of the last.
        """
        self._is_requested = True
        waiting: Deferred[ReloadOutcome] = Deferred()
        self._waiting.append(waiting)
        if self._started.called and not self._is_reloading:
            Deferred.fromCoroutine(self._reload_while_requested())
        return waiting

    async def _reload_while_requested(self) -> None:
        self._is_reloading = True
        outcome = ReloadOutcome(errors=("the server is stopping",))
        while self._is_requested and not self.is_stopping:
            self._is_requested = False
            try:
                outcome = ReloadOutcome(await self._reload()).logged(self.log)
            except ConfigError as error:
                outcome = ReloadOutcome.of_mistakes(error).logged(self.log)
            except Exception:
                self.log.failure("not reloaded")
                outcome = ReloadOutcome(errors=("a fault of xformd: see the log",))
        self._is_reloading = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(outcome)

    async def _reload(self) -> tuple[str, ...]:
        """Reload, and return what has changed; raise ``ConfigError`` if nothing has."""
        self._supersede()
        self._is_complete = True
        before, selection, settings = self.service.registry, self._selection, self._settings
        importlib.invalidate_caches()
        new = settings if self._read_again is None else self._read_again()
        pool = None
        try:
            self._settings = settings.with_changes(new)
            self._selection = self._select_again()
            pool = self._make_pool({})
            ready = await self._first_worker(pool)
            if isinstance(ready, NotReady):
                raise ConfigError(f"no new worker became ready: {ready.reason}")
            registry = self._checked_registry(ready)
            if not self._starts_ahead and (broken := [*what_breaks(before, registry)]):
                raise ConfigError("transforms that work now would stop working", details=broken)
            if failing := await self._failing_examples(registry, pool):
                advice = 'mend the plugin, or set reload_check = "off"'
                raise ConfigError(f"examples fail that did not fail before: {advice}", details=failing)
            self.on_change(self._settings)
        except BaseException:
            self._selection, self._settings = selection, settings
            if pool is not None:
                self._retire(pool)
            self._start_next_launcher()
            raise
        self.service.set_limits(self._settings.limits)
        self._swap(registry, pool)
        return *what_changes(before, registry), *self._settings.changes(settings, new)

    async def _failing_examples(self, registry: Registry, pool: WorkerPool) -> list[str]:
        """Run the plugins' examples in new workers; return a line for each that fails and did not before.

        All plugins are tried, not only those with another version: what they stand on may have changed.
        """
        if self._settings.reload_check == "off" or not self._has_workers:
            return []
        generation = Generation(registry, self._inline, pool, self._placement, pool.quarantine)
        limits = self._settings.limits
        new = TransformService(generation, limits, self._reactor)

        async def check(transform: Transform) -> list[str]:
            describe = attrgetter("message")
            return [line async for line in failing_examples(new, transform, describe, self.service)]

        at_once = DeferredSemaphore(max(1, min(self._settings.worker_count, limits.max_queue)))  # more would be busy
        checks = [
            at_once.run(lambda each: Deferred.fromCoroutine(check(each)), entry.transform)
            for _, entry in sorted(registry.entries.items())
            if entry.plugin.distribution != BUILT_IN and self._is_isolated(entry.transform)
        ]
        lines = [line for failing in await gatherResults(checks) for line in failing]
        if self.is_stopping:
            raise _Superseded("the server is stopping")
        return lines

    def _select_again(self) -> Selection:
        """Return the selection with its tables as they are now; raise ``ConfigError`` if one is wrong."""
        new = self._settings.selection
        selection = attrs.evolve(self._selection, settings=new.settings, commands=new.commands, required=new.required)
        loader.find(attrs.evolve(selection, distributions=None, blocked=frozenset(), ignore_unknown=False))
        return selection

    def _checked_registry(self, hello: WorkerHello) -> Registry:
        registry = self._registry_of(hello)
        loader.check(registry, self._settings.selection)
        self._placement.check(registry)
        return registry

    def _registry_of(self, hello: WorkerHello) -> Registry:
        """Make a registry from a worker's hello. Only plugins that the worker has survived are imported here."""
        wanted = listing.plugins_run_here(hello.listing, self._is_isolated)
        own = loader.load(self._selection, only=lambda plugin: plugin.key in wanted, around=self._loading_here)
        own = loader.warm_up(own, self._selection, self._warms_up_here, self._loading_here)
        return listing.from_json(hello.listing, keep_imported(self.service.registry, own), self._is_isolated)

    def _warms_up_here(self, plugin: Plugin, transform: Transform) -> bool:
        is_wanted = loader.is_warmed_up(plugin, transform, self._warm_ups)
        warm = (entry.transform.warm_up for entry in self.service.registry.entries.values())  # before a reload
        return is_wanted and not self._is_isolated(transform) and transform.warm_up not in warm

    def _loading_here(self, plugin: Plugin) -> AbstractContextManager[None]:
        def warn(what: str) -> None:
            self.log.warn("plugin {plugin}, which runs in the server, {what}", plugin=plugin.label, what=what)

        return isolated_import(warn)

    def _is_isolated(self, transform: Transform) -> bool:
        return self._has_workers and self._placement.is_isolated(transform)

    async def _first_worker(self, pool: WorkerPool) -> WorkerHello | NotReady:
        """Start a pool, or go on waiting for it; return what its first worker says."""
        if pool not in self._pools:
            pool.start()
        self._starting.add(pool)
        try:
            return await pool.supervisor.ready
        except CancelledError:
            self._starting.discard(pool)
            if pool is not self._pool:  # whose jobs wait for a worker
                self._retire(pool)
            raise _Superseded("the server is stopping, or loads its plugins anew") from None

    def _supersede(self) -> None:
        """Abandon the generations that are being started."""
        for pool in [*self._starting]:
            ready = pool.supervisor.ready
            ready.cancel()
            ready.addErrback(lambda _: None)  # whoever waits has been told, and there may be nobody

    def _swap(self, registry: Registry, pool: WorkerPool) -> None:
        self._starting.discard(pool)
        self._log_loaded(self.service.registry, registry)
        old, self._pool = self._pool, pool if self._has_workers else None
        finished = self.service.swap(self._generation(registry))
        if old is not None and old is not pool:
            self._retiring.add(old)
            old.wind_down()
            finished.addCallback(lambda _: self._retire(old))
        if not self._has_workers:
            self._retire(pool)
        self._start_next_launcher()

    def _start_next_launcher(self) -> None:
        if self._starts_ahead and self._next_launcher is None and not self.is_stopping:
            self._next_launcher = self._make_launcher({})
            self._next_launcher.prepare()

    def _retire(self, pool: WorkerPool) -> None:
        self._starting.discard(pool)
        self._retiring.add(pool)  # so that a stop waits for it too
        pool.stop().addCallback(lambda _: self._retiring.discard(pool))

    def _generation(self, registry: Registry) -> Generation:
        quarantine = self._pool.quarantine if self._pool is not None else None
        return Generation(registry, self._inline, self._pool, self._placement, quarantine)

    def _make_pool(self, left_out: LeftOut) -> WorkerPool:
        """Make a pool, not yet started, without some plugins."""
        return WorkerPool(
            size=self._settings.worker_count or 1,
            launcher=self._make_launcher(left_out),
            self_test=None if self._is_local else choose_self_test(self._built_in, self._placement),
            limits=self._settings.limits,
            clock=self._reactor,
            history=self._history,
            spares=1 if self._has_workers and not self._is_local else 0,
        )

    def _make_launcher(self, left_out: LeftOut) -> Launcher:
        limits = self._settings.limits
        setup = WorkerSetup(
            selection=self._selection,
            max_request_bytes=max(limits.max_request_bytes, limits.max_result_bytes),
            max_result_bytes=limits.max_result_bytes,
            memory_bytes=limits.worker_memory_bytes,
            left_out=left_out,
            shows_errors=self._is_local,
            warm_ups=self._warm_ups,
        )
        plugins = {plugin.key: plugin for plugin in loader.find(self._selection)}
        if self._next_launcher is not None:
            launcher, self._next_launcher = self._next_launcher, None
            launcher.setup, launcher.plugins = setup, plugins
            return launcher
        return Launcher(setup, limits.plugin_load_timeout_s, plugins, self._found_slow, self._reactor)


@asynccontextmanager
async def local_service(
    settings: Settings, report_slow: Callable[[Plugin], object], *, warm_ups: frozenset[str] | None = None
) -> AsyncIterator[TransformService]:
    """Run transforms for the person who runs a command, in one worker until the block ends; see ``Reloader``.

    The service's errors tell in full what a transform raised.
    """
    from twisted.internet import reactor

    nowhere: frozenset[str] = frozenset()  # where transforms run is a server's business
    settings = attrs.evolve(settings, workers=1, inline=nowhere, isolate=nowhere)
    reloader = Reloader(settings, reactor, report_slow=report_slow, is_local=True, warm_ups=warm_ups)
    try:
        await reloader.start()
        yield reloader.service
    finally:
        await reloader.stop()


def choose_self_test(registry: Registry, placement: Placement) -> SelfTest | None:
    """Return an example of a built-in transform that runs in workers.

    Not a plugin's: one whose example is wrong must not keep every other transform from running.
    """
    for name, entry in sorted(registry.entries.items()):
        transform = entry.transform
        if entry.plugin.distribution == BUILT_IN and placement.is_isolated(transform) and transform.examples:
            example = transform.examples[0]
            poem, result = example.encoded
            return SelfTest(session.Request(1, spec.build(name, example.options), poem), result)
    return None


def keep_imported(before: Registry, installed: Registry) -> Registry:
    """Return what is installed, except that code which this process had already imported keeps its old version."""
    entries = dict(installed.entries)
    for name in entries.keys() & before.entries.keys():
        if entries[name].transform.function is before.entries[name].transform.function:
            entries[name] = before.entries[name]
    return attrs.evolve(installed, entries=entries)


def what_breaks(before: Registry, after: Registry) -> Iterator[str]:
    """Yield a line for each transform that a reload would break; uninstalling a whole distribution is intended."""
    there = {plugin.distribution for plugin in after.plugins}
    failed = {plugin.distribution: plugin for plugin in after.with_state("failed")}
    ambiguous = {conflict.name: conflict for conflict in after.conflicts if conflict.winner is None}
    for name, entry in sorted(before.entries.items()):
        if name in after.entries:
            continue
        if name in ambiguous:
            yield f"transform {name}: {ambiguous[name]}"
        elif (plugin := failed.get(entry.plugin.distribution)) is not None:
            yield f"transform {name}: plugin {plugin.label} failed: {'; '.join(plugin.reasons)}"
        elif entry.plugin.distribution in there:
            yield f"transform {name} is gone from {entry.plugin.distribution}; if that is meant, restart the server"


def what_changes(before: Registry, after: Registry) -> Iterator[str]:
    """Yield a line for each change that a reload has made."""
    yield f"reloaded: {len(after.entries)} transforms from {len(after.with_state('active'))} plugins"
    old, new = ({it.distribution: it.version or "installed" for it in each.plugins} for each in (before, after))
    for distribution in sorted(dict(old.items() ^ new.items())):  # those that differ
        yield f"{distribution}: {old.get(distribution, 'not installed')} -> {new.get(distribution, 'removed')}"
    for name, entry in sorted(after.entries.items()):
        if new.get(entry.plugin.distribution, "") != (entry.plugin.version or "installed"):
            yield f"transform {name} runs in the server: version {entry.plugin.version} stays until a restart"
