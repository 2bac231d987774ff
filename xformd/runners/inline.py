"""Runs a transform in the reactor's own thread: at once, or as a Deferred where the transform gives one."""

import inspect
from collections.abc import Mapping

from twisted.internet.defer import Deferred

from xformd.options import OptionValue
from xformd.transform import Transform


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
    result = transform.function(transform.decode(poem), **options)
    if type(result) is not str:  # what nearly every transform gives
        if inspect.iscoroutine(result):
            result = Deferred.fromCoroutine(result)
        if isinstance(result, Deferred):
            return result.addCallback(transform.encode)
    return transform.encode(result)
