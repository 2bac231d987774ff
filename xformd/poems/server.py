"""The poem server: every client that connects gets the poem, and then the close.

Invariants: a clean close comes after the whole poem and never before; whatever else ends a connection, be it the sudden
death of this process, resets it (over TCP), so that no client takes a part for the whole. A client reads one version of
a poem to its end, whatever happens to the file meanwhile.
"""

import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError, XformError
from xformd.limits import Limits
from xformd.net.deadline import Deadline, cancel
from xformd.net.factory import DrainableProtocol, DrainingFactory
from xformd.net.listener import ListeningService
from xformd.net.plain import file_fingerprint
from xformd.net.run import within_descriptors
from xformd.net.tls import ServerTls
from xformd.net.write_buffer import ReadProgress, WriteBuffer

STALL_TIMEOUT_S = 300.0  # a client that takes nothing is cut off; a slow one may seem to: the system buffers much
CHUNK_BYTES = 65_536  # a poem is sent in pieces of this size; Twisted holds at most two of them for each client
TICK_S = 0.05  # a rate-limited poem is sent in pieces of this many seconds, so that it can be seen to arrive
RACY_NS = 50_000_000  # a file that has just changed may change again unnoticed: file times come in ticks

_CONTINUATION = bytes(range(0x80, 0xC0))
"""The bytes of UTF-8 that go on with a character; there are at most three of them in each."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLEAN_CLOSE = struct.pack("ii", 0, 0)


class PoemSource(Interface):
    """What ``PoemFactory`` serves: a ``PoemService``, a ``CachingProxyService``, or an object of the caller's."""

    def get_poem(self) -> "bytes | Deferred[bytes]":
        """Return the poem, or a Deferred of it."""


def _is_racy(status: os.stat_result, now_ns: int) -> bool:
    """Return whether a file may yet change without a difference."""
    return now_ns - max(status.st_mtime_ns, status.st_ctime_ns) < RACY_NS


class PoemService(Service):
    """A poem from memory, or from a file that is read again whenever it has changed: the last good one stays.

    Copying large poems to unnamed files instead would save their memory (191 MiB for 200 MB and 20 clients), send no
    faster (1.3 s of CPU time for 4 GB either way), and stop the server longer at each change (790 ms, not 460 ms).

    Raises:
        ConfigError: the file cannot be read, or changes meanwhile.
        TypeError: it is neither.
    """

    log = Logger()

    def __init__(self, poem: bytes | Path) -> None:
        if not isinstance(poem, bytes | Path):
            raise TypeError(f"a poem is bytes, or the pathlib.Path of a file; not {type(poem).__name__}")
        self._logged_reason = ""
        self._seen: tuple[int, ...] | None = None
        self._path = poem if isinstance(poem, Path) else None
        self._poem = b"" if isinstance(poem, Path) else poem
        try:
            if self._path is not None:
                self._poem = self._read(self._path)  # it may be empty at first
        except OSError as error:
            raise ConfigError(f"cannot serve {self._path}: {_reason(error)}") from error

    def get_poem(self) -> bytes:
        """Return the poem as it is now."""
        if (path := self._path) is None:
            return self._poem
        try:
            if self._seen != file_fingerprint(path):
                self._poem = self._read(path)
        except OSError as error:
            reason = _reason(error)
            if reason != self._logged_reason:
                self.log.warn("cannot read {path}: {reason}; the last good poem stays", path=str(path), reason=reason)
            self._logged_reason = reason
        else:
            if self._logged_reason:
                self.log.info("{path} can be read again", path=str(path))
            self._logged_reason = ""
        return self._poem

    def _read(self, path: Path) -> bytes:
        # Do not wait for a writer if it is a pipe; on a regular file the flag does nothing.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            before, seen = os.fstat(file.fileno()), file_fingerprint(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise OSError("it is not a regular file")
            poem = file.read()
            after = os.fstat(file.fileno())
            has_changed = file_fingerprint(file.fileno()) != seen
        if has_changed or len(poem) != before.st_size:
            raise OSError("it changed while it was read")
        if self._poem and not poem:
            raise OSError("it is empty")  # as a file is for a moment while it is rewritten in place
        self._seen = None if _is_racy(after, time.time_ns()) else seen
        return poem


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class RateLimiter:
    """Decides which bytes of a poem are due when. Rounding errors do not add up, and no character is cut in two."""

    def __init__(self, bytes_per_s: float, started_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._started_s = started_s

    def next(self, poem: bytes, sent_bytes: int, now_s: float) -> tuple[int, float]:
        """Return how many bytes to send next of a poem of which ``sent_bytes`` are sent, and in how many seconds."""
        piece = max(1, min(CHUNK_BYTES, int(self._bytes_per_s * TICK_S)))
        size_bytes = _end_of_character(poem, min(sent_bytes + piece, len(poem))) - sent_bytes
        takes_s = (sent_bytes + size_bytes) / self._bytes_per_s
        wait_s = self._started_s + takes_s - now_s
        if wait_s < -TICK_S:
            # The client stalled. What it missed must not come all at once afterwards.
            self._started_s = now_s - takes_s
        return size_bytes, max(0.0, wait_s)


def _end_of_character(poem: bytes, cut: int) -> int:
    """Return the end of the UTF-8 character that a cut would divide, for clients that decode what they read."""
    following = poem[cut : cut + 4]
    rest_bytes = len(following) - len(following.lstrip(_CONTINUATION))
    return cut + rest_bytes if rest_bytes < 4 else cut  # no text: it may be cut anywhere


@implementer(IHalfCloseableProtocol)
class PoemProtocol(DrainableProtocol):
    """One connection: sends the poem as soon as there is one, and ignores what comes in."""

    log = Logger()

    def __init__(self, factory: "PoemFactory", peer: str | None) -> None:
        super().__init__(factory, peer)
        self._waiting: Deferred[Any] | None = None
        self._poem = b""
        self._output: WriteBuffer | None = None  # once there is a poem
        self._limiter: RateLimiter | None = None
        self._sent_bytes = 0
        self._timer: IDelayedCall | None = None
        self._deadline = Deadline(factory.clock, self._expire)
        self._client_is_done = self._is_finished = self._is_flushed = False

    def connectionMade(self) -> None:
        """Get the poem, and send it when it is there."""
        super().connectionMade()
        self._set_linger(_RESET_ON_CLOSE)
        # mypy cannot choose among the overloads for a call that may return either.
        get_poem: Callable[[], Any] = self.factory.source.get_poem
        self._waiting = maybeDeferred(get_poem).addCallback(self._send)
        self._waiting.addErrback(self._fail)

    def dataReceived(self, data: bytes) -> None:
        """Ignore it: nothing that a client sends changes the poem."""

    def readConnectionLost(self) -> None:
        """Treat a client that has ended its side as gone if there is no poem yet, else let it read on.

        A client that has closed altogether looks no different until it is sent something, and must not hold a download.
        """
        self._client_is_done = True
        if self._output is None:
            self.transport.abortConnection()
        elif self._is_flushed:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Let the connection close cleanly: the system has the whole poem and its end."""
        self._is_flushed = True
        self._set_linger(_CLEAN_CLOSE)
        if self._client_is_done:
            self.transport.loseConnection()
        else:
            self._deadline.set(self.factory.limits.linger_timeout_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel every timer, and the wait for a poem."""
        cancel(self._timer)
        self._deadline.close()
        if self._output is not None:
            self._output.close()
        if self._waiting is not None:
            self._waiting.cancel()
        super().connectionLost(reason)

    def _send(self, poem: bytes) -> None:
        if not isinstance(poem, bytes):  # a source is often the caller's own code
            raise TypeError(f"a poem is bytes, not {type(poem).__name__}")
        clock, bytes_per_s = self.factory.clock, self.factory.bytes_per_s
        self._poem = poem
        self._limiter = RateLimiter(bytes_per_s, clock.seconds()) if bytes_per_s is not None else None
        self._output = WriteBuffer(self.transport, clock, self.factory.limits, self._cut_off, self._go_on)
        self._go_on()

    def _fail(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self.factory.log_no_poem(failure)
        self.transport.abortConnection()

    def _go_on(self) -> None:
        """Send what is left once it is due, then end: the client has taken everything before."""
        left_bytes = len(self._poem) - self._sent_bytes
        if self._timer is not None or self._is_finished:
            return
        if not left_bytes:
            self._finish()
        elif self._limiter is None:
            self._write(left_bytes)
        else:
            clock = self.factory.clock
            size_bytes, wait_s = self._limiter.next(self._poem, self._sent_bytes, clock.seconds())
            self._timer = clock.callLater(wait_s, self._write, size_bytes)

    def _write(self, size_bytes: int) -> None:
        assert self._output is not None
        self._timer = None
        start, self._sent_bytes = self._sent_bytes, self._sent_bytes + size_bytes
        self._output.write(self._poem[start : self._sent_bytes])
        if not self._output.unread_bytes:
            self._go_on()

    def _finish(self) -> None:
        assert self._output is not None
        self._is_finished = True
        self._output.close()
        self.transport.unregisterProducer()
        self._await_reader()
        if self.can_half_close():
            # Closing both sides at once would reset the connection if the client had sent anything, as a browser does.
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def _await_reader(self) -> None:
        self._progress = ReadProgress(self.transport, self.factory.limits)
        self._deadline.set(self.factory.limits.write_timeout_s)

    def _expire(self) -> None:
        if self._is_flushed:
            self.transport.loseConnection()
        elif self._progress.is_enough:
            self._await_reader()
        else:
            self._cut_off()

    def _cut_off(self) -> None:
        peer = self.peer or "a local client"
        self.factory.refusals.add("cut off", self.log.info, "cut off {peer}: it takes nothing", peer=peer)
        self.transport.abortConnection()

    def _set_linger(self, option: bytes) -> None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)


class _RefusedProtocol(Protocol):
    """Resets the connection of a client that is refused: a clean close would be an empty poem to it."""

    def connectionMade(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


class PoemFactory(DrainingFactory[PoemProtocol]):
    """Serves a poem. Once the reactor stops, it lets clients read to the end until the grace period is over.

    Args:
        source: what has the poem: a ``PoemService``, a ``CachingProxyService``, or any object with ``get_poem()``.
        reactor: the reactor, or a clock in its place; the global one if None.
        bytes_per_s: the rate at which to send it to each client; None for no limit.
        max_connections: how many there may be at once.
        stall_timeout_s: how long a client may take nothing.
        shutdown_grace_s: how long clients may read on once the server stops.

    Raises:
        TypeError: the source has no ``get_poem()``.
    """

    log = Logger()
    protocol = PoemProtocol

    def __init__(
        self,
        source: PoemSource,
        reactor: Any = None,
        *,
        bytes_per_s: float | None = None,
        max_connections: int = Limits().max_connections,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        shutdown_grace_s: float = Limits().shutdown_grace_s,
    ) -> None:
        if not callable(getattr(source, "get_poem", None)):
            given = type(source).__name__
            raise TypeError(f"PoemFactory takes an object with get_poem(), such as a PoemService; not {given}")
        times: Any = {"write_timeout_s": stall_timeout_s, "shutdown_grace_s": shutdown_grace_s}
        super().__init__(Limits(max_connections=max_connections, **times), reactor)
        self.source = source
        self.bytes_per_s = bytes_per_s

    def refuse(self) -> Protocol:
        """See ``DrainingFactory``."""
        return _RefusedProtocol()

    def log_no_poem(self, failure: Failure) -> None:
        """Log why a client got no poem."""
        if isinstance(failure.value, XformError):
            self.refusals.refused(failure.value.code, f"no poem: {failure.value.code}: {failure.value.message}")
        else:
            self.log.failure("no poem for a client", failure)


def make_poem_server(
    source: PoemSource,
    listen: tuple[str, ...],
    reactor: Any,
    *,
    bytes_per_s: float | None = None,
    tls: ServerTls | None = None,
    drain_delay_s: float = 0.0,
) -> ListeningService:
    """Put a poem server together, not started."""
    allowed = within_descriptors(Limits(), workers=0).max_connections
    factory = PoemFactory(source, reactor, bytes_per_s=bytes_per_s, max_connections=allowed)
    factory.limits = attrs.evolve(factory.limits, drain_delay_s=drain_delay_s)
    return ListeningService(listen, factory, reactor, flags="--port or --listen", tls=tls)
