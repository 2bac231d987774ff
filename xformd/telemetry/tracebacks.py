"""Make tracebacks fit for a log: without exception messages, which may quote a poem.

Invariant: nothing that a client sent gets into a ``SafeTraceback.redacted``. Transforms raise messages such as
``invalid literal for int(): 'The Owl'``, so a log names only types, files, lines and functions. The operating system's
words in an ``OSError`` hold nothing of a client's, and stay.
"""

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType

import attrs

from xformd.errors import one_line, printable, safe_str

MAX_FRAMES = 20  # the innermost frames of each exception: an endless recursion must not fill the log
MAX_CHAIN = 5  # an exception and its causes
MAX_ERRNO = 4_096  # no system has a higher one; an exception that a plugin makes may

MAX_TRACEBACK_CHARACTERS = 16_384

_match_ours = re.compile(rf"<|{re.escape(str(Path(__file__).parents[1]))}/|.*/(?:importlib|pluggy)/").match
"""Files whose code calls a plugin's."""

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _lines(text: str) -> str:
    return "\n".join(map(printable, text[:MAX_TRACEBACK_CHARACTERS].splitlines()))


@attrs.frozen
class SafeTraceback:
    """What a log shows of an exception: its type on one line; its place and its causes on several.

    ``detail`` is its message and place, for the person who runs the transform; it stays empty where anyone else reads.
    """

    error: str = attrs.field(converter=one_line)
    traceback: str = attrs.field(converter=_lines)
    detail: str = attrs.field(default="", converter=one_line)

    def log_fields(self) -> dict[str, str]:
        """Return the fields of a log event."""
        return {"error": self.error, "traceback": self.traceback}

    @classmethod
    def redacted(cls, error: BaseException, trace: TracebackType | None = None) -> "SafeTraceback":
        """Describe an exception without its messages; ``trace`` is its traceback if it has lost it."""
        try:
            parts = [*islice(_chain(error, trace or error.__traceback__), MAX_CHAIN)]
        except Exception:  # the attributes of a plugin's exception may raise anything
            parts = [type(error).__name__]
        return cls(_name(error), "".join(reversed(parts)))

    @classmethod
    def unredacted(cls, error: BaseException, trace: TracebackType | None = None) -> "SafeTraceback":
        """Describe an exception in full: for the plugin's author, at a terminal."""
        trace = trace or error.__traceback__
        lines = traceback.format_exception(type(error), error, trace)
        return cls(_name(error), "".join(lines), safe_str(error) + place_of(error, trace))


MakeTraceback = Callable[[BaseException, TracebackType | None], SafeTraceback]
"""``SafeTraceback.redacted``, or ``SafeTraceback.unredacted``."""


def report_uncaught(report: Callable[[str, SafeTraceback], object]) -> None:
    """Report what is raised where no code can catch it, with the place, from any thread, instead of printing it."""

    def in_thread(raised: threading.ExceptHookArgs) -> None:
        if raised.exc_value is not None and not isinstance(raised.exc_value, SystemExit):
            name = "a thread" if raised.thread is None else f"the thread {one_line(raised.thread.name)}"
            report(f"uncaught in {name}", SafeTraceback.redacted(raised.exc_value, raised.exc_traceback))

    def unraisable(raised: "sys.UnraisableHookArgs") -> None:
        if raised.exc_value is not None:
            report("raised where nobody can catch it", SafeTraceback.redacted(raised.exc_value, raised.exc_traceback))

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def place_of(error: BaseException, trace: TracebackType | None = None) -> str:
    """Return where a plugin has raised an exception, in brackets with the line's text; nothing if that is not known.

    That is the innermost line of its own code, of the folder of the first file that is not ours, not of what it calls.
    """
    if isinstance(error, SyntaxError) and error.text:  # its words have the rest
        return f": {error.text.strip()}"
    frames = [each for each in traceback.extract_tb(trace or error.__traceback__) if not _match_ours(each.filename)]
    if not frames:
        return ""
    folder = str(Path(frames[0].filename).parent)
    frame = [each for each in frames if each.filename.startswith(folder)][-1]
    return f" ({frame.filename}, line {frame.lineno}: {frame.line})"


def _name(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, OSError) and type(error.errno) is int and 0 < error.errno < MAX_ERRNO:
        return f"{name}: {os.strerror(error.errno)}"
    return name


def _chain(error: BaseException, trace: TracebackType | None) -> Iterator[str]:
    """Yield an exception, then each that led to it, from the last to the first."""
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
    # Without the source lines: reading files could block.
    frames = traceback.StackSummary.extract(traceback.walk_tb(trace), limit=-MAX_FRAMES, lookup_lines=False)
    heading = "Traceback (most recent call last):\n" if frames else ""
    return heading + "".join(map(_place, frames)) + f"{_name(error)}\n"


def _place(frame: traceback.FrameSummary) -> str:
    # Code made at run time may have been made from a poem, names included.
    name = "" if frame.filename.startswith("<") else f", in {frame.name}"
    return f'  File "{frame.filename}", line {frame.lineno}{name}\n'
