"""Twisted's epoll reactor without the log context that it builds for each event, a tenth of a small request's cost.

That context is what ``twisted.python.log`` shows as *system*; nothing here logs that way. Its time is not that of the
day, which may be set back or forth, but one that only goes on. All else is Twisted's own.
"""

import sys
import time

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger


class MonotonicEPollReactor(EPollReactor):
    """Handles the events of a turn one after the other, each with nothing around it."""

    log = Logger()
    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, not longer than so many seconds, and handle them."""
        events = self._poller.poll(-1 if timeout is None else timeout, len(self._selectables))
        for descriptor, event in events:
            selectable = self._selectables.get(descriptor)
            if selectable is None:  # one of the events before has ended it
                continue
            try:
                self._doReadOrWrite(selectable, descriptor, event)  # type: ignore[no-untyped-call]
            except Exception:
                self.log.failure("a connection failed while it ended")

    doIteration = doPoll


def install() -> bool:
    """Install it, unless the process has a reactor already.

    Returns:
        Whether it did.
    """
    if "twisted.internet.reactor" in sys.modules:
        return False
    installReactor(MonotonicEPollReactor())  # type: ignore[no-untyped-call]
    return True
