"""Runs a transform in the reactor's own thread: at once, or as a Deferred where the transform gives one."""

import inspect
from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred

from xformd.options import OptionValue
from xformd.transform import Transform

Run = Callable[[bytes], bytes | Deferred[bytes]]
"""Gives a poem to one transform, with its options."""


def run(transform: Transform, options: Mapping[str, OptionValue], poem: bytes) -> bytes | Deferred[bytes]:
    """Give a poem to a transform.

    Args:
        transform: what to run.
        options: its options, converted.
        poem: the poem, as it came.

    Returns:
        The result; a Deferred of it from an ``async def`` or from a function that gave a Deferred.

    Raises:
        GibberishError: a text transform was given bytes that are not UTF-8.
        TransformFailed: the function returned something that is no poem.
        BaseException: whatever else the function raised. From a Deferred the same come as failures.
    """
    return _finish(transform, transform.function(transform.decode(poem), **options))


def bind(transform: Transform, options: Mapping[str, OptionValue]) -> Run:
    """Give what does the same as ``run``, with less to decide for each poem.

    Args:
        transform: what to run.
        options: its options, converted.

    Returns:
        Takes a poem, and gives or raises what ``run`` does.
    """
    if transform.kind != "text" or options:
        return lambda poem: run(transform, options, poem)
    function = transform.function

    def run_on_text(poem: bytes) -> bytes | Deferred[bytes]:
        try:
            text = poem.decode()
        except UnicodeDecodeError:
            return run(transform, options, poem)  # which says what is wrong
        result = function(text)
        if type(result) is str:
            try:
                return result.encode()
            except UnicodeEncodeError:
                pass
        return _finish(transform, result)

    return run_on_text


def _finish(transform: Transform, result: object) -> bytes | Deferred[bytes]:
    if type(result) is not str:  # what nearly every transform gives
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            return result.addCallback(transform.encode)
    return transform.encode(result)
