"""Transforms for the person who runs them, without a server: for ``run``, ``check`` and ``list-transforms``."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs

from xformd.config import Settings
from xformd.plugins.registry import Plugin
from xformd.server.reload import Reloader
from xformd.service import TransformService


@contextlib.asynccontextmanager
async def local_service(
    settings: Settings, report_slow: Callable[[Plugin], object], reactor: Any
) -> AsyncIterator[TransformService]:
    """Load plugins as a server does, and run their transforms in one worker until the block ends.

    Args:
        settings: which plugins to load, and the limits.
        report_slow: called with a plugin that takes long to be loaded.
        reactor: runs the service.

    Yields:
        The service. Its errors tell in full what a transform raised.

    Raises:
        ConfigError: the selection names something that does not exist, or it is strict and a plugin failed.
    """
    nowhere: frozenset[str] = frozenset()  # where transforms run is a server's business
    settings = attrs.evolve(settings, workers=1, inline=nowhere, isolate=nowhere)
    reloader = Reloader(settings, reactor, report_slow=report_slow, is_local=True)
    try:
        await reloader.start()
        yield reloader.service
    finally:
        await reloader.stop()
