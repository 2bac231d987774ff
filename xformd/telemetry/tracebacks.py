"""What was raised and where, fit for a log: without the words of the exception, which may quote a poem.

A transform raises what it likes, and often says what it was given: ``invalid literal for int(): 'The Owl'``. So a log
names types, files, lines and functions. What the system says of an ``OSError`` is the system's own, and stays.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from types import TracebackType

import attrs

from xformd.errors import one_line, printable

MAX_FRAMES = 20
"""The innermost, for each exception: a recursion without end must not fill the log."""

MAX_CHAIN = 5
"""An exception and its causes."""

MAX_ERRNO = 4_096
"""No system has a higher one; a plugin may have."""

MAX_TRACEBACK_CHARACTERS = 16_384

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _lines(text: str) -> str:
    return "\n".join(map(printable, text[:MAX_TRACEBACK_CHARACTERS].splitlines()))


@attrs.frozen
class SafeTraceback:
    """An exception, for a log.

    Args:
        error: its type, on one line.
        traceback: where it comes from, and its causes; several lines.
    """

    error: str = attrs.field(converter=one_line)
    traceback: str = attrs.field(converter=_lines)

    @classmethod
    def of(cls, error: BaseException, trace: TracebackType | None = None) -> "SafeTraceback":
        """Look at an exception.

        Args:
            error: what was raised.
            trace: its traceback, where it does not have it any more.
        """
        try:
            parts = [*islice(_chain(error, trace or error.__traceback__), MAX_CHAIN)]
        except Exception:  # a class of its own may do anything when it is looked at
            parts = [type(error).__name__]
        return cls(_name(error), "".join(reversed(parts)))

    @classmethod
    def in_full(cls, error: BaseException, trace: TracebackType | None = None) -> "SafeTraceback":
        """Look at an exception with all that it says: for its author, in a process of his own."""
        return cls(_name(error), "".join(traceback.format_exception(type(error), error, trace or error.__traceback__)))


Look = Callable[[BaseException, TracebackType | None], SafeTraceback]
"""``SafeTraceback.of``, or ``SafeTraceback.in_full``."""


def on_uncaught(tell: Callable[[str, SafeTraceback], object]) -> None:
    """Have it told, from now on, what is raised in this process where nobody can catch it.

    Args:
        tell: is given where that was, and what; from any thread.
    """

    def in_thread(raised: threading.ExceptHookArgs) -> None:
        if raised.exc_value is not None and not isinstance(raised.exc_value, SystemExit):
            name = "a thread" if raised.thread is None else f"the thread {one_line(raised.thread.name)}"
            tell(f"uncaught in {name}", SafeTraceback.of(raised.exc_value, raised.exc_traceback))

    def nowhere(raised: "sys.UnraisableHookArgs") -> None:
        if raised.exc_value is not None:
            tell("raised where nobody can catch it", SafeTraceback.of(raised.exc_value, raised.exc_traceback))

    threading.excepthook = in_thread
    sys.unraisablehook = nowhere


def _name(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, OSError) and type(error.errno) is int and 0 < error.errno < MAX_ERRNO:
        return f"{name}: {os.strerror(error.errno)}"
    return name


def _chain(error: BaseException, trace: TracebackType | None) -> Iterator[str]:
    """Give an exception, then each that led to it, from the last to the first."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            yield _section(error, trace)
            return
        yield (_CONTEXT if error.__cause__ is None else _CAUSE) + _section(error, trace)
        error, trace = before, before.__traceback__


def _section(error: BaseException, trace: TracebackType | None) -> str:
    # Without the lines of code, for which files would have to be read.
    frames = traceback.StackSummary.extract(traceback.walk_tb(trace), limit=-MAX_FRAMES, lookup_lines=False)
    heading = "Traceback (most recent call last):\n" if frames else ""
    return heading + "".join(map(_place, frames)) + f"{_name(error)}\n"


def _place(frame: traceback.FrameSummary) -> str:
    # Code that was made at run time may have been made from a poem, with its names.
    name = "" if frame.filename.startswith("<") else f", in {frame.name}"
    return f'  File "{frame.filename}", line {frame.lineno}{name}\n'
