"""Keep track of the open connections of a server: how many there may be, which are idle, whose peer has gone.

Invariant: nothing is remembered about a peer without an open connection, and no peer keeps out others that have fewer.
Peers are counted by their IP address, of IPv6 by its /64; clients of a Unix socket have none, and only
``max_connections`` limits them, as it does those of a proxy that is trusted to name its own.
"""

import functools
import itertools
import select
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv6Address, ip_network
from typing import Generic, Literal, Protocol, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xformd.limits import Limits
from xformd.net.plain import read_address
from xformd.telemetry.rate_limited import RateLimitedLog

DISCONNECT_POLL_S = 0.5

EVICTION_CANDIDATES = 8  # how many of the longest idle connections to check for unread input before one is evicted
UNKNOWN = "unknown"  # the share of peers without an address, such as those that a PROXY header does not name

Connection = TypeVar("Connection")


class Watched(Protocol):
    """A connection that may be closed at once, as its peer has gone, or in favour of another while it is idle."""

    def abort(self) -> None:
        """Close now."""

    def has_input(self) -> bool:
        """Whether bytes have arrived that the server has not read yet."""


@attrs.frozen
class ConnectionLimitReached:
    """Why a new connection is refused: which limit was reached, and the same as text for the log."""

    kind: Literal["total", "peer"]
    reason: str


@functools.lru_cache(maxsize=1_024)
def share_of(peer: str | None) -> str:
    """Return whose part of a server a peer takes: its IP address, of IPv6 its /64, which is one customer's."""
    address = read_address(peer or "")
    if isinstance(address, IPv6Address):
        return f"{ip_network((int(address) >> 64 << 64, 64))}"
    return UNKNOWN if address is None else str(address)


class RefusalLog(RateLimitedLog):
    """Logs and counts the connections that a server closes on arrival, or to make room for others."""

    log = Logger()

    def refused(self, kind: str, reason: str, which: str = "new") -> None:
        """Log that a connection was closed: at most one line a second for each kind."""
        self.add(kind, self.log.warn, "closed a {which} connection: {reason}", which=which, reason=reason)


class Connections(Generic[Connection]):
    """The open connections of one server, counted in total and for each peer that is not ``is_uncounted``."""

    def __init__(self, limits: Limits, is_uncounted: Callable[[str], bool] = lambda _: False) -> None:
        self._is_uncounted = is_uncounted
        self.set_limits(limits)
        self._shares: dict[Connection, str | None] = {}
        self._by_share: dict[str, dict[Connection, None]] = {}  # the oldest connection first

    def set_limits(self, limits: Limits) -> None:
        """Hold to these limits from now on; what is open stays."""
        self._max_total = limits.max_connections
        self._max_per_peer = limits.max_connections_per_peer

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over a copy, so that connections may close meanwhile."""
        return iter([*self._shares])

    def limit_reached(self, peer: str | None) -> ConnectionLimitReached | None:
        """Return the limit that forbids one more connection from this peer, or None."""
        share = self._share(peer)
        if self._max_per_peer is not None and len(self._of_share(share)) >= self._max_per_peer:
            reason = f"{self._max_per_peer} are open from {share}, which is max_connections_per_peer"
            return ConnectionLimitReached("peer", reason)
        if len(self._shares) >= self._max_total:
            reason = f"{len(self._shares)} are open; max_connections, or ulimit -n, allows no more"
            return ConnectionLimitReached("total", reason)
        return None

    def _share(self, peer: str | None) -> str | None:
        return None if peer is None or self._is_uncounted(peer) else share_of(peer)

    def _of_share(self, share: str | None) -> Collection[Connection]:
        return self._by_share.get(share or "", ())

    def to_evict(self, peer: str | None) -> Collection[Connection]:
        """Return the connections of the share with the most, oldest first; none if the peer's would have as many."""
        most: Collection[Connection] = max(self._by_share.values(), key=len, default=())
        return most if len(most) > len(self._of_share(self._share(peer))) + 1 else ()

    def to_evict_idle(self, peer: str | None) -> Collection[Connection]:
        """Return where to look for an idle one: in the share with the most, else in its own, else among all."""
        return self.to_evict(peer) or self._of_share(self._share(peer)) or self._shares

    def add(self, connection: Connection, peer: str | None) -> None:
        """Count a connection that has opened."""
        share = self._shares[connection] = self._share(peer)
        if share is not None:
            self._by_share.setdefault(share, {})[connection] = None

    def discard(self, connection: Connection) -> None:
        """Stop counting a connection, if it is counted."""
        share = self._shares.pop(connection, None)
        if share is None:
            return
        del self._by_share[share][connection]
        if not self._by_share[share]:
            del self._by_share[share]


class IdleConnections(OrderedDict[Watched, None]):
    """The connections without a whole request, longest idle first: evicted when a new one needs the room.

    Otherwise a client that opens connections and sends little would keep the others out. The longer a connection has
    been without a request, the less it is worth. Each request takes its connection out and puts it back, which leaves
    gaps at the front of a plain dict: looking for the oldest would go through all of them.
    """

    def evict(self, among: Collection[object]) -> bool:
        """Close the connection among some that has been idle the longest, and return whether there was one.

        One with unread input is spared where possible: on a busy server, that may be a request that just arrived.
        """
        oldest = [*itertools.islice((each for each in self if each in among), EVICTION_CANDIDATES)]
        without_input = (connection for connection in oldest if not connection.has_input())
        chosen = next(without_input, oldest[0] if oldest else None)
        if chosen is None:
            return False
        del self[chosen]
        chosen.abort()
        return True


class DisconnectWatcher:
    """Aborts connections whose peer has gone while the server does not read from them.

    The reactor does not watch what is not read, so the server would go on working for a client that has left, to the
    last answer. All such sockets are polled in one call, every ``DISCONNECT_POLL_S`` while there are any, for the end
    of both directions (a reset, say) and nothing else.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._watched: dict[Watched, int] = {}
        self._is_running = False

    def watch(self, connection: Watched, descriptor: int) -> None:
        """Abort a connection once its peer has gone; the descriptor is its socket's."""
        self._watched[connection] = descriptor
        if not self._is_running:
            self._is_running = True
            self._clock.callLater(DISCONNECT_POLL_S, self._poll)

    def forget(self, connection: Watched) -> None:
        """Stop watching a connection, if it is watched."""
        self._watched.pop(connection, None)

    def _poll(self) -> None:
        self._is_running = bool(self._watched)
        if not self._is_running:
            return
        connections = {descriptor: connection for connection, descriptor in self._watched.items()}
        poll = select.poll()
        for descriptor in connections:
            poll.register(descriptor, 0)  # hang-ups and errors are reported all the same
        for descriptor, _ in poll.poll(0):
            self.forget(connections[descriptor])
            connections[descriptor].abort()
        self._clock.callLater(DISCONNECT_POLL_S, self._poll)
