"""The open connections of one server: how many there are, from whom, and whether one more may come.

A peer is an IP address. Clients of a Unix socket have none, and are bounded by ``max_connections`` alone.
"""

from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

import attrs

from xformd.limits import Limits

Connection = TypeVar("Connection")


@attrs.frozen
class ConnectionLimitReached:
    """Why a connection may not come.

    Args:
        kind: which limit it met.
        reason: the same for a person.
    """

    kind: Literal["total", "peer"]
    reason: str


class Connections(Generic[Connection]):
    """Counts connections, and remembers nothing of a peer that has none.

    Args:
        limits: how many there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self._max_total = limits.max_connections
        self._max_per_peer = limits.max_connections_per_peer
        self._peers: dict[Connection, str | None] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Connection]:
        """Give those that are open now, whatever is closed meanwhile."""
        return iter([*self._peers])

    def refusal(self, peer: str | None) -> ConnectionLimitReached | None:
        """Say why one more may not come from this peer; None if it may."""
        if len(self._peers) >= self._max_total:
            return ConnectionLimitReached(
                "total", f"{len(self._peers)} are open; max_connections, or ulimit -n, allows no more"
            )
        if peer is not None and self._max_per_peer is not None and self._counts.get(peer, 0) >= self._max_per_peer:
            return ConnectionLimitReached(
                "peer", f"{self._max_per_peer} are open from {peer}, which is max_connections_per_peer"
            )
        return None

    def add(self, connection: Connection, peer: str | None) -> None:
        """Note that a connection is open."""
        self._peers[connection] = peer
        if peer is not None:
            self._counts[peer] = self._counts.get(peer, 0) + 1

    def discard(self, connection: Connection) -> None:
        """Note that a connection is gone; one that was not there is none of our business."""
        peer = self._peers.pop(connection, None)
        if peer is None:
            return
        self._counts[peer] -= 1
        if not self._counts[peer]:
            del self._counts[peer]
