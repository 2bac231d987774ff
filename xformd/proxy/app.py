"""Puts a caching proxy for transforms together: an operator's options in, a Twisted service out."""

from typing import Any

from xformd.limits import Limits
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.protocol import TransformFactory
from xformd.proxy import CachingTransformService


class ProxyServer(ListeningService):
    """A caching proxy for transforms. It answers what it has accepted before it stops."""

    def __init__(self, service: CachingTransformService, listen: tuple[str, ...], limits: Limits, reactor: Any) -> None:
        factory = TransformFactory(service, limits, reactor)
        super().__init__(listen, factory, reactor, is_eager=True, flags="--port or --listen")
        self._service = service

    async def _start(self) -> tuple[str, ...]:
        await self._service.start()
        return await super()._start() if self.running else ()

    async def _stop(self) -> None:
        await super()._stop()
        await self._service.close()


def make_proxy(
    upstreams: tuple[str, ...], listen: tuple[str, ...], limits: Limits, reactor: Any, **options: Any
) -> ProxyServer:
    """Put a caching proxy together, not started; raise ``ConfigError`` if an address is invalid."""
    limits = within_descriptors(limits, workers=0)
    return ProxyServer(CachingTransformService(upstreams, limits, reactor, **options), listen, limits, reactor)
