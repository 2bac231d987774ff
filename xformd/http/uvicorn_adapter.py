"""What uvicorn's protocol needs from us: a transport over one of our connections, its settings, a log, a ``Date``.

Invariant: uvicorn never touches a socket, and never logs anywhere but in our log.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from xformd.dialects.interfaces import Connection
from xformd.telemetry.metrics import Metrics


class _UvicornLogHandler(logging.Handler):
    """Copies what uvicorn logs about a failing application into our log."""

    log = Logger(namespace="xformd.http")

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        failure = None if error is None else Failure(error)
        self.log.failure("HTTP: {message}", failure, message=record.getMessage().strip())


# Outside of the logger tree: clients' mistakes are logged elsewhere, and Python would print these to standard error.
_uvicorn_log = logging.Logger("xformd.http", logging.ERROR)
_uvicorn_log.addHandler(_UvicornLogHandler())


@attrs.frozen
class UvicornSettings:
    """What all connections of one HTTP port share. ``metrics`` counts requests that no application sees."""

    metrics: Metrics
    config: Config
    state: ServerState = attrs.field(factory=ServerState)
    log: logging.Logger = _uvicorn_log


def uvicorn_settings(application: Any, metrics: Metrics) -> UvicornSettings:
    """Configure uvicorn's protocol to serve an ASGI application."""
    config = Config(
        application,
        http=HttpToolsProtocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",  # rejected requests are logged by us
        access_log=False,
        proxy_headers=False,
    )
    config.load()
    return UvicornSettings(metrics, config)


_date: tuple[int, list[tuple[bytes, bytes]]] = (0, [])


def date_header() -> list[tuple[bytes, bytes]]:
    """Return the ``Date`` header (RFC 9110), formatted once a second."""
    global _date
    now = int(time.time())
    if now != _date[0]:
        _date = now, [(b"date", formatdate(now, usegmt=True).encode())]
    return _date[1]


class HttpTransport(asyncio.Transport):
    """An asyncio transport over one of our connections. It sends the head and the body of a response together."""

    def __init__(self, connection: Connection, handler: HttpToolsProtocol, may_read: Callable[[], bool]) -> None:
        super().__init__()
        self._connection = connection
        self._handler = handler
        self._may_read = may_read
        self._max_unread_bytes = connection.limits.max_unread_output_bytes
        self._pending: list[bytes] = []
        self._flushing: asyncio.Handle | None = None
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the default: no application asks for addresses, and looking them up costs as much as a request."""
        del name
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data by the end of this turn of the loop, or at the next ``flush()``."""
        if self._is_closing:
            return
        self._pending.append(bytes(data))
        if self._flushing is None:
            self._flushing = self._handler.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what is pending."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._pending and not self._is_closing:
            data, self._pending = b"".join(self._pending), []
            self._connection.write(data)
            if self._connection.unread_bytes > self._max_unread_bytes:
                self._handler.pause_writing()

    def close(self) -> None:
        """Send what is pending, then close."""
        self.flush()
        if not self._is_closing:
            self._is_closing = True
            self._connection.close()

    def lost(self) -> None:
        """Drop what is pending: the connection is gone."""
        self._is_closing = True
        self._pending.clear()
        self.flush()

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._is_closing

    def pause_reading(self) -> None:
        """Stop reading from the connection."""
        self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Read on, if the protocol can take more input."""
        if not self._is_closing and self._may_read():
            self._connection.resume_reading()
