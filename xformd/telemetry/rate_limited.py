"""Log events that may come in floods: refused connections, failing transforms, slow ones.

Invariant: at most one line for each kind of event in each period, and no event goes uncounted.
"""

from collections import Counter
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

Write = Callable[[int], object]
"""Logs an event; its argument is how many events the line stands for."""


class RateLimitedLog:
    """Logs the first event of a kind at once, and from then on the last one of each period, with their number.

    ``counts`` has how many events there were, by kind.
    """

    def __init__(self, clock: IReactorTime, period_s: float = 1.0) -> None:
        self._clock = clock
        self._period_s = period_s
        self.counts: Counter[str] = Counter()
        self._unwritten: dict[str, tuple[int, Write | None]] = {}

    def add(self, kind: str, write: Write) -> None:
        """Count an event, and log it now or at the end of the period. There must be few kinds."""
        self.counts[kind] += 1
        if kind in self._unwritten:
            count, _ = self._unwritten[kind]
            self._unwritten[kind] = (count + 1, write)
        else:
            write(1)
            self._start_period(kind)

    def _start_period(self, kind: str) -> None:
        self._unwritten[kind] = (0, None)
        self._clock.callLater(self._period_s, self._end_period, kind)

    def _end_period(self, kind: str) -> None:
        count, write = self._unwritten.pop(kind)
        if write is not None:
            write(count)
            self._start_period(kind)
