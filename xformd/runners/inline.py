"""Runs a transform in the reactor's own thread: at once, or as a Deferred where the transform gives one."""

import inspect
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.deadline import within
from xformd.errors import XformError
from xformd.runners import Caller
from xformd.runners.calls import Call, check_size, explain, is_expected, took_too_long


class InlineRunner:
    """Runs one step at a time, here and now.

    Args:
        max_result_bytes: how long a result may be.
        clock: a reactor, or a clock in its place.
    """

    log = Logger()

    def __init__(self, max_result_bytes: int, clock: IReactorTime) -> None:
        self._max_result_bytes = max_result_bytes
        self._clock = clock

    def run(self, calls: Sequence[Call], poem: bytes, caller: Caller | None = None) -> bytes | Deferred[bytes]:
        """Give a poem to a transform, whoever asks; see ``Runner.run``."""
        del caller  # it asks for one thing at a time here
        (call,) = calls
        transform = call.entry.transform
        try:
            result = transform.function(transform.decode(poem), **call.options)
            if type(result) is not str:  # what nearly every transform gives
                if inspect.iscoroutine(result):
                    result = Deferred.fromCoroutine(result)
                if isinstance(result, Deferred):
                    return self._wait(call, result)
            encoded = transform.encode(result)
            return encoded if len(encoded) <= self._max_result_bytes else self._check(encoded, call)
        except BaseException:  # SystemExit and its like come from the transform: nothing else runs in there
            raise self._explain(Failure(), call) from None

    def caller_has_room(self, caller: Caller) -> None:
        """Nothing ever waits here."""

    def _wait(self, call: Call, work: Deferred[Any]) -> Deferred[bytes]:
        transform = call.entry.transform
        result: Deferred[bytes] = work.addCallback(transform.encode).addCallback(self._check, call)
        result.addErrback(lambda failure: Failure(self._explain(failure, call)))
        if transform.timeout_s is None:
            return result
        limit_s = transform.timeout_s
        return within(self._clock, limit_s, call.name, result, lambda: took_too_long(call.name, limit_s))

    def _check(self, result: bytes, call: Call) -> bytes:
        return check_size(call, result, self._max_result_bytes)

    def _explain(self, failure: Failure, call: Call) -> XformError:
        error = failure.value
        assert error is not None
        # A CancelledError is this service, giving the work up.
        if not is_expected(error) and not isinstance(error, CancelledError):
            self.log.failure(
                "transform {transform} of plugin {plugin} failed",
                failure,
                transform=call.name,
                plugin=call.entry.plugin.label,
            )
        return explain(call, error)
