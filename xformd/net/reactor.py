"""Twisted's epoll reactor without its cost for each event, on the monotonic clock.

Twisted builds a log context for each event, which ``twisted.python.log`` shows as *system* and nothing here uses: a
tenth of a small request's CPU. And its clock is the time of day, so setting it back or forth would move every
deadline. Invariant: whatever one event raises, the others of its turn are handled.
"""

import sys
import time

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger


class MonotonicEPollReactor(EPollReactor):
    """Handles the events of a turn one after the other, with nothing around each."""

    log = Logger()
    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events for up to ``timeout`` seconds, and handle them."""
        events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if selectable is None:  # closed by an earlier event of this turn
                continue
            try:
                self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
            except Exception:
                self.log.failure("a connection failed while it was closed")

    doIteration = doPoll


def install() -> bool:
    """Install the reactor; return False if the process already has one."""
    if "twisted.internet.reactor" in sys.modules:
        return False
    installReactor(MonotonicEPollReactor())  # type: ignore[no-untyped-call]
    return True
