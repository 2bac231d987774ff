"""The caching poem proxy: another server's poem, downloaded once and kept.

Invariant: only a whole poem is kept, and all requests that find none share one download.
"""

import math
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.cache import ReadThrough
from xformd.errors import XformError
from xformd.poems.client import MAX_POEM_BYTES, find_server, get_poem

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0


class CachingProxyService(Service):
    """Returns another server's poem, from its cache or by downloading it.

    Args:
        upstream: ``HOST:PORT``, a port on 127.0.0.1, a Twisted client endpoint string, or any Twisted client endpoint.
        address: its name in messages; by default, as given in ``upstream``.
        ttl_s: how many seconds a poem is fresh.
        stale_s: how many seconds after that it is served if no fresh one can be fetched.
        max_bytes: the longest poem to accept.
        connect_timeout_s: how long connecting to the upstream may take.
        timeout_s: how long the whole download may take.
        reactor: the reactor; the global one if None.

    Raises:
        ConfigError: the address is invalid.
    """

    log = Logger()

    def __init__(
        self,
        upstream: str | int | IStreamClientEndpoint,
        *,
        address: str | None = None,
        ttl_s: float = math.inf,
        stale_s: float = 0.0,
        max_bytes: int = MAX_POEM_BYTES,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = TIMEOUT_S,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        endpoint, self._address = find_server(reactor, upstream, address)
        bounds: Any = {"timeout_s": timeout_s, "connect_timeout_s": connect_timeout_s, "max_bytes": max_bytes}
        self._download = partial(get_poem, endpoint, address=self._address, reactor=reactor, **bounds)
        self._lifetime_s = ttl_s + stale_s
        self._is_stale = False
        self._poems: ReadThrough[str, bytes] = ReadThrough(
            max_bytes, reactor, size_of=len, ttl_s=ttl_s, stale_s=stale_s, fell_back=self._fell_back
        )

    def get_poem(self) -> bytes | Deferred[bytes]:
        """Return the poem if it is cached, else a new Deferred of it.

        Cancelling the Deferred ends this wait alone (with Twisted's ``CancelledError``), and the download too if
        nobody else waits for it. It fails as that of ``xformd.poems.get_poem`` does.
        """
        return self._poems.get(self._address, lambda: self._download().addCallback(self._note_arrived))

    def _note_arrived(self, poem: bytes) -> bytes:
        if self._is_stale:
            self.log.info("{upstream} answers again", upstream=self._address)
        self._is_stale = False
        return poem

    def _fell_back(self, failure: Failure, age_s: float) -> None:
        if self._is_stale:
            return  # one line for an outage, not one for each client
        self._is_stale = True
        error = failure.value
        self.log.warn(
            "no fresh poem: {reason}; the old one, {age_s} s old, is served for another {remaining_s} s",
            reason=f"{error.code}: {error.message}" if isinstance(error, XformError) else failure.getErrorMessage(),
            age_s=round(age_s, 1),
            remaining_s=round(self._lifetime_s - age_s, 1),
        )
