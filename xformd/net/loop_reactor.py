"""The prompt reactor on an asyncio loop, so that Twisted's connections and asyncio's tasks share one thread.

The reactor keeps its own epoll, which asyncio's watches as it watches a socket: many connections that are ready are
one event of the loop and one turn of the reactor, and cost what they cost without asyncio.
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.main import installReactor
from twisted.internet.process import reapAllProcesses

from xformd.net.reactor import MonotonicEPollReactor


class LoopReactor(MonotonicEPollReactor):
    """Turns whenever the loop has something for it.

    Args:
        loop: what to run on.
    """

    runs_asyncio = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._alarm: asyncio.TimerHandle | None = None
        self._is_turning = False
        super().__init__()  # type: ignore[no-untyped-call]

    def mainLoop(self) -> None:
        """Run until the reactor is stopped."""
        loop = self._loop
        loop.add_reader(self._poller.fileno(), self._turn)
        # Loops take the file that Python writes signals to for themselves, and Twisted would not hear of children.
        loop.add_signal_handler(signal.SIGCHLD, reapAllProcesses)
        loop.call_soon(self._turn)
        try:
            loop.run_forever()
        finally:
            loop.remove_reader(self._poller.fileno())
            loop.run_until_complete(loop.shutdown_asyncgens())

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kw: object) -> DelayedCall:  # noqa: A002 - Twisted's name
        """Call something later, as Twisted's own does."""
        call = super().callLater(delay, callable, *args, **kw)
        self._set_alarm()
        return call

    def stop(self) -> None:
        """Stop in a turn that comes soon: whoever asks may be a task, and no turn of the reactor."""
        super().stop()
        self._loop.call_soon(self._turn)

    def crash(self) -> None:
        """End the loop, whoever had the last of what the reactor waited for."""
        super().crash()
        self._loop.stop()

    def _moveCallLaterSooner(self, call: DelayedCall) -> None:  # noqa: N802 - Twisted's name
        super()._moveCallLaterSooner(call)
        self._set_alarm()

    def _turn(self) -> None:
        self._is_turning = True
        try:
            self.runUntilCurrent()
            self.doPoll(0)
        except Exception:
            self.log.failure("a turn of the reactor failed")
        self._is_turning = False
        if self._started:
            self._set_alarm()

    def _set_alarm(self) -> None:
        """See that the loop wakes the reactor when its next delayed call is due."""
        if self._is_turning:  # its end does this once for all
            return
        wait_s = self.timeout()
        if wait_s is None:
            return
        due = self._loop.time() + wait_s
        if self._alarm is not None:
            if self._alarm.when() <= due:  # then it finds out that it was too early
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._turn()


def install() -> bool:
    """Install it on a new loop, unless the process has a reactor already.

    Returns:
        Whether it did.
    """
    if "twisted.internet.reactor" in sys.modules:
        return False
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    installReactor(LoopReactor(loop))
    return True
