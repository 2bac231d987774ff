"""The caching proxy: another server's poem, fetched once and kept.

The law: a poem is kept only when it is whole; while it is not there, all who ask wait for one download.
"""

import math
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.cache import BoundedCache, Policy, ReadThrough
from xformd.errors import XformError
from xformd.poems.client import MAX_POEM_BYTES, find_server, get_poem

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0


class CachingProxyService(Service):
    """Has another server's poem: in its cache, or a Deferred away.

    Args:
        upstream: ``HOST:PORT``, a Twisted client endpoint string, or any Twisted client endpoint.
        address: how messages name it; made from ``upstream`` where it is not given.
        ttl_s: for how many seconds a poem is fresh; without end where none are given.
        stale_s: for how many seconds after that it is given while no fresh one can be had.
        max_bytes: the longest poem to accept.
        connect_timeout_s: how long the connection to the upstream may take.
        timeout_s: how long the whole download may take.
        reactor: what it runs on; the running one where none is given.

    Raises:
        ConfigError: the address is invalid.
    """

    log = Logger()

    def __init__(
        self,
        upstream: str | IStreamClientEndpoint,
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
        self._reactor = reactor
        self._endpoint, self._address = find_server(reactor, upstream, address)
        self._max_bytes = max_bytes
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._policy = Policy(ttl_s=ttl_s, stale_s=stale_s)
        self._is_stale = False
        self._poems: ReadThrough[str, bytes] = ReadThrough(
            BoundedCache(max_bytes, self._policy, reactor),
            self._policy,
            reactor,
            size_of=len,
            fell_back=self._fell_back,
        )

    def get_poem(self) -> bytes | Deferred[bytes]:
        """Give the poem.

        Returns:
            The poem itself where it is there, else a Deferred of the caller's own: cancelling it ends this wait
            alone (with Twisted's ``CancelledError``), and the download too when nobody else waits. It fails as that of
            ``xformd.poems.get_poem``.
        """
        return self._poems.get(self._address, self._download)

    def _download(self) -> Deferred[bytes]:
        poem = get_poem(
            self._endpoint,
            address=self._address,
            timeout_s=self._timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            max_bytes=self._max_bytes,
            reactor=self._reactor,
        )
        return poem.addCallback(self._arrived)

    def _arrived(self, poem: bytes) -> bytes:
        if self._is_stale:
            self.log.info("{upstream} answers again", upstream=self._address)
        self._is_stale = False
        return poem

    def _fell_back(self, key: str, failure: Failure, age_s: float) -> None:  # noqa: ARG002 - there is one poem
        if self._is_stale:
            return  # once for an outage: every client that asks would make a line
        self._is_stale = True
        error = failure.value
        self.log.warn(
            "no fresh poem: {reason}; the old one, of {age_s} s ago, is served for {remaining_s} s more",
            reason=f"{error.code}: {error.message}" if isinstance(error, XformError) else failure.getErrorMessage(),
            age_s=round(age_s, 1),
            remaining_s=round(self._policy.lifetime_s - age_s, 1),
        )
