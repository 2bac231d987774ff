"""The log of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher


class Log(list[LogEvent]):
    @property
    def lines(self) -> list[str]:
        """Each event's message, without its traceback."""
        return [formatEvent(event).removesuffix(event.get("traceback", "")).rstrip("\n") for event in self]

    @property
    def tracebacks(self) -> list[LogEvent]:
        """The events that hold a traceback."""
        return [event for event in self if "log_failure" in event or "traceback" in event]


@contextmanager
def captured() -> Iterator[Log]:
    """Collect the events that are logged."""
    log = Log()
    observer = cast(ILogObserver, log.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield log
    finally:
        globalLogPublisher.removeObserver(observer)
