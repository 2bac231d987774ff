"""Time one request: how long it waited for a worker, and how long it ran.

Invariant: without a ``RequestTiming`` no clock is read, so only requests that are timed pay for it.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import attrs


@attrs.define
class RequestTiming:
    """The seconds that a request waited for workers and ran, in all steps of its pipeline; and its name in the log."""

    request_id: str | None = None
    queue_s: float = 0.0
    run_s: float = 0.0
    _clock: Callable[[], float] = time.perf_counter
    _phase: Literal["waits", "runs"] | None = None
    _since_s: float = 0.0

    def waits(self) -> None:
        """Start to count time as waiting for a worker."""
        self.ends()
        self._phase, self._since_s = "waits", self._clock()

    def runs(self) -> None:
        """Start to count time as running."""
        self.ends()
        self._phase, self._since_s = "runs", self._clock()

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


def utc_time(seconds: float) -> str:
    """Return a time as logs have it: ``2026-01-31T12:00:00.000Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_fields(timing: RequestTiming | None) -> Mapping[str, Any]:
    """Return the fields that name a request in a log event; ``log_of_request`` is for its message."""
    request_id = timing.request_id if timing is not None else None
    if request_id is None:
        return {"log_of_request": ""}
    return {"request_id": request_id, "log_of_request": f" (request {request_id})"}
