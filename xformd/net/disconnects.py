"""Finds out that a peer is gone while its connection is not read.

What is not read is not watched by the reactor, and who has gone would be worked for until the last answer. So the
sockets of such connections are looked at, all in one call, twice a second for as long as there are any.
"""

import select
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

PERIOD_S = 0.5


class Abortable(Protocol):
    """A connection."""

    def abort(self) -> None:
        """Close now."""
        ...


class DisconnectWatcher:
    """Watches sockets for an end of both directions, such as a reset, and for nothing else.

    Args:
        clock: a reactor, or a clock in its place.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._watched: dict[Abortable, int] = {}
        self._is_running = False

    def watch(self, connection: Abortable, descriptor: int) -> None:
        """Abort a connection once its peer is gone for good.

        Args:
            connection: which.
            descriptor: of its socket.
        """
        self._watched[connection] = descriptor
        if not self._is_running:
            self._is_running = True
            self._clock.callLater(PERIOD_S, self._look)

    def forget(self, connection: Abortable) -> None:
        """Watch a connection no longer; one that is not watched is none of our business."""
        self._watched.pop(connection, None)

    def _look(self) -> None:
        self._is_running = bool(self._watched)
        if not self._is_running:
            return
        connections = {descriptor: connection for connection, descriptor in self._watched.items()}
        poll = select.poll()
        for descriptor in connections:
            poll.register(descriptor, 0)  # which still tells of an end
        for descriptor, _ in poll.poll(0):
            self.forget(connections[descriptor])
            connections[descriptor].abort()
        self._clock.callLater(PERIOD_S, self._look)
