"""Makes generations of plugins and workers, and swaps them on a reload.

Invariant: a reload that would break a transform changes nothing, and a successful one fails no request.
"""

import importlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError  # noqa: A004
from twisted.logger import Logger

from xformd import spec
from xformd.config import Settings
from xformd.errors import ConfigError
from xformd.plugins import listing, loader
from xformd.plugins.registry import BUILT_IN, Registry
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.runners.messages import WorkerHello, WorkerSetup
from xformd.runners.policy import Placement, Quarantine
from xformd.runners.pool import WorkerPool
from xformd.runners.supervisor import START_TIMEOUT_S, NotReady, SelfTest
from xformd.runners.worker_handle import WorkerHandle
from xformd.service import TransformService
from xformd.telemetry.status import ServerStatus, WorkerHistory
from xformd.wire import session

RELOAD_TIMEOUT_S = 2 * START_TIMEOUT_S + 10.0
"""A reload is aborted if no new worker is ready by then; the log says why."""

END_TIMEOUT_S = 5.0
"""Killed processes end much sooner, unless the system cannot end them."""


class Reloader:
    """The service of a server, and the plugins and workers behind it.

    Raises:
        ConfigError: a setting names something that does not exist.
    """

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor
        self._placement = Placement(settings.inline, settings.isolate)
        self._inline = InlineRunner(settings.limits.max_result_bytes, reactor)
        registry = loader.load(settings.selection)
        self._placement.check(registry)
        self._history = WorkerHistory()
        self._pool = self._make_pool(registry)
        self._retiring: set[WorkerPool] = set()
        self._new_worker: Deferred[WorkerHello | NotReady] | None = None
        self._is_reloading = self._is_requested = self._is_stopping = False
        self.service = TransformService(self._generation(registry), settings.limits, reactor)

    def start(self) -> None:
        """Start the workers."""
        if self._pool is not None:
            self._pool.supervisor.ready.addCallback(self._apply_worker_failures)
            self._pool.start()

    def status(self) -> ServerStatus:
        """Return the server's status now."""
        now = self._pool.supervisor.states if self._pool is not None else {}
        pools = {pool for pool in (self._pool, *self._retiring) if pool is not None}
        workers = Counter(dict.fromkeys(("starting", "idle", "busy", "ending"), 0))
        for pool in pools:
            workers.update(pool.supervisor.states)
        return ServerStatus(
            queue_length=sum(pool.waiting for pool in pools),
            max_queue=self._settings.limits.max_queue,
            workers=workers,
            proven_workers=now.get("idle", 0) + now.get("busy", 0),
            needs_workers=self.service.needs_workers,
            history=attrs.evolve(self._history),
            quarantined=self.service.quarantined,
            in_flight=self.service.in_flight,
        )

    def stop(self) -> Deferred[Any]:
        """Kill every worker, of this generation and of earlier ones; fires when no process is left."""
        self._is_stopping = True
        if self._new_worker is not None:
            self._new_worker.cancel()
        pools = [pool for pool in (self._pool, *self._retiring) if pool is not None]
        stopped = DeferredList([pool.stop() for pool in pools])
        return stopped.addTimeout(END_TIMEOUT_S, self._reactor, self._give_up_waiting)

    def _give_up_waiting(self, result: object, seconds: float) -> None:  # noqa: ARG002 - Twisted's signature
        self.log.error("some worker processes have not ended {seconds:g} s after they were killed", seconds=seconds)

    def reload(self) -> Deferred[None]:
        """Load the plugins anew, start new workers, and switch to them unless that would break a transform.

        Returns:
            Fires when that is done or has failed. A reload requested meanwhile follows.
        """
        self._is_requested = True
        return Deferred.fromCoroutine(self._reload_while_requested())

    async def _reload_while_requested(self) -> None:
        if self._is_reloading:
            return
        self._is_reloading = True
        while self._is_requested and not self._is_stopping:
            self._is_requested = False
            try:
                await self._reload()
            except ConfigError as error:
                for line in (*error.details, error.message):
                    self.log.error("not reloaded: {line}", line=line)
            except Exception:
                self.log.failure("not reloaded")
        self._is_reloading = False

    async def _reload(self) -> None:
        before = self.service.registry
        importlib.invalidate_caches()
        pool = self._make_pool(before)
        try:
            if pool is None:
                registry = keep_imported(before, loader.load(self._settings.selection))
            else:
                registry = self._registry_from_worker(before, await self._start_and_check(pool))
            self._placement.check(registry)
            if broken := [*what_breaks(before, registry)]:
                raise ConfigError("transforms that work now would stop working", details=broken)
        except BaseException:
            if pool is not None:
                self._retire(pool)
            raise
        self._swap(registry, pool)
        for line in what_changes(before, registry):
            self.log.info("{line}", line=line)

    def _registry_from_worker(self, before: Registry, hello: WorkerHello) -> Registry:
        """Make a registry from a worker's hello. Only plugins that the worker has survived are imported here."""
        is_isolated = self._placement.is_isolated
        wanted = listing.plugins_run_here(hello.listing, is_isolated)
        ignore_unknown = attrs.evolve(self._settings.selection, strict=False, ignore_unknown=True)
        own = loader.load(ignore_unknown, only=lambda candidate: (candidate.distribution, candidate.name) in wanted)
        return listing.from_json(hello.listing, keep_imported(before, own), is_isolated)

    def _apply_worker_failures(self, ready: WorkerHello | NotReady) -> None:
        """List plugins that load here and fail in workers as failed."""
        if isinstance(ready, NotReady):
            return
        before = self.service.registry
        registry = listing.from_json(ready.listing, before, self._placement.is_isolated)
        active = {(plugin.distribution, plugin.name) for plugin in before.with_state("active")}
        failed = [plugin for plugin in registry.with_state("failed") if (plugin.distribution, plugin.name) in active]
        for plugin in failed:
            self.log.error("plugin {plugin} fails in workers: {why}", plugin=plugin.label, why=plugin.reason)
        if failed:
            self.service.swap(self._generation(registry))

    async def _start_and_check(self, pool: WorkerPool) -> WorkerHello:
        pool.start()
        self._new_worker = pool.supervisor.ready.addTimeout(RELOAD_TIMEOUT_S, self._reactor)
        try:
            ready = await self._new_worker
        except TimeoutError:
            reason = f"no new worker was ready within {RELOAD_TIMEOUT_S:g} s; the log says why"
            raise ConfigError(reason) from None
        except CancelledError:
            raise ConfigError("the server is stopping") from None
        finally:
            self._new_worker = None
        if isinstance(ready, NotReady):
            raise ConfigError(f"no new worker became ready: {ready.reason}")
        return ready

    def _swap(self, registry: Registry, pool: WorkerPool | None) -> None:
        old, self._pool = self._pool, pool
        finished = self.service.swap(self._generation(registry))
        if old is not None:
            self._retiring.add(old)
            old.wind_down()
            finished.addCallback(lambda _: self._retire(old))

    def _retire(self, pool: WorkerPool) -> None:
        self._retiring.add(pool)  # so that a stop waits for it too
        pool.stop().addCallback(lambda _: self._retiring.discard(pool))

    def _generation(self, registry: Registry) -> Generation:
        quarantine = self._pool.quarantine if self._pool is not None else None
        return Generation(registry, self._inline, self._pool, self._placement, quarantine)

    def _make_pool(self, registry: Registry) -> WorkerPool | None:
        """Make a pool, not yet started."""
        settings, limits = self._settings, self._settings.limits
        if settings.worker_count == 0:
            return None
        setup = WorkerSetup(
            selection=attrs.evolve(settings.selection, strict=False, ignore_unknown=True),
            max_request_bytes=max(limits.max_request_bytes, limits.max_result_bytes),
            max_result_bytes=limits.max_result_bytes,
            memory_bytes=limits.worker_memory_bytes,
        )
        return WorkerPool(
            size=settings.worker_count,
            launch=lambda events: WorkerHandle(setup, events, self._reactor),
            self_test=choose_self_test(registry, self._placement),
            quarantine=Quarantine(),
            limits=limits,
            clock=self._reactor,
            history=self._history,
        )


def choose_self_test(registry: Registry, placement: Placement) -> SelfTest | None:
    """Return an example of a built-in transform that runs in workers.

    Not a plugin's: one whose example is wrong must not keep every other transform from running.
    """
    for name, entry in sorted(registry.entries.items()):
        transform = entry.transform
        if entry.plugin.distribution == BUILT_IN and placement.is_isolated(transform) and transform.examples:
            example = transform.examples[0]
            poem, result = (side.encode() if isinstance(side, str) else side for side in (example.poem, example.result))
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
            yield f"transform {name}: plugin {plugin.label} failed: {plugin.reason}"
        elif entry.plugin.distribution in there:
            yield f"transform {name} is gone from {entry.plugin.distribution}; if that is meant, restart the server"


def what_changes(before: Registry, after: Registry) -> Iterator[str]:
    """Yield a line for each change that a reload has made."""
    yield f"reloaded: {len(after.entries)} transforms from {len(after.with_state('active'))} plugins"
    old = {plugin.distribution: plugin.version for plugin in before.plugins}
    new = {plugin.distribution: plugin.version for plugin in after.plugins}
    for distribution in sorted(old.keys() | new.keys()):
        was, now = old.get(distribution, "not installed"), new.get(distribution, "removed")
        if was != now:
            yield f"{distribution}: {was} -> {now}"
    for name, entry in sorted(after.entries.items()):
        version = new.get(entry.plugin.distribution, entry.plugin.version)
        if version != entry.plugin.version:
            yield f"transform {name} runs in the server: version {entry.plugin.version} stays until a restart"
    for plugin in after.with_state("failed"):
        yield f"failed: plugin {plugin.label}: {plugin.reason}"
