"""Time one request: how long it waited for a worker, and how long it ran.

Invariant: without a ``RequestTiming`` no clock is read, so only requests that are timed pay for it.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from xformd.telemetry.tracing import RequestTrace


@attrs.define
class RequestTiming:
    """The seconds that a request waited for workers and ran, in all steps of its pipeline; and its names in the log.

    ``traceparent`` is its caller's, and ``trace`` what is recorded of it, if it is sampled.
    """

    request_id: str | None = None
    queue_s: float = 0.0
    run_s: float = 0.0
    _clock: Callable[[], float] = time.perf_counter
    _phase: Literal["waits", "runs"] | None = None
    _since_s: float = 0.0
    traceparent: str | None = None
    trace: "RequestTrace | None" = None

    def waits(self) -> None:
        """Start to count time as waiting for a worker."""
        self.ends()
        self._phase, self._since_s = "waits", self._clock()
        if self.trace is not None:
            self.trace.waits()

    def runs(self, name: str = "", *, in_worker: bool = False) -> None:
        """Start to count time as running a transform."""
        self.ends()
        self._phase, self._since_s = "runs", self._clock()
        if self.trace is not None:
            self.trace.runs(name, in_worker=in_worker)

    def ends(self) -> None:
        """Stop the clock; a second call changes nothing."""
        if self._phase is None:
            return
        passed_s = self._clock() - self._since_s
        if self._phase == "waits":
            self.queue_s += passed_s
        else:
            self.run_s += passed_s
        self._phase = None
        if self.trace is not None:
            self.trace.ends()

    @property
    def has_begun(self) -> bool:
        """Whether a transform has begun to run."""
        return self._phase == "runs" or self.run_s > 0

    @property
    def trace_ids(self) -> dict[str, str]:
        """Its ids in logs: those of its span, or that of its caller's trace, where there are any."""
        if self.trace is not None:
            return {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id}
        return {} if self.traceparent is None else {"trace_id": self.traceparent[3:35]}


def utc_time(seconds: float) -> str:
    """Return a time as logs have it: ``2026-01-31T12:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_fields(timing: RequestTiming | None) -> Mapping[str, Any]:
    """Return the fields that name a request in a log event; ``log_of_request`` is for its message."""
    if timing is None:
        return {"log_of_request": ""}
    ids, request_id = timing.trace_ids, timing.request_id
    if request_id is None:
        return {"log_of_request": "", **ids}
    return {"request_id": request_id, "log_of_request": f" (request {request_id})", **ids}
