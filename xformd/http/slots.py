"""Which HTTP connections may be ended to make room for another one.

Who opens connections and says little must not keep others out. A connection that has no whole request is worth
nothing yet, and the longer it has none, the less.
"""

from typing import Protocol


class Abortable(Protocol):
    """A connection."""

    def abort(self) -> None:
        """Close now."""
        ...


class Slots:
    """Remembers the connections that have nothing to do, the longest idle first."""

    def __init__(self) -> None:
        self._idle: dict[Abortable, None] = {}

    def idle(self, connection: Abortable) -> None:
        """Note that a connection has nothing to do from now on."""
        self._idle[connection] = None

    def busy(self, connection: Abortable) -> None:
        """Note that a connection has a whole request, or is gone."""
        self._idle.pop(connection, None)

    def make_room(self) -> bool:
        """End the connection that has been idle the longest.

        Returns:
            Whether there was one.
        """
        for connection in self._idle:
            del self._idle[connection]
            connection.abort()
            return True
        return False
