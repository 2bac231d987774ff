"""Put a transform server together from its settings.

Invariant: the server listens only once its plugins are loaded, slow ones apart, and its workers end last.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from xformd.config import Settings
from xformd.counting import CountingService
from xformd.http.application import HttpDependencies, make_application, make_monitoring_application
from xformd.http.connection import HttpFactory
from xformd.http.endpoints import HealthEndpoints
from xformd.http.forwarded import TrustedProxies
from xformd.http.sites import Sites
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.plugins.registry import Registry
from xformd.protocol import TransformFactory
from xformd.server.reload import Reloader
from xformd.telemetry.access_log import AccessLog
from xformd.telemetry.metrics import Front, Metrics
from xformd.telemetry.prometheus import PrometheusExporter, Sources


class Server(ListeningService):
    """A transform server. It answers what it has accepted before it stops."""

    def __init__(
        self,
        reloader: Reloader,
        listen: tuple[str, ...],
        factory: TransformFactory,
        reactor: Any,
        others: Sequence[ListeningService] = (),
        access_log: AccessLog | None = None,
    ) -> None:
        super().__init__(listen, factory, reactor, is_eager=True, flags="--port or --listen")
        self._reloader = reloader
        self._others = others
        self._access_log = access_log
        self.netstring_addresses: tuple[str, ...] = ()

    @property
    def registry(self) -> Registry:
        """The transforms that it has now."""
        return self._reloader.service.registry

    def reload(self) -> Deferred[None]:
        """Read the TLS certificates again, open the access log and load the plugins anew; fires when that is done."""
        if self._access_log is not None:
            self._access_log.reopen()
        for each in (self, *self._others):
            ListeningService.reload(each)
        return self._reloader.reload()

    async def _start(self) -> tuple[str, ...]:
        await self._reloader.start()
        if self._reloader.is_stopping:
            return ()
        if self._access_log is not None:
            self._access_log.start()
        shown = self.netstring_addresses = await super()._start()
        for other in self._others:
            other.startService()
            shown += await other.listening
        return shown

    async def _stop(self) -> None:
        try:
            own = Deferred.fromCoroutine(super()._stop())
            await gatherResults([own, *(other.stopService() for other in self._others)])
        finally:
            await self._reloader.stop()
            if self._access_log is not None:
                self._access_log.stop()
                await deferLater(self._reactor, 0)  # for its last report


def make_server(settings: Settings, reactor: Any) -> Server:
    """Put a server together, not started; raise ``ConfigError`` if a setting names something that does not exist."""
    fronts = 1 + bool(settings.http) + bool(settings.metrics)  # each has its own factory
    limits = within_descriptors(settings.limits, workers=settings.worker_count, fronts=fronts)
    settings = attrs.evolve(settings, limits=limits)
    reloader = Reloader(settings, reactor)
    if settings.http or settings.metrics or settings.access_log is not None:
        return _make_counting(settings, reloader, reactor)
    trusts = TrustedProxies(settings.trusted_proxies).trusts
    factory = TransformFactory(reloader.service, settings.limits, reactor, trusts=trusts)
    return Server(reloader, settings.listen, factory, reactor)


def _make_counting(settings: Settings, reloader: Reloader, reactor: Any) -> Server:
    """Make a server that counts its requests, for its metrics or its access log, and answers over HTTP if it should."""
    metrics, service, limits = Metrics(), reloader.service, settings.limits
    warn = partial(reactor.callFromThread, Server.log.warn, "{message}")
    file = settings.access_log
    access_log = None if file is None else AccessLog(file, settings.log_format, warn)
    counting: dict[Front, CountingService] = {
        "classic": CountingService(service, metrics, "classic", access_log),
        "session": CountingService(service, metrics, "session", access_log),
    }
    proxies = TrustedProxies(settings.trusted_proxies)
    more: Any = {"metrics": metrics, "counting": counting, "access_log": access_log, "trusts": proxies.trusts}
    netstrings = TransformFactory(service, limits, reactor, **more)
    factories: dict[str, TransformFactory] = {"netstring": netstrings}
    sources = Sources(
        metrics,
        reloader.status,
        lambda: [(each.name, each.distribution, each.version, each.state) for each in service.registry.plugins],
        lambda: {front: factory.connection_stats for front, factory in factories.items()},
        lambda: access_log.dropped if access_log else 0,
    )
    dependencies = HttpDependencies(
        service=service,
        metrics=metrics,
        limits=limits,
        health=HealthEndpoints(reloader.status, lambda: netstrings.is_stopping),
        render_metrics=PrometheusExporter(sources).render,
        sites=Sites(settings.host_names, settings.cors, is_behind_proxy=bool(settings.trusted_proxies)),
        netstring_address=lambda: " ".join(server.netstring_addresses),
        access_log=access_log,
    )
    for front, make in (("http", make_application), ("metrics", make_monitoring_application)):
        factories[front] = HttpFactory(make(dependencies), metrics, service, limits, reactor, proxies)
    others = [
        ListeningService(
            listen, factories[front], reactor, is_eager=True, setting=front, scheme="http://", alpn=(b"http/1.1",)
        )
        for front, listen in (("http", settings.http), ("metrics", settings.metrics))
    ]
    for other in others:
        other.listening.addCallback(_note_hosts, dependencies.sites)
    server = Server(reloader, settings.listen, netstrings, reactor, others, access_log)
    return server


def _note_hosts(addresses: tuple[str, ...], sites: Sites) -> tuple[str, ...]:
    for address in addresses:
        sites.listens_on(address)
    return addresses
