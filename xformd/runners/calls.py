"""One step of a request, ready to run, and what its outcome means. No Twisted here: worker processes use it too."""

import traceback
from collections.abc import Mapping, Sequence

import attrs

from xformd.errors import (
    REDACTED,
    BadOptions,
    GibberishError,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    XformError,
    safe_str,
)
from xformd.plugins.registry import Entry, Registry
from xformd.spec import OptionValue, Step

REFUSALS = (GibberishError, BadOptions, TooLarge)
"""What a transform may raise to say no to a poem or to an option's value; its message reaches the caller."""


@attrs.frozen
class Call:
    """A transform, and the options that a request gives it: as it says them, and as the function takes them."""

    step: Step
    entry: Entry
    options: Mapping[str, OptionValue]

    @property
    def name(self) -> str:
        """The transform's."""
        return self.entry.transform.name


def prepare(step: Step, registry: Registry) -> Call:
    """Look up a step's transform and convert its options.

    Args:
        step: of a spec.
        registry: which transforms there are.

    Returns:
        What to call.

    Raises:
        NoSuchTransform: or ``AmbiguousTransform``: the name means nothing here.
        BadOptions: naming the transform, the option and what it takes.
    """
    entry = registry.resolve(step.name)
    return Call(step, entry, entry.transform.convert(dict(step.options)))


def took_too_long(name: str, allowed_s: float) -> TransformTimeout:
    """Say that something did not end in its time."""
    return TransformTimeout(f"{name} took longer than its {allowed_s:g} s")


def name_all(calls: Sequence[Call]) -> str:
    """Name several steps as a spec does: ``wrap+upper``."""
    return "+".join(call.name for call in calls)


def run(call: Call, poem: bytes, max_result_bytes: int) -> bytes:
    """Give a poem to a plain function.

    Args:
        call: which, with what options.
        poem: the poem, as it came.
        max_result_bytes: how long the result may be.

    Returns:
        The result.

    Raises:
        BaseException: whatever the function raised, and what the three functions called here say they raise.
    """
    transform = call.entry.transform
    result = transform.function(transform.decode(poem), **call.options)
    return check_size(call, transform.encode(result), max_result_bytes)


def check_size(call: Call, result: bytes, max_result_bytes: int) -> bytes:
    """Give a result back.

    Raises:
        TooLarge: it is over the limit.
    """
    if len(result) > max_result_bytes:
        raise TooLarge(f"the result of {call.name} has {len(result)} bytes; the limit is {max_result_bytes} bytes")
    return result


def is_expected(error: BaseException) -> bool:
    """Whether a transform raised something that it may raise, so that there is nothing to look into."""
    return isinstance(error, (*REFUSALS, TransformFailed))


def explain(call: Call, error: BaseException) -> XformError:
    """Turn what a transform raised into what its caller may know.

    Args:
        call: what raised it.
        error: what it raised. Its traceback is dropped: a plugin may raise the same object each time, and its
            tracebacks hold every poem.

    Returns:
        A new error.
    """
    detail = _detail(error)
    error.__traceback__ = error.__context__ = None
    for refusal in (*REFUSALS, TransformFailed):
        if isinstance(error, refusal):
            return refusal(safe_str(error), log_message=REDACTED)
    return TransformFailed(f"{call.name} raised {type(error).__name__}", detail=detail)


def _detail(error: BaseException) -> str:
    """Say what was raised and where, for whoever runs the transform in this process."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{safe_str(error)}{place}"
