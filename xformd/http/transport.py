"""What uvicorn takes for its transport: one of our connections, which sends head and body of an answer together."""

import asyncio
from typing import Any, Protocol

from xformd.dialects.interfaces import Connection


class Sender(Protocol):
    """Who sends on a transport, and has to wait where the client does not read."""

    loop: asyncio.AbstractEventLoop

    def pause_writing(self) -> None:
        """Send nothing more for now."""
        ...

    def may_read(self) -> bool:
        """Say whether more can be taken."""
        ...


class HttpTransport(asyncio.Transport):
    """The transport of one connection.

    Args:
        connection: where it goes.
        sender: whose output it is.
    """

    def __init__(self, connection: Connection, sender: Sender) -> None:
        super().__init__()
        self._connection = connection
        self._sender = sender
        self._max_unread_bytes = connection.limits.max_unread_output_bytes
        self._waiting: list[bytes] = []
        self._flushing: asyncio.Handle | None = None
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Say nothing: no application asks, and looking it up costs as much as a request."""
        del name
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, at the end of this turn of the loop if nothing asks for it before."""
        if self._is_closing:
            return
        self._waiting.append(bytes(data))
        if self._flushing is None:
            self._flushing = self._sender.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._waiting and not self._is_closing:
            data, self._waiting = b"".join(self._waiting), []
            self._connection.write(data)
            if self._connection.unread_bytes > self._max_unread_bytes:
                self._sender.pause_writing()

    def close(self) -> None:
        """Send what waits, and close."""
        self.flush()
        if not self._is_closing:
            self._is_closing = True
            self._connection.close()

    def lost(self) -> None:
        """Know that nobody is there any more."""
        self._is_closing = True
        self._waiting.clear()
        self.flush()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._is_closing

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Let the client go on, where there is room for what it sends."""
        if not self._is_closing and self._sender.may_read():
            self._connection.resume_reading()
