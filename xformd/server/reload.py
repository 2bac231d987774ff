"""Makes generations of plugins and workers, and swaps them on a reload.

The law: a reload that would break what works changes nothing, and no request fails because of one that goes well.
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
"""Fresh workers of which none is ready by then do not get ready; the log has said why by then."""


END_TIMEOUT_S = 5.0
"""Long after a process has ended that was killed, unless the system cannot end it."""


class Reloader:
    """What a server's service answers with, from its start to its end.

    Args:
        settings: what the operator wants.
        reactor: what it runs on.

    Attributes:
        service: answers requests.

    Raises:
        ConfigError: the settings name something that is not there.
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
        self._proving: Deferred[WorkerHello | NotReady] | None = None
        self._is_reloading = self._is_asked_again = self._is_stopping = False
        self.service = TransformService(self._generation(registry), settings.limits, reactor)

    def start(self) -> None:
        """Start the workers."""
        if self._pool is not None:
            self._pool.supervisor.ready.addCallback(self._apply_worker_failures)
            self._pool.start()

    def status(self) -> ServerStatus:
        """Say how the server is now."""
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
        """End every worker, of this generation and of those before; fires when no process is left."""
        self._is_stopping = True
        if self._proving is not None:
            self._proving.cancel()
        pools = [pool for pool in (self._pool, *self._retiring) if pool is not None]
        stopped = DeferredList([pool.stop() for pool in pools])
        return stopped.addTimeout(END_TIMEOUT_S, self._reactor, self._give_up_waiting)

    def _give_up_waiting(self, result: object, seconds: float) -> None:  # noqa: ARG002 - Twisted's signature
        self.log.error("some worker processes have not ended {seconds:g} s after they were killed", seconds=seconds)

    def reload(self) -> Deferred[None]:
        """Load the plugins anew, start fresh workers, and go over to them if nothing that worked is broken.

        Returns:
            Fires when that is done, or given up; a reload that is asked for meanwhile is done after it.
        """
        self._is_asked_again = True
        return Deferred.fromCoroutine(self._reload_while_asked())

    async def _reload_while_asked(self) -> None:
        if self._is_reloading:
            return
        self._is_reloading = True
        while self._is_asked_again and not self._is_stopping:
            self._is_asked_again = False
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
                raise ConfigError("what worked before would not work any more", details=broken)
        except BaseException:
            if pool is not None:
                self._retire(pool)
            raise
        self._swap(registry, pool)
        for line in what_changes(before, registry):
            self.log.info("{line}", line=line)

    def _registry_from_worker(self, before: Registry, report: WorkerHello) -> Registry:
        """Make a registry of what a worker has loaded, and lived: only then is what must run here imported here."""
        is_isolated = self._placement.is_isolated
        wanted = listing.plugins_run_here(report.listing, is_isolated)
        ignore_unknown = attrs.evolve(self._settings.selection, strict=False, ignore_unknown=True)
        own = loader.load(ignore_unknown, only=lambda candidate: (candidate.distribution, candidate.name) in wanted)
        return listing.from_json(report.listing, keep_imported(before, own), is_isolated)

    def _apply_worker_failures(self, ready: WorkerHello | NotReady) -> None:
        """Take note of plugins that work here, and fail in every worker."""
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
        self._proving = pool.supervisor.ready.addTimeout(RELOAD_TIMEOUT_S, self._reactor)
        try:
            ready = await self._proving
        except TimeoutError:
            reason = f"no fresh worker was ready within {RELOAD_TIMEOUT_S:g} s; the log says why"
            raise ConfigError(reason) from None
        except CancelledError:
            raise ConfigError("the server is stopping") from None
        finally:
            self._proving = None
        if isinstance(ready, NotReady):
            raise ConfigError(f"no worker gets ready: {ready.reason}")
        return ready

    def _swap(self, registry: Registry, pool: WorkerPool | None) -> None:
        old, self._pool = self._pool, pool
        finished = self.service.swap(self._generation(registry))
        if old is not None:
            self._retiring.add(old)
            old.wind_down()
            finished.addCallback(lambda _: self._retire(old))

    def _retire(self, pool: WorkerPool) -> None:
        self._retiring.add(pool)  # a stop waits for it too
        pool.stop().addCallback(lambda _: self._retiring.discard(pool))

    def _generation(self, registry: Registry) -> Generation:
        quarantine = self._pool.quarantine if self._pool is not None else None
        return Generation(registry, self._inline, self._pool, self._placement, quarantine)

    def _make_pool(self, registry: Registry) -> WorkerPool | None:
        """Make a pool whose workers load the same plugins; it does not start any yet."""
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
    """Choose the example that each worker must run well first.

    It is a built-in transform's: a plugin whose example does not hold must not keep every other from running.
    """
    for name, entry in sorted(registry.entries.items()):
        transform = entry.transform
        if entry.plugin.distribution == BUILT_IN and placement.is_isolated(transform) and transform.examples:
            example = transform.examples[0]
            poem, result = (side.encode() if isinstance(side, str) else side for side in (example.poem, example.result))
            return SelfTest(session.Request(1, spec.build(name, example.options), poem), result)
    return None


def keep_imported(before: Registry, installed: Registry) -> Registry:
    """Say of what this process had imported already which version it is: an upgrade does not change it here.

    Args:
        before: what there was.
        installed: what loading once more gave, with the versions that are installed now.
    """
    entries = dict(installed.entries)
    for name in entries.keys() & before.entries.keys():
        if entries[name].transform.function is before.entries[name].transform.function:
            entries[name] = before.entries[name]
    return attrs.evolve(installed, entries=entries)


def what_breaks(before: Registry, after: Registry) -> Iterator[str]:
    """Name what worked before and would not any more.

    Args:
        before: what there was.
        after: what there would be. Who takes a whole distribution away wants its transforms gone.
    """
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
    """Say what a reload has brought."""
    yield f"reloaded: {len(after.entries)} transforms from {len(after.with_state('active'))} plugins"
    old = {plugin.distribution: plugin.version for plugin in before.plugins}
    new = {plugin.distribution: plugin.version for plugin in after.plugins}
    for distribution in sorted(old.keys() | new.keys()):
        was, now = old.get(distribution, "not there"), new.get(distribution, "gone")
        if was != now:
            yield f"{distribution}: {was} -> {now}"
    for name, entry in sorted(after.entries.items()):
        version = new.get(entry.plugin.distribution, entry.plugin.version)
        if version != entry.plugin.version:
            yield f"transform {name} runs in the server: it stays that of {entry.plugin.version} until a restart"
    for plugin in after.with_state("failed"):
        yield f"failed: plugin {plugin.label}: {plugin.reason}"
