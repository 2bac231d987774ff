"""Accounted: a service that counts what is asked of the service behind it, and answers as that does."""

from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import XformError
from xformd.runners import Caller
from xformd.runners.generation import Ready
from xformd.runners.inline import Outcome
from xformd.service import TransformService
from xformd.spec import Spec
from xformd.telemetry.metrics import OK, SEVERAL, UNKNOWN, Front, Metrics
from xformd.telemetry.timing import Trace

Result = TypeVar("Result", bytes, bytes | Failure)


class Accounted:
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
        trace: Trace | None = None,
    ) -> bytes | Deferred[bytes]:
        """Transform a poem; see ``TransformService.xform``."""
        trace = Trace() if trace is None else trace
        label = self._label(spec)
        self._metrics.poem_bytes.observe(len(poem))
        try:
            result = self._service.xform(spec, poem, timeout_s=timeout_s, caller=caller, trace=trace)
        except XformError as error:
            self._count(label, error.code, trace)
            raise
        if isinstance(result, Deferred):
            return result.addBoth(self._settled, label, trace)
        return self._settled(result, label, trace)

    def ready(self, words: bytes) -> Ready | None:
        """Look up what a request says before its poem; see ``TransformService.ready``."""
        ready = self._look_up(words)
        return ready if ready is None else ready.counted.get(self) or self._make_counted(ready)

    def _make_counted(self, ready: Ready) -> Ready:
        """Make the same with a tally for what succeeds at once; what does not is counted one by one."""
        label = ready.name

        def conclude(outcome: Outcome) -> bytes | Deferred[bytes]:
            try:
                result = ready.conclude(outcome)
            except XformError as error:
                self._count(label, error.code)
                raise
            return result.addBoth(self._settled, label) if isinstance(result, Deferred) else result

        tally = self._metrics.tally(label, self._front)
        counted = ready.counted[self] = attrs.evolve(ready, conclude=conclude, tally=tally)
        return counted

    def _label(self, spec: Spec) -> str:
        if len(spec.steps) > 1:
            return SEVERAL
        name = spec.steps[0].name
        return name if name in self._service.registry.entries else UNKNOWN

    def _settled(self, outcome: Result, label: str, trace: Trace | None = None) -> Result:
        if isinstance(outcome, Failure):
            assert isinstance(outcome.value, XformError)  # what the service promises
            self._count(label, outcome.value.code, trace)
        else:
            self._count(label, OK, trace)
            self._metrics.result_bytes.observe(len(outcome))
        return outcome

    def _count(self, label: str, code: str, trace: Trace | None = None) -> None:
        self._metrics.count(label, self._front, code)
        if trace is None:
            return
        if trace.run_s:
            self._metrics.run_seconds_of(label).observe(trace.run_s)
        if trace.queue_s:
            self._metrics.queue_seconds.observe(trace.queue_s)


@attrs.frozen
class Accounts:
    """One service, counted for each of the fronts that netstrings have.

    Args:
        metrics: where they count, and where to count what reaches neither.
        classic: the service for the classic form.
        session: the same for sessions.
    """

    metrics: Metrics
    classic: Accounted
    session: Accounted

    @classmethod
    def of(cls, service: TransformService, metrics: Metrics) -> "Accounts":
        """Count what netstrings ask of a service."""
        return cls(metrics, Accounted(service, metrics, "classic"), Accounted(service, metrics, "session"))
