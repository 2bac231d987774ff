"""Tells the operator of transforms that fail: with a traceback at most once a second for each, and without a poem."""

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xformd.runners.calls import Call
from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback

PERIOD_S = 1.0


class FailureLog:
    """Logs a failure of a transform at once, and of those that follow on its heels how many there were.

    Args:
        clock: a reactor, or a clock in its place.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._logged_s: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def failed(self, call: Call, raised: SafeTraceback, timing: RequestTiming | None = None) -> None:
        """Note that a transform has failed.

        Args:
            call: what failed.
            raised: with what.
            timing: of the request.
        """
        name, label = call.name, call.entry.plugin.label
        now_s = self._clock.seconds()
        ends_s = self._logged_s.get(name, now_s - PERIOD_S) + PERIOD_S
        if now_s >= ends_s:
            self._logged_s[name] = now_s
            self.log.error(
                "transform {transform} of plugin {plugin} failed{log_of_request}\n{traceback}",
                transform=name,
                plugin=label,
                **attrs.asdict(raised),
                **log_fields(timing),
            )
            return
        if name not in self._left_out:
            self._left_out[name] = 0
            self._clock.callLater(ends_s - now_s, self._end, name, label)
        self._left_out[name] += 1

    def _end(self, name: str, label: str) -> None:
        self.log.error(
            "transform {transform} of plugin {plugin} failed {count} more times within a second",
            transform=name,
            plugin=label,
            count=self._left_out.pop(name),
        )
