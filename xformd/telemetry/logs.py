"""Write the log of a server to standard error or a file, as text or as one JSON object on each line.

Invariant: xformd puts no poem into it. Of an exception it shows only the type and the place (``tracebacks``), even
where Twisted or asyncio logs it, and of no field a character that a terminal interprets. What a plugin itself prints in
the server is logged line by line. Nobody waits for a reader.
"""

import atexit
import io
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEvent,
    formatTime,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError, printable, printable_json
from xformd.telemetry.access_log import STDERR, LineWriter
from xformd.telemetry.timing import utc_time
from xformd.telemetry.tracebacks import SafeTraceback, report_uncaught

RESERVED = ("time", "level", "namespace", "message", "traceback")
"""Keys of a line of JSON that no field of an event replaces."""

MAX_LINE_CHARACTERS = 1_000  # the longest line that a plugin may print; a longer one is cut

LINES_A_SECOND, MAX_BURST_LINES = 10, 30
"""The rate and the burst of lines that each namespace may log, those of tracebacks included."""

MAX_DEBT_LINES = 100  # the most that one text can overdraw its namespace's budget, however long it is
MAX_BUDGETS = 1_000  # how many namespaces are tracked; a plugin may create any number

_OPERATORS = ("xformd.server.", "xformd.net.run", "xformd.net.listener", "xformd.telemetry.logs")
"""Their lines are never left out: no client can cause them."""

_STREAMS = "stdout", "stderr"
_filter = LogLevelFilterPredicate()  # of what every observer here writes
_LEVELS = {logging.WARNING: LogLevel.warn, logging.ERROR: LogLevel.error, logging.CRITICAL: LogLevel.critical}

log = Logger()


def _report(**fields: object) -> bool:
    has_room = _writer.has_room
    if has_room:
        log.warn("{message}", **fields)
    return has_room


_writer: LineWriter[bytes] = LineWriter("log", STDERR, bytes, _report)
stop = atexit.register(_writer.stop)
reopen = _writer.reopen


def _write(text: str) -> None:
    """Write a part of the log, without waiting for whoever reads it."""
    if sys.__stderr__ is None and _writer.is_stderr:
        return  # it was closed, and its descriptor may be a client's by now
    data = text.encode(errors="backslashreplace")
    for start in range(0, len(data), MAX_LINE_CHARACTERS):  # a long text takes several of the places
        _writer.add(data[start : start + MAX_LINE_CHARACTERS])
    _writer.start()  # for the first line, after a fork, and for what is printed after a stop


def _beginning(text: str) -> str:
    """Return what may be logged at once, and count the lines left out: a 64 KiB poem may have 65,536."""
    rest = text.split("\n", LINES_A_SECOND)[LINES_A_SECOND:]
    if not any(rest):
        return text
    _writer.leave_out(f"more than {LINES_A_SECOND} at once", rest[0].rstrip("\n").count("\n") + 1)
    return text[: -len(rest[0])]


class _Budgets(dict[str, tuple[float, float]]):
    """How many more lines each namespace may log, and when that was counted.

    Most callers limit and count what they log. This catches other floods, of plugins' own lines for example.
    """

    def admits(self, namespace: str, text: str) -> bool:
        """Count the lines of a text, or leave it out."""
        now_s = time.monotonic()
        lines, since_s = self.get(namespace, (0.0, -math.inf))
        lines = min(MAX_BURST_LINES, lines + LINES_A_SECOND * (now_s - since_s))
        if lines < 1 and not namespace.startswith(_OPERATORS):
            _writer.leave_out(f"more than {LINES_A_SECOND} a second: {namespace}")
            return False
        if len(self) >= MAX_BUDGETS:
            self.clear()
        self[namespace] = max(-MAX_DEBT_LINES, lines - text.count("\n") - len(text) // MAX_LINE_CHARACTERS), now_s
        return True


def start(*observers: ILogObserver) -> None:
    """Send Twisted's log to these observers alone."""
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)


def set_level(name: str) -> None:
    """Write lines of this level and above: ``debug``, ``info``, ``warn`` or ``error``.

    Of other libraries warnings count, unless it is ``debug``; what plugins print in the server is always written.
    """
    level = LogLevel.levelWithName(name)
    _filter.setLogLevelForNamespace("", level if level == LogLevel.debug else max(level, LogLevel.warn))
    _filter.setLogLevelForNamespace("xformd", level)
    for stream in _STREAMS:
        _filter.setLogLevelForNamespace(stream, LogLevel.info)


set_level("info")


def start_server_log(log_format: str, file: Path = STDERR, level: str = "info") -> None:
    """Start the log of a server, as ``text`` or ``json``, with what plugins print in it.

    Raises:
        ConfigError: the file cannot be opened.
    """
    set_level(level)
    _write_to(file)
    sys.stdout = LoggedStream(sys.stdout, "stdout", LogLevel.info)
    sys.stderr = LoggedStream(sys.stderr, "stderr", LogLevel.error)
    start(observer(log_format))
    logging.getLogger().addHandler(LoggingHandler(logging.WARNING))
    report_uncaught(
        lambda where, raised: log.critical("{where}\n{traceback}", where=where, **raised.log_fields()),
    )


def join_twistd(log_format: str, file: Path, level: str) -> None:
    """Write twistd's log to the file too, if there is one; raise as ``start_server_log`` does."""
    _write_to(file)
    set_level(level)
    if file != STDERR:
        globalLogPublisher.addObserver(observer(log_format))


def _write_to(file: Path) -> None:
    try:
        _writer.move(file)
    except OSError as error:
        raise ConfigError(f"cannot open {file.absolute()}: {error.strerror}", setting="log_file") from error


def observer(log_format: str = "text") -> ILogObserver:
    """Return an observer that writes warnings, errors, and xformd's own information to standard error."""
    _lines.render = _RENDER[log_format]
    return _observer


@implementer(ILogObserver)
class LineObserver:
    """Writes events, and never raises."""

    def __init__(self, write: Callable[[str], object], render: Callable[[LogEvent], str]) -> None:
        self._write = write
        self.render = render
        self._budgets = _Budgets()

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        try:
            text = self.render(event)
        except Exception as error:  # an event's fields may be objects that raise when they are formatted
            text = self.render(
                {"log_format": f"cannot render an event: {type(error).__name__}", "log_level": LogLevel.error}
            )
        namespace = str(event.get("log_namespace"))
        if self._budgets.admits("what is printed" if namespace in _STREAMS else namespace, f"{text}\n"):
            self._write(f"{text}\n")


def as_text(event: LogEvent) -> str:
    """Render an event as lines of text; those after the first are indented."""
    message, traceback = _message_and_traceback(event)
    text = f"{message}\n{traceback}" if traceback else message
    level = getattr(event.get("log_level"), "name", "-")
    line = f"{formatTime(event.get('log_time'))} [{event.get('log_namespace', '-')}#{level}] {text}"
    return "\n\t".join(map(printable, line.expandtabs(4).split("\n")))


def as_json(event: LogEvent) -> str:
    """Render an event as a JSON object on one line, in ASCII."""
    message, traceback = _message_and_traceback(event)
    time = event.get("log_time")
    line = {
        "time": utc_time(time) if isinstance(time, float) else None,
        "level": getattr(event.get("log_level"), "name", None),
        "namespace": event.get("log_namespace"),
        "message": message,
        **dict(_fields(event)),
    }
    if traceback:
        line["traceback"] = traceback
    return printable_json(line)


def _fields(event: LogEvent) -> Iterable[tuple[str, Any]]:
    """Yield the fields whose values are plain."""
    if event.get("log_namespace") == "log_legacy":  # of twisted.python.log, whose fields are in the message anyway
        return
    for key, value in event.items():
        if key in RESERVED or key.startswith("log_") or type(value) not in (str, int, float, bool, type(None)):
            continue
        yield key, str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _message_and_traceback(event: LogEvent) -> tuple[str, str]:
    failure = event.get("log_failure", event.get("failure"))
    if isinstance(failure, Failure) and failure.value is not None:
        # For twisted.python.log the message is the whole traceback, unredacted.
        message = str(event.get("why") or "Unhandled Error") if event.get("isError") else formatEvent(event)
        return message.strip(), SafeTraceback.redacted(failure.value, failure.getTracebackObject()).traceback
    traceback = event.get("traceback")
    traceback = traceback if isinstance(traceback, str) else ""
    return _beginning(formatEvent(event).removesuffix(traceback)).rstrip("\n"), traceback


_RENDER = {"text": as_text, "json": as_json}
_lines = LineObserver(_write, as_text)
_observer = FilteringLogObserver(_lines, [_filter])


class LoggingHandler(logging.Handler):
    """Passes on to Twisted's log what libraries and plugins log with Python's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        try:
            text = record.getMessage()
        except Exception:
            text = "a message that cannot be formatted"
        if record.name == "asyncio":  # the rest shows the arguments of a callback
            text = text.partition("\n")[0].partition("(")[0]
        level = _LEVELS.get(record.levelno // 10 * 10, LogLevel.warn)
        logger = Logger(namespace=record.name)
        if record.exc_info and record.exc_info[1] is not None:
            raised = SafeTraceback.redacted(record.exc_info[1], record.exc_info[2])
            logger.emit(level, "{log_text}\n{traceback}", log_text=text, **raised.log_fields())
        else:
            logger.emit(level, "{log_text}", log_text=text)


class LoggedStream(io.TextIOBase):
    """Replaces a standard stream, and logs each line that is printed to it in the namespace ``name``."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO, name: str, level: Any) -> None:
        self.fileno = stream.fileno  # type: ignore[method-assign]
        self._rest = ""
        self._logger = Logger(namespace=name)
        self._level = level

    def writable(self) -> bool:
        """Return True."""
        return True

    def reconfigure(self, **_: object) -> None:
        """Ignore it: a line of the log has the log's encoding."""

    def write(self, text: str, /) -> int:
        """Log each line that is complete, or long."""
        *lines, self._rest = _beginning(self._rest + text).split("\n")
        if len(self._rest) > MAX_LINE_CHARACTERS:
            lines, self._rest = [*lines, self._rest], ""
        for line in filter(None, lines):
            self._logger.emit(self._level, "{log_text}", log_text=line[:MAX_LINE_CHARACTERS])
        return len(text)
