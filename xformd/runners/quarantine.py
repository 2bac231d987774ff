"""Which transforms kill their workers so often that they are not given any for a while.

Decisions alone: the time comes in as a value, and somebody else acts.
"""

from collections import deque

import attrs

MAX_DEATHS = 5
"""So many deaths within ``WINDOW_S`` put a transform into quarantine."""

WINDOW_S = 60.0
PAUSE_S = 30.0
"""How long a quarantine lasts before one request may try."""


@attrs.define
class _Record:
    """What is known of one transform that has killed a worker."""

    deaths: deque[float] = attrs.field(factory=lambda: deque(maxlen=MAX_DEATHS))
    until: float | None = None  # None: not in quarantine
    is_tried: bool = False  # by a request that is running now


class Quarantine:
    """Remembers deaths. A transform that has never caused one costs nothing."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def wait_s(self, name: str, now: float) -> float | None:
        """Say whether a transform may run.

        Args:
            name: the transform's.
            now: the time, in seconds.

        Returns:
            None if it may; else how many seconds to wait before another try.
        """
        record = self._records.get(name)
        if record is None or record.until is None:
            return None
        if record.is_tried:
            return PAUSE_S
        return record.until - now if record.until > now else None

    def begin(self, name: str) -> None:
        """Note that a transform runs now. If it is in quarantine, this run decides."""
        if (record := self._records.get(name)) is not None and record.until is not None:
            record.is_tried = True

    def died(self, name: str, now: float) -> bool:
        """Note that a transform has killed its worker.

        Returns:
            Whether that begins a quarantine, or begins it again.
        """
        record = self._records.setdefault(name, _Record())
        record.deaths.append(now)
        full = len(record.deaths) == MAX_DEATHS and now - record.deaths[0] <= WINDOW_S
        if not full and not record.is_tried:
            return False
        record.until, record.is_tried = now + PAUSE_S, False
        return True

    def survived(self, name: str) -> bool:
        """Note that a transform has given an answer, whatever it was.

        Returns:
            Whether that ends a quarantine.
        """
        record = self._records.get(name)
        if record is None or not record.is_tried:
            return False
        del self._records[name]
        return True

    def undecided(self, name: str) -> None:
        """Note that a run was ended from outside: the next one decides."""
        if (record := self._records.get(name)) is not None:
            record.is_tried = False

    @property
    def names(self) -> frozenset[str]:
        """Which transforms are in quarantine."""
        return frozenset(name for name, record in self._records.items() if record.until is not None)
