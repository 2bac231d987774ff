"""Log the transforms that fail: one line a second for each, few tracebacks, and no poem."""

from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from xformd.runners.calls import Call
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback

SAME_TRACEBACK_S = 60.0  # how long a traceback is not logged again
MAX_TRACEBACKS, TRACEBACKS_S = 3, 10.0  # how many are logged within how many seconds: each has up to a hundred lines


class FailureLog(RateLimitedLog):
    """The failures of one runner's transforms."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock)
        self._logged_at: dict[str, float] = {}

    def failed(self, call: Call, raised: SafeTraceback, timing: RequestTiming | None = None) -> None:
        """Log that a transform has failed."""
        message = "transform {transform} of plugin {plugin} failed{log_of_request}"
        fields = {"transform": call.name, "plugin": call.entry.plugin.label}
        self.add(call.name, self._emit, message, **fields, **raised.log_fields(), **log_fields(timing))

    def _emit(self, message: str, *, traceback: str, **fields: Any) -> None:
        now_s = self._clock.seconds()
        self._logged_at = {each: at_s for each, at_s in self._logged_at.items() if now_s - at_s < SAME_TRACEBACK_S}
        are_many = sum(now_s - at_s < TRACEBACKS_S for at_s in self._logged_at.values()) >= MAX_TRACEBACKS
        if are_many or traceback in self._logged_at:
            self.log.error(message + ": {error}", **fields)
        else:
            self._logged_at[traceback] = now_s
            self.log.error(message + "\n{traceback}", traceback=traceback, **fields)
