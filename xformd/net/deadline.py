"""Deadlines: for a connection, cheap enough to move on every read; for a Deferred; their clock.

Invariant: a Deferred from ``within`` fires by its deadline, whatever the work behind it does.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Cancelled, XformError
from xformd.telemetry.tracebacks import SafeTraceback

Result = TypeVar("Result")

log = Logger()


class Deadline:
    """Calls ``expire`` when time is up, unless the deadline is moved or cleared before.

    Moving it later touches no timer: the running one finds out, when it fires, that it was too early.
    """

    def __init__(self, clock: IReactorTime, expire: Callable[[], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._at: float | None = None
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0

    def set(self, seconds: float) -> None:
        """Set the deadline, so many seconds from now."""
        now = self._clock.seconds()
        self._at = at = now + seconds
        if self._timer is not None and self._timer_at > at:
            self._timer.cancel()  # to move it nearer would search the reactor's list of all timers
            self._timer = None
        if self._timer is None:
            self._start(now, seconds)

    def clear(self) -> None:
        """Remove the deadline; ``set`` starts a new one."""
        self._at = None

    def close(self) -> None:
        """Clear the deadline for good, and cancel its timer."""
        self._at = None
        self._expire = lambda: None  # breaks the cycle with the connection, which is then freed without the collector
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_set(self) -> bool:
        """Whether there is a deadline."""
        return self._at is not None

    def _fire(self) -> None:
        self._timer = None
        if self._at is None:
            return
        now = self._clock.seconds()
        remaining = self._at - now
        if remaining > 0:
            self._start(now, remaining)
        else:
            self._at = None
            self._expire()

    def _start(self, now: float, seconds: float) -> None:
        self._timer = self._clock.callLater(seconds, self._fire)
        self._timer_at = now + seconds


def cancel(*timers: IDelayedCall | None) -> None:
    """Cancel those timers that have not fired."""
    for timer in timers:
        if timer is not None and timer.active():
            timer.cancel()


def use_monotonic_clock(reactor: Any) -> None:
    """Put a reactor on the monotonic clock: Twisted's own is that of the day, and setting it moves every deadline."""
    ahead_s = time.monotonic() - reactor.seconds()
    reactor.seconds = time.monotonic
    for call in (*reactor._pendingTimedCalls, *reactor._newTimedCalls):
        call.time += ahead_s
        call.seconds = time.monotonic


def within(
    clock: IReactorTime, seconds: float, name: str, work: Deferred[Result], expired: Callable[[], XformError]
) -> Deferred[Result]:
    """Put a deadline on the work of the transform ``name``, and return a Deferred of its outcome.

    That fails with what ``expired`` makes when time is up, or with ``Cancelled``. In both cases the work is cancelled,
    and its outcome is ignored from then on.
    """

    def settle(result: Result | Failure) -> None:
        cancel(timer)
        if not outcome.called:
            outcome.callback(result)

    def give_up(make_error: Callable[[], XformError]) -> None:
        settle(Failure(make_error()))
        try:
            work.cancel()
        except Exception as error:  # the canceller may be a plugin's
            raised = SafeTraceback.redacted(error)
            message = "transform {transform} failed to be cancelled\n{traceback}"
            log.error(message, transform=name, **raised.log_fields())

    outcome: Deferred[Result] = Deferred(lambda _: give_up(lambda: Cancelled(f"{name} was given up")))
    timer = clock.callLater(max(0.0, seconds), give_up, expired)
    work.addBoth(settle)
    return outcome
