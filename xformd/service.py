"""``Service``, the interface that every front calls, and ``TransformService``, which runs the transforms.

A front holds no rule of its own. Invariant: whatever a transform does, its caller gets a result or an ``XformError``,
and the operator's log says once what happened.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from xformd.errors import TransformTimeout, XformError
from xformd.limits import Limits
from xformd.net.deadline import within
from xformd.net.turns import TURN_S, Turns
from xformd.plugins.definition import Transform, transform
from xformd.plugins.registry import Registry, show_versions
from xformd.runners import PROGRAM, Caller, Reader
from xformd.runners.calls import check_fits, name_all, took_too_long
from xformd.runners.generation import Generation, PreparedCall, Stage, internal_error
from xformd.runners.groups import JobResult
from xformd.runners.inline import InlineRunner, Outcome, bind
from xformd.runners.policy import LONG_POEM_BYTES
from xformd.spec import Spec
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import MakeTraceback, SafeTraceback
from xformd.wire import session


class Service(Protocol):
    """What every front calls: a ``TransformService``, one that counts, or one that forwards to other servers."""

    @property
    def max_result_bytes(self) -> int:
        """The longest result."""

    @property
    def turns(self) -> Turns:
        """Divides the time of its reactor between shares."""

    def stopwatch(self) -> float:
        """Return a time in seconds, to measure how long something holds the reactor."""

    def xform(
        self,
        spec: Spec,
        poem: bytes,
        *,
        timeout_s: float | None = None,
        caller: Caller = PROGRAM,
        timing: RequestTiming | None = None,
    ) -> bytes | Deferred[bytes]:
        """Transform a poem.

        Args:
            spec: which transforms, in turn, with what options.
            poem: as it was received.
            timeout_s: how many seconds the client waits; it shortens the server's limit and never lengthens it.
            caller: whose share of the server it takes.
            timing: takes the times of the request, and has its id for the log.

        Returns:
            The result where it is there at once, else a Deferred of it. Cancelling the Deferred cancels the request.

        Raises:
            XformError: one of the table. From a Deferred the same come as failures, and no other failure does.
        """

    def prepare_call(self, words: bytes) -> PreparedCall | None:
        """Look up a transform that can be called with poem after poem, and leaves nothing else to decide.

        The words are what stands between the id and the ``.`` of a session's request: a spec and any attributes. Return
        None for a request that must go through ``xform``.
        """

    def versions(self, spec: Spec) -> str | None:
        """Return which versions of its transforms run a spec that was accepted just now; None if that is not known."""

    def listing(self) -> bytes:
        """Return what ``xformd list-transforms --json --server`` prints."""

    def missing(self) -> str:
        """Return what is still missing, in words for a person who pings; empty if nothing is."""

    def has_room(self, reader: Reader) -> None:
        """Start work that waited until its reader had room for a result."""

    def stop(self) -> None:
        """Cancel every request in flight; each fails with ``ShuttingDown``."""


class RegistryService(Service, Protocol):
    """A service that knows its transforms: a ``TransformService``, or one that guards it."""

    on_swap: list[Callable[[], None]]

    @property
    def limits(self) -> Limits:
        """Those that hold now."""

    @property
    def registry(self) -> Registry:
        """The transforms that there are now."""


class ForwardingService:
    """Passes everything on to another service: the base of what stands in front of one."""

    # No ``__getattr__``: with one, each of its attributes takes longer to find, 5 % of a small request.

    def __init__(self, service: RegistryService) -> None:
        self._service = service
        self.stopwatch, self.turns = service.stopwatch, service.turns
        self.has_room, self.stop = service.has_room, service.stop

    @property
    def max_result_bytes(self) -> int:
        """See ``Service.max_result_bytes``: a reload may change it."""
        return self._service.max_result_bytes

    @property
    def limits(self) -> Limits:
        """Those that hold now."""
        return self._service.limits

    @property
    def registry(self) -> Registry:
        """The transforms that there are now."""
        return self._service.registry

    def xform(self, spec: Spec, poem: bytes, **more: Any) -> bytes | Deferred[bytes]:
        """See ``Service.xform``."""
        return self._service.xform(spec, poem, **more)

    def prepare_call(self, words: bytes) -> PreparedCall | None:
        """See ``Service.prepare_call``."""
        return self._service.prepare_call(words)

    def versions(self, spec: Spec) -> str | None:
        """See ``Service.versions``."""
        return self._service.versions(spec)

    def listing(self) -> bytes:
        """See ``Service.listing``."""
        return self._service.listing()

    def missing(self) -> str:
        """See ``Service.missing``."""
        return self._service.missing()


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

    Attributes:
        generation: the one that takes new requests.
        limits: those that hold now.
        on_swap: called when another generation takes over, to forget what was looked up in the old one.
    """

    def __init__(self, generation: Generation, limits: Limits, clock: IReactorTime) -> None:
        self.generation = generation
        self._clock = clock
        self.set_limits(limits)
        self.stopwatch = generation.inline.stopwatch
        self.on_swap: list[Callable[[], None]] = []
        self._old: set[Generation] = set()
        self.turns = Turns(clock)

    @classmethod
    def inline(
        cls,
        registry: Registry,
        limits: Limits,
        clock: IReactorTime,
        stopwatch: Callable[[], float] = time.perf_counter,
        make_traceback: MakeTraceback = SafeTraceback.redacted,
    ) -> "TransformService":
        """Make a service that runs every transform in the reactor: enough for a command or a test."""
        return cls(
            Generation(registry, InlineRunner(limits.max_result_bytes, clock, stopwatch, make_traceback)), limits, clock
        )

    @classmethod
    def from_functions(
        cls, *functions: Callable[..., Any], limits: Limits = Limits(), reactor: Any = None
    ) -> "TransformService":
        """Make a service of a program's own functions, which run in the reactor. No plugin is loaded.

        Args:
            functions: functions or methods such as ``@xformd.transform`` takes, or what it has returned.
            limits: how long they may take.
            reactor: the reactor; the global one if None.

        Raises:
            DefinitionError: a function is no transform, or two have the same name.
        """
        if reactor is None:
            from twisted.internet import reactor
        made = [each if isinstance(each, Transform) else transform(each) for each in functions]
        return cls.inline(Registry.of(*made), limits, reactor)

    def set_limits(self, limits: Limits) -> None:
        """Hold to these limits from now on; who has looked up some of them learns of the others with ``on_swap``."""
        self.limits = limits
        self.max_result_bytes = self.generation.inline.max_result_bytes = limits.max_result_bytes

    @property
    def registry(self) -> Registry:
        """The transforms that there are now."""
        return self.generation.registry

    def versions(self, spec: Spec) -> str:
        """See ``Service.versions``."""
        return show_versions(self.registry.resolve(step.name) for step in spec.steps)

    def listing(self) -> bytes:
        """See ``Service.listing``."""
        return self.generation.listing()

    def missing(self) -> str:
        """See ``Service.missing``."""
        return self.registry.missing

    def swap(self, generation: Generation) -> Deferred[None]:
        """Answer new requests with another generation.

        Returns:
            Fires when the old one has finished its requests.
        """
        old, self.generation = self.generation, generation
        self._old.add(old)
        for forget in self.on_swap:
            forget()
        return old.in_flight.emptied().addCallback(lambda _: self._old.discard(old))

    @property
    def in_flight(self) -> int:
        """How many requests wait for their results."""
        return sum(len(generation.in_flight) for generation in (self.generation, *self._old))

    def stop(self) -> None:
        """See ``Service.stop``."""
        for generation in (self.generation, *self._old):
            generation.in_flight.stop()

    def has_room(self, reader: Reader) -> None:
        """See ``Service.has_room``."""
        for generation in (self.generation, *self._old):
            generation.has_room(reader)

    def xform(
        self,
        spec: Spec,
        poem: bytes,
        *,
        timeout_s: float | None = None,
        caller: Caller = PROGRAM,
        timing: RequestTiming | None = None,
    ) -> bytes | Deferred[bytes]:
        """See ``Service.xform``."""
        generation = self.generation
        try:
            stages = generation.plan(spec, len(poem))
            if timeout_s is not None and timeout_s <= 0:
                raise TransformTimeout(f"no time was left for {name_all(stages[0].calls)} when it arrived")
            if len(stages) > 1 or len(poem) > LONG_POEM_BYTES:  # a short one is soon done, and its result checked
                check_fits([call for stage in stages for call in stage.calls], len(poem), self.max_result_bytes)
            if len(stages) == 1:
                result = stages[0].run(poem, caller, timing=timing, timeout_s=timeout_s)
                if isinstance(result, bytes):
                    return result  # as most requests end: no clock, no Deferred
                result = self._in_time(stages[0], result, self._budget(timeout_s))
            else:
                result = self._in_turn(poem, stages, self._budget(timeout_s), caller, timing)
                if isinstance(result, bytes):
                    return result
        except XformError:
            raise
        except Exception as error:
            raise internal_error(Failure(), timing) from error
        return generation.in_flight.add(result, timing)

    def prepare_call(self, words: bytes) -> PreparedCall | None:
        """See ``Service.prepare_call``."""
        calls = self.generation.prepared_calls
        try:
            return calls[words]
        except KeyError:
            return calls.remember(words, self._make_call(words))

    def _make_call(self, words: bytes) -> PreparedCall | None:
        generation = self.generation
        if (request := session.decode_words(words)) is None:
            return None
        try:
            stage, *others = generation.plan(request.spec)
        except Exception:  # xform raises it again
            return None
        call, inline = stage.calls[0], generation.inline
        if others or stage.runner is not inline or call.entry.transform.asynchronous or request.timeout_ms == 0:
            return None
        timeout_s = None if request.timeout_ms is None else request.timeout_ms / 1000

        def finish_call(outcome: Outcome, timing: RequestTiming | None = None, **_: object) -> bytes | Deferred[bytes]:
            result = inline.finish_call(call, outcome, timing)
            if isinstance(result, bytes):
                return result
            return generation.in_flight.add(self._in_time(stage, result, self._budget(timeout_s)), timing)

        return PreparedCall(bind(call), finish_call, lambda seconds: inline.note_slow_call(call, seconds), call.name)

    def _budget(self, timeout_s: float | None) -> _Budget:
        limit_s = self.limits.transform_timeout_s
        allowed_s = limit_s if timeout_s is None else min(limit_s, timeout_s)
        return _Budget(self._clock.seconds() + allowed_s, allowed_s)

    def _in_turn(
        self,
        poem: bytes,
        stages: Sequence[Stage],
        budget: _Budget,
        caller: Caller,
        timing: RequestTiming | None,
        *,
        is_admitted: bool = False,
    ) -> bytes | Deferred[bytes]:
        turn_ends_at = self._clock.seconds() + TURN_S
        for index, stage in enumerate(stages):
            now_s = self._clock.seconds()
            if now_s > budget.ends_at:  # an earlier stage took all the time
                raise _not_begun(stage, budget)
            if index and now_s > turn_ends_at:
                turn = self.turns.next_turn(caller.share, poem)
                late, rest = partial(_not_begun, stage, budget), stages[index:]
                pending = within(self._clock, budget.ends_at - now_s, name_all(stage.calls), turn, late)
            else:
                is_admitted, left_s = is_admitted or index > 0, budget.ends_at - now_s
                result = stage.run(poem, caller, is_admitted=is_admitted, timing=timing, timeout_s=left_s)
                if isinstance(result, bytes):
                    poem = result
                    continue
                pending, rest = self._in_time(stage, result, budget), stages[index + 1 :]
            return pending.addCallback(self._in_turn, rest, budget, caller, timing, is_admitted=True)
        return poem

    def _in_time(self, stage: Stage, work: Deferred[bytes], budget: _Budget) -> Deferred[bytes]:
        name = name_all(stage.calls)
        remaining_s = budget.ends_at - self._clock.seconds()

        def too_late() -> XformError:
            if isinstance(work, JobResult) and not work.has_begun:
                reason = f"no worker was free within {budget.allowed_s:g} s; try again later"
                return TransformTimeout(f"{name} did not start: {reason}")
            return took_too_long(name, budget.allowed_s)

        return within(self._clock, remaining_s, name, work, too_late)


def _not_begun(stage: Stage, budget: _Budget) -> TransformTimeout:
    reason = f"the steps before it took all of the {budget.allowed_s:g} s"
    return TransformTimeout(f"{name_all(stage.calls)} did not start: {reason}")
