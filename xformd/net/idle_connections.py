"""Which HTTP connections may be ended to make room for another one.

Who opens connections and says little must not keep others out. A connection that has no whole request is worth
nothing yet, and the longer it has none, the less.
"""

import itertools
from collections import OrderedDict
from typing import Protocol

LOOKED_AT = 8
"""So many are asked whether a request waits in their sockets: on a busy server one may, of a client that is well."""


class Evictable(Protocol):
    """A connection."""

    def has_input(self) -> bool:
        """Whether something has arrived that nobody has read yet."""
        ...

    def abort(self) -> None:
        """Close now."""
        ...


class IdleConnections:
    """Remembers the connections that have nothing to do, the longest idle first."""

    def __init__(self) -> None:
        self._idle: OrderedDict[Evictable, None] = OrderedDict()

    def idle(self, connection: Evictable) -> None:
        """Note that a connection has nothing to do from now on."""
        self._idle[connection] = None

    def busy(self, connection: Evictable) -> None:
        """Note that a connection has a whole request, or is gone."""
        self._idle.pop(connection, None)

    def make_room(self) -> bool:
        """End the connection that has been idle the longest, rather one that has sent nothing just now.

        Returns:
            Whether there was one.
        """
        oldest = [*itertools.islice(self._idle, LOOKED_AT)]
        silent = (connection for connection in oldest if not connection.has_input())
        chosen = next(silent, oldest[0] if oldest else None)
        if chosen is None:
            return False
        del self._idle[chosen]
        chosen.abort()
        return True
