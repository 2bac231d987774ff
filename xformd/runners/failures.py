"""Log the transforms that fail: one line a second for each, with a traceback, and without a poem."""

from twisted.logger import Logger

from xformd.runners.calls import Call
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.timing import RequestTiming, log_fields
from xformd.telemetry.tracebacks import SafeTraceback


class FailureLog(RateLimitedLog):
    """The failures of one runner's transforms."""

    log = Logger()

    def failed(self, call: Call, raised: SafeTraceback, timing: RequestTiming | None = None) -> None:
        """Log that a transform has failed.

        Args:
            call: the transform.
            raised: what it raised.
            timing: of the request.
        """

        def write(count: int) -> None:
            self.log.error(
                "transform {transform} of plugin {plugin} failed{log_how_often}{log_of_request}\n{traceback}",
                transform=call.name,
                plugin=call.entry.plugin.label,
                count=count,
                log_how_often="" if count == 1 else f", the last of {count} times within a second",
                **raised.log_fields(),
                **log_fields(timing),
            )

        self.add(call.name, write)
