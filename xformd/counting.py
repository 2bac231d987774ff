"""CountingService counts the requests of one front, and leaves the answers to the service behind it.

Invariant: each request that reaches it is counted, and logged if it has an entry, once, with the code of its outcome.
"""

from contextlib import suppress
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import XformError
from xformd.runners.generation import PreparedCall
from xformd.runners.inline import Outcome
from xformd.service import ForwardingService, RegistryService
from xformd.spec import Spec, SpecCache
from xformd.telemetry.access_log import AccessEntry, AccessLog
from xformd.telemetry.metrics import OK, SEVERAL, UNKNOWN, Front, Metrics
from xformd.telemetry.timing import RequestTiming

Result = TypeVar("Result", bytes, bytes | Failure)


class FinishingService(ForwardingService):
    """A ``Service`` that finishes the entries of requests."""

    def xform(
        self, spec: Spec, poem: bytes, *, timing: RequestTiming | None = None, **more: Any
    ) -> bytes | Deferred[bytes]:
        """See ``Service.xform``."""
        if not isinstance(timing, AccessEntry):
            return super().xform(spec, poem, timing=timing, **more)
        timing.spec, timing.poem_bytes = spec, len(poem)
        try:
            result = super().xform(spec, poem, timing=timing, **more)
        except XformError as error:
            timing.finish(error.code)
            raise
        return result.addBoth(_finish, timing) if isinstance(result, Deferred) else _finish(result, timing)


def _finish(outcome: Result, entry: AccessEntry) -> Result:
    if isinstance(outcome, Failure):
        assert isinstance(outcome.value, XformError)  # what a Service promises
        entry.finish(outcome.value.code)
    else:
        entry.result_bytes = len(outcome)
        entry.finish(OK)
    return outcome


class CountingService(FinishingService):
    """A ``Service`` that counts the requests of one front. With an access log, it has each go through ``xform``."""

    def __init__(
        self, service: RegistryService, metrics: Metrics, front: Front, access_log: AccessLog | None = None
    ) -> None:
        super().__init__(service)
        self._metrics = metrics
        self._front = front
        self._prepare_call = service.prepare_call if access_log is None else lambda _: None
        self.on_swap = service.on_swap
        self._calls: SpecCache[bytes, PreparedCall | None] = SpecCache(self._make_call)
        self.on_swap.append(self._calls.clear)

    def xform(
        self, spec: Spec, poem: bytes, *, timing: RequestTiming | None = None, **more: Any
    ) -> bytes | Deferred[bytes]:
        """See ``Service.xform``."""
        timing = RequestTiming() if timing is None else timing
        label = self._label(spec)
        self._metrics.poem_bytes.observe(len(poem))
        try:
            result = super().xform(spec, poem, timing=timing, **more)
        except XformError as error:
            self._count(label, error.code, timing)
            raise
        if isinstance(result, Deferred):
            return result.addBoth(self._count_outcome, label, timing)
        return self._count_outcome(result, label, timing)

    def refused(self, error: XformError, timing: RequestTiming | None = None) -> XformError:
        """Count a request that does not reach ``xform``, finish its entry, and return its error."""
        self._metrics.refused(self._front, error.code)
        if isinstance(timing, AccessEntry):
            timing.finish(error.code)
        return error

    def prepare_call(self, words: bytes) -> PreparedCall | None:
        """See ``Service.prepare_call``."""
        return self._calls[words]

    def _make_call(self, words: bytes) -> PreparedCall | None:
        """Count what succeeds at once in batches, and everything else in ``finish_call``."""
        if (call := self._prepare_call(words)) is None:
            return None
        label = call.name

        def finish_call(outcome: Outcome, timing: RequestTiming | None = None, **more: Any) -> bytes | Deferred[bytes]:
            try:
                result = call.finish_call(outcome, timing, **more)
            except XformError as error:
                self._count(label, error.code)
                raise
            return result.addBoth(self._count_outcome, label) if isinstance(result, Deferred) else result

        batched_counts = self._metrics.batched_counts(label, self._front)
        return attrs.evolve(call, finish_call=finish_call, batched_counts=batched_counts)

    def _label(self, spec: Spec) -> str:
        if len(spec.steps) > 1:
            return SEVERAL
        name = spec.steps[0].name
        with suppress(XformError):  # nothing is known to whoever may do nothing
            return name if name in self.registry.entries else UNKNOWN
        return UNKNOWN

    def _count_outcome(self, outcome: Result, label: str, timing: RequestTiming | None = None) -> Result:
        if isinstance(outcome, Failure):
            assert isinstance(outcome.value, XformError)  # what a Service promises
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
