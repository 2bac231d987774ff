"""Divide the reactor's time between shares: each has ``TURN_S`` in a round, on however many connections it asks.

A round is one turn of the reactor's loop. Invariant: whatever waits goes on in the next round in which its share still
has time; within a share, in the order in which it came.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

TURN_S = 0.01  # how long one share may keep the reactor before the others get their turn
MAX_COUNTED = 1_000  # how many shares are counted before a new round begins, also where none has used much


Value = TypeVar("Value")


class Turns:
    """The shares' time in this round. What runs for a share reports with ``used`` how long it took."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.over: set[str] = set()  # shares that have had their time, or of which something waits already
        self._used: dict[str, float] = {}
        self._waiting: dict[str, OrderedDict[object, Callable[[], None]]] = {}
        self._is_ending = False  # the round; an idle server, and one with short rounds, needs no timer

    def used(self, share: str, seconds: float) -> None:
        """Count time that something has run for a share."""
        total_s = self._used[share] = self._used.get(share, 0.0) + seconds
        if total_s > TURN_S:
            self.over.add(share)
        if total_s > TURN_S / 4 or len(self._used) > MAX_COUNTED:
            self._end_round_soon()

    def wait(self, share: str, waiter: object, go_on: Callable[[], None]) -> None:
        """Call a function in the next round in which the share has time; a waiter waits for one thing at a time."""
        self._waiting.setdefault(share, OrderedDict())[waiter] = go_on
        self.over.add(share)
        self._end_round_soon()

    def next_turn(self, share: str, value: Value) -> Deferred[Value]:
        """Return a Deferred of this value, which fires when it is the share's turn; what it then does is counted."""
        turn: Deferred[Value] = Deferred(lambda turn: self.forget(share, turn))

        def go_on() -> None:
            began_at = self._clock.seconds()
            turn.callback(value)
            self.used(share, self._clock.seconds() - began_at)

        self.wait(share, turn, go_on)
        return turn

    def forget(self, share: str, waiter: object) -> None:
        """Call nothing any more for a waiter, if it waits."""
        if (waiting := self._waiting.get(share)) is not None:
            waiting.pop(waiter, None)

    def _end_round_soon(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._clock.callLater(0, self._next_round)

    def _next_round(self) -> None:
        self._is_ending = False
        self._used.clear()
        self.over.clear()
        for share, waiting in [*self._waiting.items()]:
            while waiting and share not in self.over:
                _, go_on = waiting.popitem(last=False)
                try:
                    go_on()
                except Exception:
                    self.log.failure("a turn failed")
            if waiting:
                self.over.add(share)
                self._end_round_soon()
            else:
                del self._waiting[share]
