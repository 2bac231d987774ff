"""The composition root of the poem servers: what an operator wants in, a Twisted service out."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xformd import spec
from xformd.client import TransformProxy
from xformd.limits import Limits
from xformd.net.listener import ListeningService
from xformd.net.run import make_room
from xformd.poems.client import get_poem
from xformd.poems.delivery import Delivery, Write
from xformd.poems.gather import Gathering
from xformd.poems.progress import Progress
from xformd.poems.proxy import CachingProxyService
from xformd.poems.server import PoemFactory, PoemService, PoemSource

log = Logger()

LONGEST_DELAY_S = 1.0
"""How long a poem waits, at most, before it is tried again to reach a transform server: the original is at hand."""


def make_poem_server(
    poem: Path, listen: tuple[str, ...], reactor: Any, *, bytes_per_s: float | None = None
) -> ListeningService:
    """Put a poem server together.

    Args:
        poem: the poem's file.
        listen: the endpoints to listen on.
        reactor: what it runs on.
        bytes_per_s: how fast to send the poem to each client; as fast as it goes where no number is given.

    Returns:
        A Twisted service: it does nothing until it is started.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _listening(PoemService(poem), listen, reactor, bytes_per_s)


def make_poem_proxy(upstream: str, listen: tuple[str, ...], reactor: Any, **options: Any) -> ListeningService:
    """Put a caching poem proxy together.

    Args:
        upstream: the address of the server whose poem it is.
        listen: the endpoints to listen on.
        reactor: what it runs on.
        **options: of ``CachingProxyService``.

    Returns:
        A Twisted service: it does nothing until it is started.

    Raises:
        ConfigError: the address is invalid.
    """
    return _listening(CachingProxyService(upstream, reactor=reactor, **options), listen, reactor, None)


@attrs.frozen(kw_only=True)
class Wanted:
    """Poems that somebody wants.

    Args:
        addresses: of their servers.
        spec: the transform that each goes through; None for none.
        via: the addresses of the transform servers.
        timeout_s: how long to wait for each whole poem, and then for its transform.
        max_bytes: the longest poem to accept.
        ordered: whether they are delivered in the order of the addresses.
    """

    addresses: tuple[str, ...]
    spec: str | None
    via: tuple[str, ...]
    timeout_s: float
    max_bytes: int
    ordered: bool


async def get_poems(wanted: Wanted, write: Write, say: Callable[[str], None]) -> int:
    """Get poems from several servers at once.

    Args:
        wanted: which, and how.
        write: takes an address and its poem; may block, and raise ``OSError``.
        say: is told, on one line, of what goes wrong.

    Returns:
        The exit status: 0 if all came, 1 if some did, that of the first failure if none did.

    Raises:
        BadRequest: the transform is none.
        ConfigError: the address of a transform server is none.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    make_room(len(wanted.addresses), 0)
    progress = Progress(sys.stderr if sys.stderr and sys.stderr.isatty() else None, reactor.seconds)
    delivery = Delivery(write, say, progress, reactor)
    transform = None if wanted.spec is None else make_transform(wanted.spec, wanted, reactor)

    def fetch(address: str) -> Deferred[bytes]:
        return get_poem(
            address,
            timeout_s=wanted.timeout_s,
            max_bytes=wanted.max_bytes,
            progressed=lambda received: progress.says(address, f"{received:,} bytes"),
            reactor=reactor,
        )

    gathering = Gathering(
        fetch=fetch,
        transform=transform,
        transform_name=wanted.spec or "",
        deliver=delivery.deliver,
        complain=lambda reason: delivery.complain(f"xformd: {reason}"),
        watcher=progress,
        ordered=wanted.ordered,
    )
    return await gathering.run(wanted.addresses)


def make_transform(text: str, wanted: Wanted, reactor: Any) -> Callable[[bytes], Deferred[bytes]]:
    """Give what sends a poem to the transform servers.

    Args:
        text: the transform.
        wanted: the servers, and how long to wait for each poem.
        reactor: what connects.

    Raises:
        BadRequest: the transform is none.
        ConfigError: an address is none.
    """
    built = str(spec.build(text, {}))  # so that a spec that is none is said before anything is fetched
    proxy = TransformProxy(wanted.via, reactor=reactor, longest_delay_s=LONGEST_DELAY_S)
    return lambda poem: proxy.xform(built, poem, timeout=wanted.timeout_s)


def _listening(
    source: PoemSource, listen: tuple[str, ...], reactor: Any, bytes_per_s: float | None
) -> ListeningService:
    factory = PoemFactory(source, reactor, bytes_per_s=bytes_per_s, max_connections=_room())
    return ListeningService(listen, factory, reactor)


def _room() -> int:
    """Make room for as many connections as there may be, and say how many there is room for."""
    wanted = Limits().max_connections
    room = make_room(wanted, 0)
    if room.connections < wanted:
        log.warn(
            "ulimit -n is {limit} and has room for {room} clients; raise it for more",
            limit=room.limit,
            room=room.connections,
        )
    return room.connections
