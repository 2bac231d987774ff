"""The composition root: settings in, a Twisted service out that listens, answers and stops in good order."""

from typing import Any

from twisted.internet.defer import Deferred

from xformd.config import Settings
from xformd.factory import TransformFactory
from xformd.generations import Generations
from xformd.listening import Listening
from xformd.plugins.registry import Registry


class Server(Listening):
    """A transform server. Stopping it answers what has been accepted first.

    Args:
        generations: which transforms it has, and their workers.
        listen: the endpoints to listen on.
        factory: makes its connections.
        reactor: what it runs on.
    """

    def __init__(
        self, generations: Generations, listen: tuple[str, ...], factory: TransformFactory, reactor: Any
    ) -> None:
        super().__init__(listen, factory, reactor, is_prompt=True)
        self._generations = generations

    @property
    def registry(self) -> Registry:
        """Which transforms it has now."""
        return self._generations.service.registry

    def reload(self) -> Deferred[None]:
        """Load the plugins anew; fires when that is done, or given up."""
        return self._generations.reload()

    async def _start(self) -> tuple[str, ...]:
        shown = await super()._start()
        self._generations.start()
        return shown

    async def _stop(self) -> None:
        try:
            await super()._stop()
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
    generations = Generations(settings, reactor)
    factory = TransformFactory(generations.service, settings.limits, reactor)
    return Server(generations, settings.listen, factory, reactor)
