"""What somebody wants to know of one request on its way: which it is, how long it waited and how long it ran.

Nobody pays for it who does not ask: without a ``RequestTiming`` no clock is read.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs


@attrs.define
class RequestTiming:
    """Takes a request's times as it passes; the steps of a pipeline add up.

    Args:
        request_id: how the log calls it.
        queue_s: how many seconds it has waited for a worker.
        run_s: for how many seconds it has run.
        clock: gives seconds.
    """

    request_id: str | None = None
    queue_s: float = 0.0
    run_s: float = 0.0
    _clock: Callable[[], float] = time.perf_counter
    _phase: Literal["waits", "runs"] | None = None
    _since_s: float = 0.0

    def waits(self) -> None:
        """Note that it waits for a worker."""
        self.ends()
        self._phase, self._since_s = "waits", self._clock()

    def runs(self) -> None:
        """Note that it runs."""
        self.ends()
        self._phase, self._since_s = "runs", self._clock()

    def ends(self) -> None:
        """Note that it neither waits nor runs. Whoever sees this first says so; to say it again changes nothing."""
        if self._phase is None:
            return
        passed_s = self._clock() - self._since_s
        if self._phase == "waits":
            self.queue_s += passed_s
        else:
            self.run_s += passed_s
        self._phase = None


def log_fields(timing: RequestTiming | None) -> Mapping[str, Any]:
    """Give what a line in the log says of the request that it is about.

    Returns:
        ``request_id`` where there is one, and ``log_of_request``: the same for the line's text, which is no field.
    """
    request_id = timing.request_id if timing is not None else None
    if request_id is None:
        return {"log_of_request": ""}
    return {"request_id": request_id, "log_of_request": f" (request {request_id})"}
