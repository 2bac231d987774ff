"""One step of a request, ready to run, and what its errors mean. No Twisted: worker processes use it too."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs

from xformd.errors import (
    BadOptions,
    BadRequest,
    GibberishError,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    Unavailable,
    XformError,
    safe_str,
)
from xformd.plugins import job
from xformd.plugins.media_type import can_take, suffix
from xformd.plugins.registry import Entry, Registry
from xformd.plugins.settings import hide
from xformd.spec import OptionValue, Step
from xformd.telemetry.tracebacks import SafeTraceback

_LOG_WORDS: Mapping[type[XformError], str] = {
    GibberishError: "rejects this poem",
    BadOptions: "rejects its options",
    TooLarge: "would return too much",
    Unavailable: "is unavailable",
    TransformFailed: "failed",
}
"""What the log says: the author's words may quote the poem."""

REFUSALS: tuple[type[XformError], ...] = tuple(_LOG_WORDS)
"""What a transform may raise to reject a request; the message reaches the caller."""


class WrongNumberOfResults(TransformFailed):
    """A batch has other than one result for each poem, which its author should see in the log."""


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


def check_types(calls: Sequence[Call]) -> None:
    """Raise ``BadRequest`` if a step does not take what the one before it produces."""
    for before, after in pairwise(calls):
        made, taker = before.entry.transform, after.entry.transform
        if not can_take(taker.accepts, made.produces, made.result_kind):
            accepted = " or ".join(taker.accepts)
            reason = f"{made.name} produces {made.produces}, and {taker.name} accepts {accepted}"
            raise BadRequest(f"{made.name}+{taker.name}: {reason}")


def argument(call: Call, poem: bytes, folder: str) -> str | bytes | Path:
    """Return a poem as the function takes it: as text, bytes or a new file in the job's folder."""
    transform = call.entry.transform
    if transform.kind != "file":
        return transform.decode(poem)
    path = job.free_path(folder, "poem", suffix(transform.accepts[0]))
    path.write_bytes(poem)
    return path


def invoke(call: Call, argument: object) -> Any:
    """Call the function with one poem; one that takes batches gets a list of one."""
    if call.entry.transform.batch is not None:
        return invoke_batch(call, [argument])[0]
    return call.entry.transform.function(argument, **call.options)


def invoke_batch(call: Call, poems: list[Any]) -> Sequence[object]:
    """Call the function with several poems; raise ``TransformFailed`` unless it returns as many results."""
    count = len(poems)
    results = call.entry.transform.function(poems, **call.options)
    if not isinstance(results, list | tuple):
        raise TransformFailed(f"{call.name} returned {type(results).__name__} where it must return a list of results")
    if len(results) != count:
        raise WrongNumberOfResults(f"{call.name} returned {len(results)} results for {count} poem{'s' * (count != 1)}")
    return results


def content(call: Call, result: object, folder: str, max_result_bytes: int) -> bytes:
    """Return what a function has returned as bytes; of a ``Path``, what the file has.

    Raises ``TransformFailed`` for a wrong type or no regular file in the job's folder, ``TooLarge`` past the limit.
    """
    transform = call.entry.transform
    if transform.result_kind == "file" and isinstance(result, Path):
        return job.read_file(call.name, result, folder, max_result_bytes)
    if isinstance(result, str) and len(result) > max_result_bytes:  # to encode it would take as much memory again
        raise too_large(call, len(result), max_result_bytes, "has" if result.isascii() else "has at least")
    if len(encoded := transform.encode(result)) > max_result_bytes:
        raise too_large(call, len(encoded), max_result_bytes)
    return encoded


def took_too_long(name: str, allowed_s: float) -> TransformTimeout:
    """Return the error for work that has exceeded its time limit."""
    return TransformTimeout(f"{name} took longer than its {allowed_s:g} s")


def name_all(calls: Sequence[Call]) -> str:
    """Return the names as a spec has them: ``wrap+upper``."""
    return "+".join(call.name for call in calls)


def too_large(call: Call, size_bytes: int, max_result_bytes: int, has: str = "has") -> TooLarge:
    """Return the error for a result that exceeds its limit."""
    return job.too_large(call.name, f"{has} {size_bytes}", max_result_bytes)


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
    return isinstance(error, REFUSALS) and not isinstance(error, WrongNumberOfResults)


def without_secrets(call: Call, raised: SafeTraceback) -> SafeTraceback:
    """Return what is reported of an exception without the secrets of the plugin that has raised it."""
    return SafeTraceback(*(hide(text, call.entry.plugin.secrets) for text in attrs.astuple(raised)))


def explain(call: Call, error: BaseException, detail: str = "") -> XformError:
    """Return the error that the caller gets for what a transform raised; see ``with_detail``.

    The exception's traceback is dropped: a plugin may raise the same object each time, whose tracebacks would keep
    every poem alive.
    """
    error.__traceback__ = error.__context__ = None
    for refusal in REFUSALS:
        if isinstance(error, refusal):
            words = hide(safe_str(error), call.entry.plugin.secrets)
            return name_in_log(call, refusal(words, retry_after_ms=error.retry_after_ms))
    return name_in_log(call, with_detail(TransformFailed(f"{call.name} raised {type(error).__name__}"), detail))


def with_detail(error: XformError, detail: str) -> XformError:
    """Return an error that says what a transform has raised and where, if its caller is who runs it here."""
    if not isinstance(error, TransformFailed) or not detail:
        return error
    return TransformFailed(detail if detail.startswith(error.message) else f"{error.message}: {detail}")


def name_in_log(call: Call, error: XformError) -> XformError:
    """Have the log name the transform, in our own words; return the error."""
    if (words := _LOG_WORDS.get(type(error))) is not None:
        error.log_message = f"{call.name} {words}"
    return error
