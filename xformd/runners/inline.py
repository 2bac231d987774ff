"""Runs a transform in the reactor's own thread: at once, or as a Deferred if the transform is asynchronous.

Invariant: nothing but an ``XformError`` leaves ``InlineRunner.run``, whatever a transform raises.
"""

import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import XformError
from xformd.net.deadline import within
from xformd.plugins.definition import Transform
from xformd.runners import PROGRAM, Caller, Reader
from xformd.runners.calls import (
    Call,
    argument,
    content,
    explain,
    invoke,
    is_expected,
    too_large,
    took_too_long,
    without_secrets,
)
from xformd.telemetry.rate_limited import FailureLog, RateLimitedLog
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import MakeTraceback, SafeTraceback

Run = Callable[[bytes], bytes | Deferred[bytes]]
"""Runs one transform with its options; raises whatever the transform raises."""

Outcome = bytes | Deferred[bytes] | Failure
"""What a transform has returned, encoded, or raised."""

SLOW_CALL_S = 0.05  # a transform that holds the reactor longer is logged: every other request waits for it

WARN_EVERY_S = 60.0


@attrs.define(eq=False, slots=False)
class InlineRunner:
    """Runs one step at a time, at once."""

    log = Logger()

    max_result_bytes: int
    _clock: IReactorTime
    stopwatch: Callable[[], float] = time.perf_counter
    _make_traceback: MakeTraceback = SafeTraceback.redacted

    def __attrs_post_init__(self) -> None:
        self._failures = FailureLog(self._clock)
        self._slow_calls = RateLimitedLog(self._clock, WARN_EVERY_S)

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,
        caller: Caller = PROGRAM,  # noqa: ARG002 - nothing ever waits here
        *,
        timing: RequestTiming | None = None,
        **_: object,
    ) -> bytes | Deferred[bytes]:
        """Run one transform; see ``Runner.run``."""
        (call,) = calls
        if timing is not None:
            timing.runs(call.name)
        started_s = self.stopwatch()
        outcome: Outcome
        try:
            outcome = _run(call, poem)
        except BaseException:  # SystemExit too: only the transform can have raised it
            outcome = Failure()
        if (held_s := self.stopwatch() - started_s) > SLOW_CALL_S:
            self.note_slow_call(call, held_s)
        if timing is not None:
            outcome = end_timing(timing, outcome)
        return self.finish_call(call, outcome, timing)

    def has_room(self, reader: Reader) -> None:
        """Nothing ever waits here."""

    def finish_call(self, call: Call, outcome: Outcome, timing: RequestTiming | None = None) -> bytes | Deferred[bytes]:
        """Turn an outcome into what ``run`` returns or raises."""
        if isinstance(outcome, bytes):
            return self._check(outcome, call)
        if isinstance(outcome, Failure):
            raise self._explain(outcome, call, timing)
        outcome.addCallback(self._check, call)
        outcome.addErrback(lambda failure: Failure(self._explain(failure, call, timing)))
        limit_s = call.entry.transform.timeout_s
        if limit_s is None:
            return outcome
        return within(self._clock, limit_s, call.name, outcome, lambda: took_too_long(call.name, limit_s))

    def note_slow_call(self, call: Call, seconds: float) -> None:
        """Log that a transform has held the reactor; at most once a minute for each."""
        self._slow_calls.add(
            call.name,
            self.log.warn,
            "transform {transform} of plugin {plugin} held the server for {milliseconds:.0f} ms;"
            " --isolate {transform} runs it in a worker",
            transform=call.name,
            plugin=call.entry.plugin.label,
            milliseconds=seconds * 1000,
        )

    def _check(self, result: bytes, call: Call) -> bytes:
        if len(result) > self.max_result_bytes:
            raise too_large(call, len(result), self.max_result_bytes)
        return result

    def _explain(self, failure: Failure, call: Call, timing: RequestTiming | None) -> XformError:
        error = failure.value
        assert error is not None
        # A CancelledError comes from the service, which has given the work up.
        if is_expected(error) or isinstance(error, CancelledError):
            return explain(call, error)
        raised = without_secrets(call, self._make_traceback(error, failure.getTracebackObject()))
        self._failures.failed(call, raised, timing)
        return explain(call, error, raised.detail)


def bind(call: Call) -> Run:
    """Return a function that runs one step, specialised so that the common case decides nothing for each poem.

    Its outcome is for ``InlineRunner.finish_call``.
    """
    transform = call.entry.transform
    if (transform.kind, transform.result_kind) != ("text", "text") or call.options or transform.batch is not None:
        return lambda poem: _run(call, poem)
    function = transform.function

    def run_on_text(poem: bytes) -> bytes | Deferred[bytes]:
        try:
            text = poem.decode()
        except UnicodeDecodeError:
            return _run(call, poem)  # raises an error that says what is wrong
        result = function(text)
        if type(result) is str:
            try:
                return result.encode()
            except UnicodeEncodeError:
                pass
        return _finish(transform, result)

    return run_on_text


def end_timing(timing: RequestTiming, outcome: Outcome) -> Outcome:
    """Stop the timing: now, or when a Deferred fires."""

    def end(result: bytes | Failure) -> bytes | Failure:
        timing.ends()
        return result

    if isinstance(outcome, Deferred):
        return outcome.addBoth(end)
    timing.ends()
    return outcome


def _run(call: Call, poem: bytes) -> bytes | Deferred[bytes]:
    transform = call.entry.transform
    if "file" in (transform.kind, transform.result_kind):  # in a program, or a server without workers
        with tempfile.TemporaryDirectory() as folder:
            return content(call, invoke(call, argument(call, poem, folder)), folder, sys.maxsize)
    return _finish(transform, invoke(call, transform.decode(poem)))


def _finish(transform: Transform, result: object) -> bytes | Deferred[bytes]:
    if type(result) is not str:  # nearly every transform returns one
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            return result.addCallback(transform.encode)
    return transform.encode(result)
