"""TransformService: takes a spec and a poem, gives the transformed poem or one of the errors of the table.

Every front (the netstring port, a command, later HTTP) calls this and holds no rule of its own. Whatever a
transform does, its caller sees an ``XformError`` and the operator's log says once what happened.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Cancelled, InternalError, ShuttingDown, TransformTimeout, XformError
from xformd.limits import Limits
from xformd.net.deadline import within
from xformd.plugins.registry import Registry
from xformd.runners import Caller
from xformd.runners.calls import name_all, took_too_long
from xformd.runners.generation import MAX_PLANS, Generation, PreparedCall, Stage
from xformd.runners.inline import InlineRunner, Outcome, bind
from xformd.spec import SHORT_CHARACTERS, Spec
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import Look, SafeTraceback
from xformd.wire import session


@attrs.frozen
class _Budget:
    """How long a request may take: until when, and how many seconds that was at its start."""

    ends_at: float
    allowed_s: float


class TransformService:
    """Runs transforms.

    Args:
        generation: which transforms there are, and where they run.
        limits: how long they may take.
        clock: a reactor, or a clock in its place.
    """

    log = Logger()

    def __init__(self, generation: Generation, limits: Limits, clock: IReactorTime) -> None:
        self._generation = generation
        self._limits = limits
        self._clock = clock
        self.max_result_bytes = limits.max_result_bytes
        self.stopwatch = generation.inline.stopwatch
        self._is_stopping = False
        self._old: set[Generation] = set()

    @classmethod
    def inline(
        cls,
        registry: Registry,
        limits: Limits,
        clock: IReactorTime,
        stopwatch: Callable[[], float] = time.perf_counter,
        look: Look = SafeTraceback.of,
    ) -> "TransformService":
        """Make a service that runs every transform in the reactor, which a command or a test can do with."""
        return cls(Generation(registry, InlineRunner(limits.max_result_bytes, clock, stopwatch, look)), limits, clock)

    @property
    def registry(self) -> Registry:
        """Which transforms there are now."""
        return self._generation.registry

    def describe(self) -> dict[str, Any]:
        """Give what ``xformd list-transforms --json`` prints, as it is now."""
        return self._generation.describe()

    def listing(self) -> bytes:
        """Give the same, as JSON."""
        return self._generation.listing()

    def swap(self, generation: Generation) -> Deferred[None]:
        """Answer from now on with another generation.

        Returns:
            Fires when the one before has ended what it had begun.
        """
        old, self._generation = self._generation, generation
        self._old.add(old)
        return old.finished().addCallback(lambda _: self._old.discard(old))

    @property
    def in_flight(self) -> int:
        """How many requests wait for something."""
        return sum(generation.in_flight for generation in (self._generation, *self._old))

    @property
    def needs_workers(self) -> bool:
        """Whether there are transforms that run in workers."""
        return self._generation.needs_workers

    @property
    def quarantined(self) -> frozenset[str]:
        """Which transforms are in quarantine."""
        return self._generation.quarantined

    def stop(self) -> None:
        """Give up every request in flight, with ``ShuttingDown``."""
        self._is_stopping = True
        for generation in (self._generation, *self._old):
            generation.cancel_all()

    def caller_has_room(self, caller: Caller) -> None:
        """Go on with work that waited until its caller had room for a result."""
        for generation in (self._generation, *self._old):
            generation.caller_has_room(caller)

    def xform(
        self,
        spec: Spec,
        poem: bytes,
        *,
        timeout_s: float | None = None,
        caller: Caller | None = None,
        timing: RequestTiming | None = None,
    ) -> bytes | Deferred[bytes]:
        """Transform a poem.

        Args:
            spec: which transforms, in turn, with what options.
            poem: the poem, as it came.
            timeout_s: how many seconds the caller wants to wait, where that is less than the limit.
            caller: who asks, where that is somebody who asks for several things at once.
            timing: takes the times of the request, and gives it an id in the log.

        Returns:
            The result at once where every step gives its own at once, else a Deferred of it. Cancelling the
            Deferred gives the request up.

        Raises:
            XformError: any of the table. From a Deferred the same come as failures, and no other failure does.
        """
        generation = self._generation
        try:
            stages = generation.plan(spec)
            if timeout_s is not None and timeout_s <= 0:
                raise TransformTimeout(f"no time was left for {spec} when it came")
            if len(stages) == 1:
                result = stages[0].runner.run(stages[0].calls, poem, caller, timing=timing)
                if isinstance(result, bytes):
                    return result  # the way of most requests: no clock, no Deferred
                result = self._in_time(stages[0], result, self._budget(timeout_s))
            else:
                result = self._in_turn(stages, poem, self._budget(timeout_s), caller, timing)
                if isinstance(result, bytes):
                    return result
        except XformError:
            raise
        except Exception as error:
            raise self._internal_error(Failure(), timing) from error
        return self._note(generation, result, timing)

    def ready(self, words: bytes) -> PreparedCall | None:
        """Look up what stands between a request's id and its ``.``, for a front that answers many in one loop.

        Args:
            words: a spec in its wire form, and any attributes.

        Returns:
            What to run, for one step that runs at once; None for anything else, which is for ``xform``.
        """
        generation = self._generation
        try:
            return generation.ready[words]
        except KeyError:
            if len(words) > SHORT_CHARACTERS:
                return None
        if len(generation.ready) >= MAX_PLANS:
            generation.ready.clear()
        ready = generation.ready[words] = self._make_ready(generation, words)
        return ready

    def _make_ready(self, generation: Generation, words: bytes) -> PreparedCall | None:
        request = session.decode_request(b"1 %b." % words)
        if not isinstance(request, session.Request):
            return None
        try:
            stage, *others = generation.plan(request.spec)
        except Exception:  # for xform to say
            return None
        call, inline = stage.calls[0], generation.inline
        if others or stage.runner is not inline or call.entry.transform.asynchronous or request.timeout_ms == 0:
            return None
        timeout_s = None if request.timeout_ms is None else request.timeout_ms / 1000

        def finish_call(outcome: Outcome) -> bytes | Deferred[bytes]:
            result = inline.finish_call(call, outcome)
            if isinstance(result, bytes):
                return result
            return self._note(generation, self._in_time(stage, result, self._budget(timeout_s)))

        return PreparedCall(bind(call), finish_call, lambda seconds: inline.note_slow_call(call, seconds), call.name)

    def _note(
        self, generation: Generation, result: Deferred[bytes], timing: RequestTiming | None = None
    ) -> Deferred[bytes]:
        generation.note(result)
        if timing is not None:  # a request may have its outcome before its work has an end
            result.addBoth(_end, timing)
        return result.addErrback(self._last_word, timing)

    def _budget(self, timeout_s: float | None) -> _Budget:
        limit_s = self._limits.transform_timeout_s
        allowed_s = limit_s if timeout_s is None else min(limit_s, timeout_s)
        return _Budget(self._clock.seconds() + allowed_s, allowed_s)

    def _in_turn(
        self,
        stages: Sequence[Stage],
        poem: bytes,
        budget: _Budget,
        caller: Caller | None,
        timing: RequestTiming | None,
        *,
        is_admitted: bool = False,
    ) -> bytes | Deferred[bytes]:
        for index, stage in enumerate(stages):
            if self._clock.seconds() > budget.ends_at:  # a stage before it took all the time there was
                raise TransformTimeout(f"{budget.allowed_s:g} s were over before {name_all(stage.calls)} began")
            result = stage.runner.run(stage.calls, poem, caller, is_admitted=is_admitted or index > 0, timing=timing)
            if isinstance(result, Deferred):
                pending = self._in_time(stage, result, budget)
                rest = stages[index + 1 :]
                return Deferred.fromCoroutine(self._go_on(pending, rest, budget, caller, timing)) if rest else pending
            poem = result
        return poem

    async def _go_on(
        self,
        pending: Deferred[bytes],
        rest: Sequence[Stage],
        budget: _Budget,
        caller: Caller | None,
        timing: RequestTiming | None,
    ) -> bytes:
        result = self._in_turn(rest, await pending, budget, caller, timing, is_admitted=True)
        return await result if isinstance(result, Deferred) else result

    def _in_time(self, stage: Stage, work: Deferred[bytes], budget: _Budget) -> Deferred[bytes]:
        name = name_all(stage.calls)
        remaining_s = budget.ends_at - self._clock.seconds()
        return within(self._clock, remaining_s, name, work, lambda: took_too_long(name, budget.allowed_s))

    def _last_word(self, failure: Failure, timing: RequestTiming | None) -> Failure:
        if self._is_stopping and failure.check(Cancelled):
            return Failure(ShuttingDown.interrupted())  # it may have begun: no retry-after
        if isinstance(failure.value, XformError):
            return failure
        return Failure(self._internal_error(failure, timing))

    def _internal_error(self, failure: Failure, timing: RequestTiming | None) -> InternalError:
        request_id = (timing.request_id if timing is not None else None) or uuid.uuid4().hex
        assert failure.value is not None
        told = attrs.asdict(SafeTraceback.of(failure.value, failure.getTracebackObject()))
        self.log.error("internal error {request_id}\n{traceback}", request_id=request_id, **told)
        return InternalError(request_id)


def _end(outcome: bytes | Failure, timing: RequestTiming) -> bytes | Failure:
    timing.ends()
    return outcome
