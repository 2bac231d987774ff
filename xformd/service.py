"""TransformService: takes a spec and a poem, gives the transformed poem or one of the errors of the table.

Every front (the netstring port, a command, later HTTP) calls this and holds no rule of its own. Whatever a
transform does, its caller sees an ``XformError`` and the operator's log says once what happened.
"""

import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import (
    BadOptions,
    Cancelled,
    GibberishError,
    InternalError,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    XformError,
    describe,
)
from xformd.limits import Limits
from xformd.options import OptionValue
from xformd.plugins.registry import Entry, Registry
from xformd.runners import inline
from xformd.spec import SHORT_CHARACTERS, Spec, Step
from xformd.wire import session

MAX_PLANS = 1_024
"""How many specs are remembered with their transforms and options."""

HELD_S = 0.05
"""Whoever runs longer in the reactor keeps everybody else waiting noticeably."""

_WARN_EVERY_S = 60.0

REFUSALS = (GibberishError, BadOptions, TooLarge)
"""What a transform may raise to say no to a poem or to an option's value; its message reaches the caller."""


@attrs.frozen
class _Call:
    """One step of a spec, ready to run."""

    entry: Entry
    options: Mapping[str, OptionValue]


@attrs.frozen
class _Budget:
    """How long a request may take: until when, and how many seconds that was at its start."""

    ends_at: float
    allowed_s: float


@attrs.frozen
class Ready:
    """A request's words, looked up and converted: one transform that runs at once.

    Args:
        run: gives it a poem; whatever comes of that is for ``conclude``, unless it is bytes of a fair length.
        conclude: takes what ``run`` gave, or the failure with what it raised. It does what ``xform`` does then.
        held: is to be told when it has run for more than ``HELD_S``, and for how many seconds.
    """

    run: inline.Run
    conclude: Callable[[bytes | Deferred[bytes] | Failure], bytes | Deferred[bytes]]
    held: Callable[[float], None]


class TransformService:
    """Runs transforms.

    Args:
        registry: which transforms there are.
        limits: how long they may take and how much they may give.
        clock: a reactor, or a clock in its place.
        stopwatch: what measures how long a transform holds the reactor, in seconds.
    """

    log = Logger()

    def __init__(
        self,
        registry: Registry,
        limits: Limits,
        clock: IReactorTime,
        stopwatch: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.registry = registry
        self._limits = limits
        self.max_result_bytes = limits.max_result_bytes
        self.stopwatch = stopwatch
        self._clock = clock
        self._plans: dict[Spec, list[_Call]] = {}  # the registry never changes, so neither do they
        self._ready: dict[bytes, Ready | None] = {}  # nor does this
        self._warned_s: dict[str, float] = {}

    def xform(self, spec: Spec, poem: bytes, *, timeout_s: float | None = None) -> bytes | Deferred[bytes]:
        """Transform a poem.

        Args:
            spec: which transforms, in turn, with what options.
            poem: the poem, as it came.
            timeout_s: how many seconds the caller wants to wait, where that is less than the limit.

        Returns:
            The result at once where every step gives its own at once, else a Deferred of it. Cancelling the
            Deferred gives the request up.

        Raises:
            XformError: any of the table. From a Deferred the same come as failures, and no other failure does.
        """
        try:
            calls = self._plans.get(spec) or self._plan(spec)
            if len(calls) == 1 and not calls[0].entry.transform.asynchronous:
                result = self._run(calls[0], poem)
                if isinstance(result, bytes):
                    return result  # the way of most requests: no clock, no Deferred
                return self._under_deadline(calls[0], result, self._budget(timeout_s))
            return self._in_turn(calls, poem, self._budget(timeout_s))
        except XformError:
            raise
        except Exception as error:
            raise self._internal_error() from error

    def ready(self, words: bytes) -> Ready | None:
        """Look up what stands between a request's id and its ``.``, for a front that answers many in one loop.

        Args:
            words: a spec in its wire form, and any attributes.

        Returns:
            What to run, for one step that runs at once; None for anything else, which is for ``xform``.
        """
        try:
            return self._ready[words]
        except KeyError:
            return self._remember(words)

    def _remember(self, words: bytes) -> Ready | None:
        if len(words) > SHORT_CHARACTERS:
            return None
        if len(self._ready) >= MAX_PLANS:
            self._ready.clear()
        ready = self._ready[words] = self._make_ready(words)
        return ready

    def _make_ready(self, words: bytes) -> Ready | None:
        request = session.decode_request(b"1 %b." % words)
        if not isinstance(request, session.Request):
            return None
        try:
            call, *others = self._plans.get(request.spec) or self._plan(request.spec)
        except Exception:  # for xform to say
            return None
        if others or not call.entry.transform.inline or call.entry.transform.asynchronous:
            return None
        timeout_s = None if request.timeout_ms is None else request.timeout_ms / 1000

        def conclude(result: bytes | Deferred[bytes] | Failure) -> bytes | Deferred[bytes]:
            concluded = self._conclude(call, result)
            if isinstance(concluded, bytes):
                return concluded
            return self._under_deadline(call, concluded, self._budget(timeout_s))

        run = inline.bind(call.entry.transform, call.options)
        return Ready(run, conclude, lambda seconds: self._warn_of_hold(call, seconds))

    def _warn_of_hold(self, call: _Call, seconds: float) -> None:
        """Tell the operator that everybody has waited for a transform; not more than once a minute for each."""
        name, now_s = call.entry.transform.name, self.stopwatch()
        if now_s - self._warned_s.get(name, -_WARN_EVERY_S) < _WARN_EVERY_S:
            return
        self._warned_s[name] = now_s
        self.log.warn(
            "transform {transform} of plugin {plugin} held the server for {milliseconds:.0f} ms;"
            " --isolate {transform} runs it in a worker",
            transform=name,
            plugin=call.entry.plugin.label,
            milliseconds=seconds * 1000,
        )

    def _budget(self, timeout_s: float | None) -> _Budget:
        limit_s = self._limits.transform_timeout_s
        allowed_s = limit_s if timeout_s is None else min(limit_s, timeout_s)
        return _Budget(self._clock.seconds() + allowed_s, allowed_s)

    def _in_turn(self, calls: Sequence[_Call], poem: bytes, budget: _Budget) -> bytes | Deferred[bytes]:
        for index, call in enumerate(calls):
            result = self._run_in_time(call, poem, budget)
            if isinstance(result, Deferred):
                rest = calls[index + 1 :]
                return Deferred.fromCoroutine(self._go_on(result, rest, budget)) if rest else result
            poem = result
        return poem

    def _plan(self, spec: Spec) -> list[_Call]:
        """Look up a spec's transforms and convert its options, once for as many requests as come."""
        calls = [self._resolve(step) for step in spec.steps]
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        if len(str(spec)) <= SHORT_CHARACTERS:
            self._plans[spec] = calls
        return calls

    def _resolve(self, step: Step) -> _Call:
        entry = self.registry.resolve(step.name)
        return _Call(entry, entry.transform.convert(dict(step.options)))

    async def _go_on(self, pending: Deferred[bytes], rest: Sequence[_Call], budget: _Budget) -> bytes:
        result = self._in_turn(rest, await pending, budget)
        return await result if isinstance(result, Deferred) else result

    def _run_in_time(self, call: _Call, poem: bytes, budget: _Budget) -> bytes | Deferred[bytes]:
        if self._clock.seconds() > budget.ends_at:  # a step before it took all the time there was
            raise TransformTimeout(f"{budget.allowed_s:g} s were over before {call.entry.transform.name} began")
        result = self._run(call, poem)
        return self._under_deadline(call, result, budget) if isinstance(result, Deferred) else result

    def _run(self, call: _Call, poem: bytes) -> bytes | Deferred[bytes]:
        started_s = self.stopwatch()
        result: bytes | Deferred[bytes] | Failure
        try:
            result = inline.run(call.entry.transform, call.options, poem)
        except BaseException:  # SystemExit and its like come from the transform: nothing else runs in there
            result = Failure()
        if (held_s := self.stopwatch() - started_s) > HELD_S:
            self._warn_of_hold(call, held_s)
        return self._conclude(call, result)

    def _conclude(self, call: _Call, result: bytes | Deferred[bytes] | Failure) -> bytes | Deferred[bytes]:
        if isinstance(result, Failure):
            raise self._explain(call, result)
        if isinstance(result, Deferred):
            return result.addCallbacks(
                self._check_size, lambda failure: self._fail(call, failure), callbackArgs=(call,)
            )
        return result if len(result) <= self.max_result_bytes else self._check_size(result, call)

    def _check_size(self, result: bytes, call: _Call) -> bytes:
        limit = self.max_result_bytes
        if len(result) > limit:
            name = call.entry.transform.name
            raise TooLarge(f"the result of {name} has {len(result)} bytes; the limit is {limit} bytes")
        return result

    def _under_deadline(self, call: _Call, work: Deferred[bytes], budget: _Budget) -> Deferred[bytes]:
        """Give a Deferred that ends in time, also when the work behind it does not."""
        transform = call.entry.transform
        allowed_s = budget.allowed_s
        remaining_s = budget.ends_at - self._clock.seconds()
        if transform.timeout_s is not None and transform.timeout_s < remaining_s:
            allowed_s = remaining_s = transform.timeout_s

        def settle(result: bytes | Failure) -> None:
            if timer.active():
                timer.cancel()
            if not outcome.called:
                outcome.callback(result)

        def give_up(error: XformError) -> None:
            settle(Failure(error))
            try:
                work.cancel()
            except Exception:  # the canceller is the plugin's too
                self.log.failure("transform {transform} failed to be cancelled", transform=transform.name)

        cancelled = Cancelled(f"{transform.name} was given up")
        outcome: Deferred[bytes] = Deferred(lambda _: give_up(cancelled))
        expired = TransformTimeout(f"{transform.name} took longer than its {allowed_s:g} s")
        timer = self._clock.callLater(max(0.0, remaining_s), give_up, expired)
        work.addBoth(settle)
        return outcome

    def _fail(self, call: _Call, failure: Failure) -> Failure:
        return Failure(self._explain(call, failure))

    def _explain(self, call: _Call, failure: Failure) -> XformError:
        """Turn what a transform raised into what its caller may know, and log the rest."""
        transform, plugin = call.entry.transform, call.entry.plugin
        error = failure.value
        assert error is not None
        for refusal in (*REFUSALS, TransformFailed):
            if isinstance(error, refusal):
                # A new one: a plugin may raise the same object each time, and its tracebacks hold every poem.
                explained: XformError = refusal(describe(error))
                break
        else:
            explained = TransformFailed(f"{transform.name} raised {type(error).__name__}", detail=_detail(error))
            if not isinstance(error, CancelledError):  # that is this service, giving the work up
                self.log.failure(
                    "transform {transform} of plugin {plugin} failed",
                    failure,
                    transform=transform.name,
                    plugin=plugin.label,
                )
        error.__traceback__ = error.__context__ = None
        return explained

    def _internal_error(self) -> InternalError:
        request_id = uuid.uuid4().hex
        self.log.failure("internal error {request_id}", request_id=request_id)
        return InternalError(request_id)


def _detail(error: BaseException) -> str:
    """Say what was raised and where, for whoever runs the transform in this process."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{describe(error)}{place}"
