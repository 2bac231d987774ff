"""Tells the operator of connections that are refused: at most one line a second for each kind."""

from collections import Counter

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

PERIOD_S = 1.0


class RateLimitedLog:
    """Logs the first refusal of a kind at once, and then, second by second, how many more there were.

    Args:
        clock: a reactor, or a clock in its place.

    Attributes:
        counts: how many there were, by kind.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.counts: Counter[str] = Counter()
        self._more: dict[str, tuple[int, str]] = {}  # not logged yet: how many, and the last one's reason

    def refused(self, kind: str, reason: str) -> None:
        """Note that a connection was refused.

        Args:
            kind: what it has in common with others.
            reason: why, for a person.
        """
        self.counts[kind] += 1
        if kind in self._more:
            count, _ = self._more[kind]
            self._more[kind] = (count + 1, reason)
            return
        self.log.warn("closed a new connection: {reason}", reason=reason)
        self._begin(kind)

    def _begin(self, kind: str) -> None:
        self._more[kind] = (0, "")
        self._clock.callLater(PERIOD_S, self._end, kind)

    def _end(self, kind: str) -> None:
        count, reason = self._more.pop(kind)
        if count:
            self.log.warn("closed {count} new connections in the last second: {reason}", count=count, reason=reason)
            self._begin(kind)
