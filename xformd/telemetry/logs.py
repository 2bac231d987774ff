"""The log of a server on its standard error: as text, or as one JSON object per line.

No poem stands in it: of what is raised it tells type and place (``xformd.telemetry.tracebacks``), whoever logs it.
What a plugin prints, warns of or logs itself is the plugin's own word, and goes in as it is, on lines of its own.
"""

import io
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import attrs
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
)
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.telemetry.tracebacks import SafeTraceback, report_uncaught

RESERVED = ("time", "level", "namespace", "message", "traceback")
"""What every line of JSON may have; a field of an event does not take its place."""

MAX_LINE_CHARACTERS = 1_000
"""Of what a plugin prints."""

_STREAMS = "stdout", "stderr"
_LEVELS = {logging.WARNING: LogLevel.warn, logging.ERROR: LogLevel.error, logging.CRITICAL: LogLevel.critical}

log = Logger()


def start(*observers: ILogObserver) -> None:
    """Send Twisted's log to these observers, and to nothing else."""
    globalLogBeginner.beginLoggingTo(observers, redirectStandardIO=False, discardBuffer=True)


def start_server_log(log_format: str) -> None:
    """Begin the log of a server.

    Args:
        log_format: ``text`` or ``json``. As JSON, lines that plugins print are objects too.
    """
    start(observer(log_format))
    if log_format == "json":
        sys.stdout = Printed(sys.stdout, "stdout", LogLevel.info)
        sys.stderr = Printed(sys.stderr, "stderr", LogLevel.error)
    logging.getLogger().addHandler(PythonLog(logging.WARNING))
    report_uncaught(_uncaught)


def _uncaught(where: str, raised: SafeTraceback) -> None:
    log.critical("{where}\n{traceback}", where=where, **attrs.asdict(raised))


def observer(log_format: str = "text") -> ILogObserver:
    """Give an observer that writes what an operator wants to know to standard error.

    Args:
        log_format: ``text`` or ``json``.
    """
    levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    for namespace in ("xformd", *_STREAMS):
        levels.setLogLevelForNamespace(namespace, LogLevel.info)
    return FilteringLogObserver(Lines(sys.stderr, as_json if log_format == "json" else as_text), [levels])


def json_observer() -> ILogObserver:
    """Give the one that writes JSON: for ``twistd --logger xformd.telemetry.logs.json_observer``."""
    return observer("json")


@implementer(ILogObserver)
class Lines:
    """Writes events, and never raises.

    Args:
        out: where to.
        tell: gives the text of an event.
    """

    def __init__(self, out: TextIO, tell: Callable[[LogEvent], str]) -> None:
        self._out = out
        self._tell = tell

    def __call__(self, event: LogEvent) -> None:
        """Write an event."""
        try:
            text = self._tell(event)
        except Exception as error:  # an event holds what somebody else has put into it
            lost = {"log_format": f"an event could not be told: {type(error).__name__}", "log_level": LogLevel.error}
            text = self._tell(lost)
        with suppress(OSError, ValueError):  # nobody reads it
            self._out.write(text + "\n")
            self._out.flush()


def as_text(event: LogEvent) -> str:
    """Give an event as lines for a person; those after the first are indented."""
    message, traceback = _told(event)
    told = f"{message}\n{traceback}" if traceback else message
    level = getattr(event.get("log_level"), "name", "-")
    line = f"{formatTime(event.get('log_time'))} [{event.get('log_namespace', '-')}#{level}] {told}"
    return line.replace("\n", "\n\t")


def as_json(event: LogEvent) -> str:
    """Give an event as an object on one line, in ASCII."""
    message, traceback = _told(event)
    time = event.get("log_time")
    told = {
        "time": _time(time) if isinstance(time, float) else None,
        "level": getattr(event.get("log_level"), "name", None),
        "namespace": event.get("log_namespace"),
        "message": message,
        **dict(_fields(event)),
    }
    if traceback:
        told["traceback"] = traceback
    # JSON lets DEL stand as it is; a terminal does not.
    return json.dumps(told).replace("\x7f", "\\u007f")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(event: LogEvent) -> Iterable[tuple[str, Any]]:
    """Give what is a plain value. What Twisted's older way to log puts into an event is in its message."""
    if event.get("log_namespace") == "log_legacy":
        return
    for key, value in event.items():
        if key in RESERVED or key.startswith("log_") or type(value) not in (str, int, float, bool, type(None)):
            continue
        yield key, str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _told(event: LogEvent) -> tuple[str, str]:
    """Give an event's message, and its traceback if there is one."""
    failure = event.get("log_failure", event.get("failure"))
    if isinstance(failure, Failure) and failure.value is not None:
        # In the older way, the message is the traceback, with all words.
        message = str(event.get("why") or "Unhandled Error") if event.get("isError") else formatEvent(event)
        return message.strip(), SafeTraceback.redacted(failure.value, failure.getTracebackObject()).traceback
    traceback = event.get("traceback")
    traceback = traceback if isinstance(traceback, str) else ""
    return formatEvent(event).removesuffix(traceback).rstrip("\n"), traceback


class PythonLog(logging.Handler):
    """Passes on what libraries and plugins log with Python's ``logging``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        try:
            told = record.getMessage()
        except Exception:
            told = "a message that cannot be told"
        if record.name == "asyncio":  # it goes on with whatever a callback was given
            told = told.partition("\n")[0].partition("(")[0]
        level = _LEVELS.get(record.levelno // 10 * 10, LogLevel.warn)
        logger = Logger(namespace=record.name)
        if record.exc_info and record.exc_info[1] is not None:
            raised = SafeTraceback.redacted(record.exc_info[1], record.exc_info[2])
            logger.emit(level, "{log_said}\n{traceback}", log_said=told, **attrs.asdict(raised))
        else:
            logger.emit(level, "{log_said}", log_said=told)


class Printed(io.TextIOBase):
    """Stands for a standard stream: what is printed becomes events, one for each line.

    Args:
        stream: what it stands for, for whoever asks for a descriptor.
        name: of the stream.
        level: of the events.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO, name: str, level: Any) -> None:
        self.fileno = stream.fileno  # type: ignore[method-assign]
        self._logger = Logger(namespace=name)
        self._level = level
        self._rest = ""

    def writable(self) -> bool:
        """Say that it is."""
        return True

    def write(self, text: str, /) -> int:
        """Log each line that is whole, or long."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > MAX_LINE_CHARACTERS:
            lines, self._rest = [*lines, self._rest], ""
        for line in filter(None, lines):
            self._logger.emit(self._level, "{log_said}", log_said=line[:MAX_LINE_CHARACTERS])
        return len(text)
