"""One step of a request, ready to run, and what its errors mean. No Twisted: worker processes use it too."""

from collections.abc import Mapping, Sequence

import attrs

from xformd.errors import (
    BadOptions,
    GibberishError,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    Unavailable,
    XformError,
    safe_str,
)
from xformd.plugins.registry import Entry, Registry
from xformd.spec import OptionValue, Step

REFUSALS = (GibberishError, BadOptions, TooLarge, Unavailable, TransformFailed)
"""What a transform may raise to reject a request; the message reaches the caller."""

_LOG_WORDS = {
    GibberishError: "rejects this poem",
    BadOptions: "rejects its options",
    TooLarge: "would return too much",
    Unavailable: "is unavailable",
    TransformFailed: "failed",
}
"""What the log says: the author's words may quote the poem."""


@attrs.frozen
class Call:
    """A transform with its options: as the request has them, and converted for the function."""

    step: Step
    entry: Entry
    options: Mapping[str, OptionValue]

    @property
    def name(self) -> str:
        """The transform's name."""
        return self.entry.transform.name


def prepare(step: Step, registry: Registry) -> Call:
    """Look up a step's transform and convert its options; raise what ``resolve`` and ``convert`` do."""
    entry = registry.resolve(step.name)
    return Call(step, entry, entry.transform.convert(dict(step.options)))


def took_too_long(name: str, allowed_s: float) -> TransformTimeout:
    """Return the error for work that has exceeded its time limit."""
    return TransformTimeout(f"{name} took longer than its {allowed_s:g} s")


def name_all(calls: Sequence[Call]) -> str:
    """Return the names as a spec has them: ``wrap+upper``."""
    return "+".join(call.name for call in calls)


def too_large(call: Call, size_bytes: int, max_result_bytes: int, has: str = "has") -> TooLarge:
    """Return the error for a result that exceeds its limit."""
    return TooLarge(f"the result of {call.name} {has} {size_bytes} bytes; the limit is {max_result_bytes} bytes")


def check_fits(calls: Sequence[Call], poem_bytes: int, max_result_bytes: int) -> None:
    """Raise ``TooLarge`` before anything runs, if a step's result cannot fit as far as the transforms' authors say."""
    for call in calls:
        try:
            poem_bytes = int(call.entry.transform.least_bytes(poem_bytes, call.options))
        except BaseException:  # a plugin's, which held for its examples
            poem_bytes = 0
        if poem_bytes > max_result_bytes:
            raise too_large(call, poem_bytes, max_result_bytes, "would have at least")


def is_expected(error: BaseException) -> bool:
    """Whether a transform may raise this, so that it need not be logged."""
    return isinstance(error, REFUSALS)


def explain(call: Call, error: BaseException, detail: str = "") -> XformError:
    """Return the error that the caller gets for what a transform raised; ``detail`` is for who runs it at a terminal.

    The exception's traceback is dropped: a plugin may raise the same object each time, whose tracebacks would keep
    every poem alive.
    """
    error.__traceback__ = error.__context__ = None
    for refusal in REFUSALS:
        if isinstance(error, refusal):
            return name_in_log(call, refusal(safe_str(error), retry_after_ms=error.retry_after_ms))
    return name_in_log(call, TransformFailed(f"{call.name} raised {type(error).__name__}", detail=detail))


def name_in_log(call: Call, error: XformError) -> XformError:
    """Have the log name the transform, in our own words; return the error."""
    if (words := _LOG_WORDS.get(type(error))) is not None:
        error.log_message = f"{call.name} {words}"
    return error
