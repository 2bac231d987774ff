"""Put a transform server together from its settings.

Invariant: the server listens only once everything that it needs is there, and its workers end last.
"""

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults

from xformd.config import Settings
from xformd.counting import CountingService
from xformd.errors import ConfigError
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.plugins.registry import Registry
from xformd.protocol import TransformFactory
from xformd.server.reload import Reloader
from xformd.telemetry.metrics import Front, Metrics


class Server(ListeningService):
    """A transform server. It answers what it has accepted before it stops."""

    def __init__(
        self,
        reloader: Reloader,
        listen: tuple[str, ...],
        factory: TransformFactory,
        reactor: Any,
        others: Sequence[ListeningService] = (),
    ) -> None:
        super().__init__(listen, factory, reactor, is_eager=True, flags="--port or --listen")
        self._reloader = reloader
        self._others = others

    @property
    def registry(self) -> Registry:
        """The transforms that it has now."""
        return self._reloader.service.registry

    def reload(self) -> Deferred[None]:
        """Read the TLS certificates again, and load the plugins anew; fires when that is done or has failed."""
        for each in (self, *self._others):
            each.read_certificates()
        return self._reloader.reload()

    async def _start(self) -> tuple[str, ...]:
        shown = await super()._start()
        for other in self._others:
            other.startService()
            shown += await other.listening
        self._reloader.start()
        return shown

    async def _stop(self) -> None:
        try:
            own = Deferred.fromCoroutine(super()._stop())
            await gatherResults([own, *(other.stopService() for other in self._others)])
        finally:
            await self._reloader.stop()


def make_server(settings: Settings, reactor: Any) -> Server:
    """Load the plugins and put a server together, not started.

    Raises:
        ConfigError: a setting names something that does not exist.
    """
    ports = 1 + settings.answers_http
    limits = within_descriptors(settings.limits, workers=settings.worker_count, ports=ports)
    settings = attrs.evolve(settings, limits=limits)
    reloader = Reloader(settings, reactor)
    if settings.answers_http:
        return _make_with_http(settings, reloader, reactor)
    factory = TransformFactory(reloader.service, settings.limits, reactor)
    return Server(reloader, settings.listen, factory, reactor)


def _make_with_http(settings: Settings, reloader: Reloader, reactor: Any) -> Server:
    """Make a server that counts its requests and answers over HTTP too."""
    setting = "http" if settings.http else "metrics"
    if not _runs_asyncio(reactor):
        advice = "twistd --reactor=asyncio xformd ..., or xformd serve"
        raise ConfigError(f"HTTP needs a reactor on which asyncio runs: {advice}", setting=setting)
    metrics, service = Metrics(), reloader.service
    counting: dict[Front, CountingService] = {
        "classic": CountingService(service, metrics, "classic"),
        "session": CountingService(service, metrics, "session"),
    }
    netstrings = TransformFactory(service, settings.limits, reactor, metrics=metrics, counting=counting)
    try:
        others = _make_http_listeners(settings, reloader, netstrings, metrics, reactor)
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'xformd[http]'", setting=setting) from None
    return Server(reloader, settings.listen, netstrings, reactor, others)


def _make_http_listeners(
    settings: Settings, reloader: Reloader, netstrings: TransformFactory, metrics: Metrics, reactor: Any
) -> list[ListeningService]:
    # Imported here: they need what the extra "http" installs.
    from xformd.http.application import HttpDependencies, make_application, make_monitoring_application
    from xformd.http.connection import HttpFactory
    from xformd.http.endpoints import HealthEndpoints
    from xformd.telemetry.prometheus import PrometheusExporter, Sources

    service, limits = reloader.service, settings.limits
    factories: dict[str, TransformFactory] = {"netstring": netstrings}
    sources = Sources(
        metrics,
        reloader.status,
        lambda: [(each.name, each.distribution, each.version, each.state) for each in service.registry.plugins],
        lambda: {front: factory.connection_stats for front, factory in factories.items()},
    )
    dependencies = HttpDependencies(
        service=service,
        metrics=metrics,
        limits=limits,
        health=HealthEndpoints(reloader.status, lambda: netstrings.is_stopping),
        render_metrics=PrometheusExporter(sources).render,
        origins=settings.cors,
    )
    factories["http"] = HttpFactory(make_application(dependencies), metrics, service, limits, reactor)
    factories["metrics"] = HttpFactory(make_monitoring_application(dependencies), metrics, service, limits, reactor)
    return [
        ListeningService(
            listen, factories[front], reactor, is_eager=True, setting=front, scheme="http://", alpn=(b"http/1.1",)
        )
        for front, listen in (("http", settings.http), ("metrics", settings.metrics))
    ]


def _runs_asyncio(reactor: Any) -> bool:
    """Whether asyncio tasks run beside this reactor. A test's stand-in for a reactor counts as one that can."""
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    can_run = getattr(reactor, "runs_asyncio", False) or isinstance(reactor, AsyncioSelectorReactor)
    return can_run or not isinstance(reactor, ReactorBase)
