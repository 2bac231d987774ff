"""Puts poem servers and poem proxies together: an operator's options in, a Twisted service out."""

from pathlib import Path
from typing import Any

from xformd.limits import Limits
from xformd.net.listener import ListeningService
from xformd.net.run import within_descriptors
from xformd.poems.proxy import CachingProxyService
from xformd.poems.server import PoemFactory, PoemService, PoemSource


def make_poem_server(
    poem: Path, listen: tuple[str, ...], reactor: Any, *, bytes_per_s: float | None = None
) -> ListeningService:
    """Put a poem server together, not started; raise ``ConfigError`` if the file cannot be read."""
    return _listening(PoemService(poem), listen, reactor, bytes_per_s)


def make_poem_proxy(upstream: str, listen: tuple[str, ...], reactor: Any, **options: Any) -> ListeningService:
    """Put a caching poem proxy together, not started; the options are those of ``CachingProxyService``."""
    return _listening(CachingProxyService(upstream, reactor=reactor, **options), listen, reactor, None)


def _listening(
    source: PoemSource, listen: tuple[str, ...], reactor: Any, bytes_per_s: float | None
) -> ListeningService:
    allowed = within_descriptors(Limits(), workers=0).max_connections
    factory = PoemFactory(source, reactor, bytes_per_s=bytes_per_s, max_connections=allowed)
    return ListeningService(listen, factory, reactor, flags="--port or --listen")
