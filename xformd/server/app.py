"""The composition root: settings in, a Twisted service out that listens, answers and stops in good order."""

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
    """A transform server. Stopping it answers what has been accepted first.

    Args:
        generations: which transforms it has, and their workers.
        listen: the endpoints to listen on.
        factory: makes its connections.
        reactor: what it runs on.
        others: where else it is answered, over HTTP.
    """

    def __init__(
        self,
        generations: Reloader,
        listen: tuple[str, ...],
        factory: TransformFactory,
        reactor: Any,
        others: Sequence[ListeningService] = (),
    ) -> None:
        super().__init__(listen, factory, reactor, is_eager=True)
        self._generations = generations
        self._others = others

    @property
    def registry(self) -> Registry:
        """Which transforms it has now."""
        return self._generations.service.registry

    def reload(self) -> Deferred[None]:
        """Load the plugins anew; fires when that is done, or given up."""
        return self._generations.reload()

    async def _start(self) -> tuple[str, ...]:
        shown = await super()._start()
        for other in self._others:
            other.startService()
            shown += await other.listening
        self._generations.start()
        return shown

    async def _stop(self) -> None:
        try:
            own = Deferred.fromCoroutine(super()._stop())
            await gatherResults([own, *(other.stopService() for other in self._others)])
        finally:
            await self._generations.stop()


def make_server(settings: Settings, reactor: Any) -> Server:
    """Load the plugins and put a server together.

    Args:
        settings: what the operator wants.
        reactor: what it runs on.

    Returns:
        A Twisted service: it does nothing until it is started.

    Raises:
        ConfigError: the settings name something that is not there.
    """
    ports = 1 + settings.answers_http
    limits = within_descriptors(settings.limits, workers=settings.worker_count, ports=ports)
    settings = attrs.evolve(settings, limits=limits)
    generations = Reloader(settings, reactor)
    if settings.answers_http:
        return _make_with_http(settings, generations, reactor)
    factory = TransformFactory(generations.service, settings.limits, reactor)
    return Server(generations, settings.listen, factory, reactor)


def _make_with_http(settings: Settings, generations: Reloader, reactor: Any) -> Server:
    """Put together a server that counts what it does, and answers HTTP too."""
    setting = "http" if settings.http else "metrics"
    if not _runs_asyncio(reactor):
        advice = "twistd --reactor=asyncio xformd ..., or xformd serve"
        raise ConfigError(f"HTTP needs a reactor on which asyncio runs: {advice}", setting=setting)
    try:
        from xformd.server.fronts import make_fronts
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'xformd[http]'", setting=setting) from None
    metrics, service = Metrics(), generations.service
    counting: dict[Front, CountingService] = {
        "classic": CountingService(service, metrics, "classic"),
        "session": CountingService(service, metrics, "session"),
    }
    factory = TransformFactory(service, settings.limits, reactor, metrics=metrics, counting=counting)
    others = make_fronts(settings, generations, factory, metrics, reactor)
    return Server(generations, settings.listen, factory, reactor, others)


def _runs_asyncio(reactor: Any) -> bool:
    """Say whether asyncio's tasks run where this reactor turns. What only stands in for one is taken at its word."""
    return getattr(reactor, "runs_asyncio", False) or not isinstance(reactor, ReactorBase) or _is_asyncio_s(reactor)


def _is_asyncio_s(reactor: Any) -> bool:
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor

    return isinstance(reactor, AsyncioSelectorReactor)
