"""Log events that may come in floods: refused connections, failing transforms, slow ones.

Invariant: at most one line for each kind of event in each period, at most ``MAX_KINDS`` lines and one more for all
kinds, and no event goes uncounted.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback

if TYPE_CHECKING:
    from xformd.runners.calls import Call

MAX_KINDS = 10  # all further kinds in a period share one line: a client may go through all transforms


class RateLimitedLog:
    """Logs the first event of a kind at once, and from then on the last one of each period, with their number.

    ``counts`` has how many events there were, by kind.
    """

    def __init__(self, clock: IReactorTime, period_s: float = 1.0) -> None:
        self._clock = clock
        self._period_s = period_s
        self.counts: Counter[str] = Counter()
        self._unwritten: dict[str, tuple[int, Callable[[int], object] | None]] = {}

    def add(self, kind: str, emit: Callable[..., object], message: str, **fields: Any) -> None:
        """Count an event, and ``emit`` it, as a ``Logger`` does, now or at the end of the period.

        How many events a line stands for is its field ``count``, and in its message. There must be few kinds.
        """

        def write(count: int) -> None:
            period = "a second" if self._period_s == 1 else f"{self._period_s:g} s"
            others = "" if count == 1 else f" (the last of {count} within {period})"
            emit(message + "{log_others}", log_others=others, count=count, **fields)

        self.counts[kind] += 1
        if kind not in self._unwritten and len(self._unwritten) >= MAX_KINDS:
            kind = ""
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


class FailureLog(RateLimitedLog):
    """The failures of one runner's transforms: few tracebacks, and no poem."""

    log = Logger()

    def failed(self, call: "Call", raised: SafeTraceback, timing: RequestTiming | None = None) -> None:
        """Log that a transform has failed."""
        message = "transform {transform} of plugin {plugin} failed{log_of_request}"
        fields = {"transform": call.name, "plugin": call.entry.plugin.label}
        self.add(call.name, self._emit, message, **fields, **raised.log_fields(), **log_fields(timing))

    def _emit(self, message: str, **fields: Any) -> None:
        self.log.error(message + "\n{traceback}", **fields)
