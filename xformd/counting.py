"""Accounted: a service that counts what is asked of the service behind it, and answers as that does."""

from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import XformError
from xformd.runners import Caller
from xformd.runners.generation import PreparedCall
from xformd.runners.inline import Outcome
from xformd.service import TransformService
from xformd.spec import Spec
from xformd.telemetry.metrics import OK, SEVERAL, UNKNOWN, Front, Metrics
from xformd.telemetry.timing import RequestTiming

Result = TypeVar("Result", bytes, bytes | Failure)


class CountingService:
    """Counts the requests of one front.

    Args:
        service: answers them.
        metrics: where to count.
        front: how they come.
    """

    def __init__(self, service: TransformService, metrics: Metrics, front: Front) -> None:
        self._service = service
        self._metrics = metrics
        self._front = front
        self._look_up = service.ready
        self.max_result_bytes = service.max_result_bytes
        self.stopwatch = service.stopwatch
        self.listing = service.listing
        self.caller_has_room = service.caller_has_room
        self.stop = service.stop

    def xform(
        self,
        spec: Spec,
        poem: bytes,
        *,
        timeout_s: float | None = None,
        caller: Caller | None = None,
        timing: RequestTiming | None = None,
    ) -> bytes | Deferred[bytes]:
        """Transform a poem; see ``TransformService.xform``."""
        timing = RequestTiming() if timing is None else timing
        label = self._label(spec)
        self._metrics.poem_bytes.observe(len(poem))
        try:
            result = self._service.xform(spec, poem, timeout_s=timeout_s, caller=caller, timing=timing)
        except XformError as error:
            self._count(label, error.code, timing)
            raise
        if isinstance(result, Deferred):
            return result.addBoth(self._settled, label, timing)
        return self._settled(result, label, timing)

    def ready(self, words: bytes) -> PreparedCall | None:
        """Look up what a request says before its poem; see ``TransformService.ready``."""
        ready = self._look_up(words)
        return ready if ready is None else ready.counted.get(self) or self._make_counted(ready)

    def _make_counted(self, ready: PreparedCall) -> PreparedCall:
        """Make the same with a tally for what succeeds at once; what does not is counted one by one."""
        label = ready.name

        def finish_call(outcome: Outcome) -> bytes | Deferred[bytes]:
            try:
                result = ready.finish_call(outcome)
            except XformError as error:
                self._count(label, error.code)
                raise
            return result.addBoth(self._settled, label) if isinstance(result, Deferred) else result

        batched_counts = self._metrics.batched_counts(label, self._front)
        counted = ready.counted[self] = attrs.evolve(ready, finish_call=finish_call, batched_counts=batched_counts)
        return counted

    def _label(self, spec: Spec) -> str:
        if len(spec.steps) > 1:
            return SEVERAL
        name = spec.steps[0].name
        return name if name in self._service.registry.entries else UNKNOWN

    def _settled(self, outcome: Result, label: str, timing: RequestTiming | None = None) -> Result:
        if isinstance(outcome, Failure):
            assert isinstance(outcome.value, XformError)  # what the service promises
            self._count(label, outcome.value.code, timing)
        else:
            self._count(label, OK, timing)
            self._metrics.result_bytes.observe(len(outcome))
        return outcome

    def _count(self, label: str, code: str, timing: RequestTiming | None = None) -> None:
        self._metrics.count(label, self._front, code)
        if timing is None:
            return
        if timing.run_s:
            self._metrics.run_seconds_of(label).observe(timing.run_s)
        if timing.queue_s:
            self._metrics.queue_seconds.observe(timing.queue_s)


@attrs.frozen
class Accounts:
    """One service, counted for each of the fronts that netstrings have.

    Args:
        metrics: where they count, and where to count what reaches neither.
        classic: the service for the classic form.
        session: the same for sessions.
    """

    metrics: Metrics
    classic: CountingService
    session: CountingService

    @classmethod
    def of(cls, service: TransformService, metrics: Metrics) -> "Accounts":
        """Count what netstrings ask of a service."""
        return cls(metrics, CountingService(service, metrics, "classic"), CountingService(service, metrics, "session"))
