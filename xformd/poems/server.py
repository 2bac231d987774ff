"""The server's side of the poem protocol: to whoever connects, the poem, and the close.

The law: a clean close comes after the whole poem and never before. Whatever else ends a connection, also the sudden
death of this process, resets it (over TCP), so that no client takes a part for the whole.
"""

import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError, XformError
from xformd.limits import Limits
from xformd.net.connections import Connections, RefusalLog
from xformd.net.deadline import Deadline
from xformd.poems.source import MemoryPoem, Poem, PoemFile, Unreadable

STALL_TIMEOUT_S = 300.0
"""A client that takes nothing for so long is cut off. A slow one may seem to: the system buffers megabytes for it."""

CHUNK_BYTES = 65_536
"""A poem is read in pieces of this size; Twisted holds two of them at most for each reader."""

TICK_S = 0.05
"""A slow poem comes in pieces of so many seconds, so that it is seen to come."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_IN_ORDER = struct.pack("ii", 0, 0)


class PoemSource(Interface):
    """What has a poem to give: ``PoemService``, ``CachingProxyService``, or something of your own."""

    def get_poem(self) -> "bytes | Poem | Deferred[bytes]":
        """Give the poem, or a Deferred of it."""
        ...


class PoemService(Service):
    """Has a poem, from memory or from a file that is read again whenever it has changed.

    Args:
        poem: the poem itself, or the path of its file.

    Raises:
        ConfigError: the file cannot be read.
    """

    def __init__(self, poem: bytes | Path) -> None:
        if isinstance(poem, bytes):
            content = MemoryPoem(poem)
            self._current: Callable[[], Poem] = lambda: content
            return
        try:
            self._current = PoemFile(poem).current
        except Unreadable as error:
            raise ConfigError(f"cannot serve {poem}: {error}") from error

    def get_poem(self) -> Poem:
        """Give the poem as it is now; it never changes afterwards."""
        return self._current()


@attrs.frozen
class Step:
    """The next piece of a poem.

    Args:
        size_bytes: how long it is.
        wait_s: how long to wait before it is sent.
    """

    size_bytes: int
    wait_s: float


class RateLimiter:
    """A number of bytes a second, kept over a whole poem: no rounding adds up.

    Args:
        bytes_per_s: how many.
        started_s: when the first byte began to be due.
    """

    def __init__(self, bytes_per_s: float, started_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._started_s = started_s

    def next(self, sent_bytes: int, total_bytes: int, now_s: float) -> Step:
        """Say what to send next.

        Args:
            sent_bytes: how much has been sent.
            total_bytes: of the poem.
            now_s: what time it is.
        """
        piece = max(1, min(CHUNK_BYTES, int(self._bytes_per_s * TICK_S)))
        size_bytes = min(piece, total_bytes - sent_bytes)
        takes_s = (sent_bytes + size_bytes) / self._bytes_per_s
        wait_s = self._started_s + takes_s - now_s
        if wait_s < -TICK_S:
            # The reader stood still. What it missed does not come all at once afterwards.
            self._started_s = now_s - takes_s
        return Step(size_bytes, max(0.0, wait_s))


@implementer(IHalfCloseableProtocol, IPushProducer)
class PoemProtocol(Protocol):
    """One connection: the poem goes out, whenever there is one, and nothing is expected to come in.

    Args:
        factory: whose connection it is.
        peer: the client's IP address, if it has one.
    """

    log = Logger()
    transport: Any

    def __init__(self, factory: "PoemFactory", peer: str | None) -> None:
        self._factory = factory
        self._peer = peer
        self._waiting: Deferred[Any] | None = None
        self._poem: Poem | None = None
        self._pace: RateLimiter | None = None
        self._sent_bytes = 0
        self._timer: IDelayedCall | None = None
        self._deadline = Deadline(factory.clock, self._expire)
        self._is_paused = self._client_is_done = self._is_finished = self._is_flushed = False

    def connectionMade(self) -> None:
        """Get the poem, and send it when it is there."""
        self._factory.connections.add(self, self._peer)
        self._linger(_RESET_ON_CLOSE)
        # Its type says what may come, and mypy cannot choose among the overloads for it.
        get_poem: Callable[[], Any] = self._factory.source.get_poem
        self._waiting = maybeDeferred(get_poem).addCallback(self._send)
        self._waiting.addErrback(self._fail)

    def dataReceived(self, data: bytes) -> None:
        """Take no notice: what a client says changes no poem."""

    def resumeProducing(self) -> None:
        """Go on: the client takes more. Called by the transport."""
        self._is_paused = False
        self._deadline.clear()
        self._produce()

    def pauseProducing(self) -> None:
        """Wait: the client has enough to take. Called by the transport."""
        self._is_paused = True
        self._deadline.set(self._factory.stall_timeout_s)

    def stopProducing(self) -> None:
        """Send no more: the connection is gone. Called by the transport."""
        self._is_finished = True
        self._stop_timer()

    def readConnectionLost(self) -> None:
        """The client has said all. It may yet read; but one that has nothing to read yet has left.

        One that closed altogether looks no different until it is sent something, and its wait must not hold a download.
        """
        self._client_is_done = True
        if self._poem is None:
            self.transport.abortConnection()
        elif self._is_flushed:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """The whole poem and its end are with the system: nothing can cut them short any more."""
        self._is_flushed = True
        self._linger(_CLOSE_IN_ORDER)
        if self._client_is_done:
            self.transport.loseConnection()
        else:
            self._deadline.set(self._factory.linger_timeout_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - Twisted's signature
        """Leave nothing behind: no timer, and no wait for a poem."""
        self._stop_timer()
        self._deadline.close()
        if self._waiting is not None:
            self._waiting.cancel()
        self._factory.connection_ended(self)

    def abort(self) -> None:
        """End it uncleanly."""
        self.transport.abortConnection()

    def _send(self, poem: bytes | Poem) -> None:
        self._poem = MemoryPoem(poem) if isinstance(poem, bytes) else poem
        clock, bytes_per_s = self._factory.clock, self._factory.bytes_per_s
        self._pace = RateLimiter(bytes_per_s, clock.seconds()) if bytes_per_s is not None else None
        self.transport.registerProducer(self, True)
        self._produce()

    def _fail(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._factory.failed(failure)
        self.transport.abortConnection()

    def _produce(self) -> None:
        assert self._poem is not None
        while not (self._is_paused or self._is_finished or self._timer is not None):
            remaining = self._poem.size_bytes - self._sent_bytes
            if not remaining:
                self._finish()
            elif self._pace is None:
                self._write(self._poem, min(CHUNK_BYTES, remaining))
            else:
                step = self._pace.next(self._sent_bytes, self._poem.size_bytes, self._factory.clock.seconds())
                self._timer = self._factory.clock.callLater(step.wait_s, self._go_on, self._poem, step.size_bytes)

    def _go_on(self, poem: Poem, size_bytes: int) -> None:
        self._timer = None
        self._write(poem, size_bytes)
        self._produce()

    def _write(self, poem: Poem, size_bytes: int) -> None:
        piece = poem.read(self._sent_bytes, size_bytes)
        self._sent_bytes += len(piece)
        self.transport.write(piece)

    def _finish(self) -> None:
        self._is_finished = True
        self.transport.unregisterProducer()
        self._deadline.set(self._factory.stall_timeout_s)
        if self._can_half_close():
            # Closing both sides at once would reset the connection if the client had said anything: a browser does.
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def _can_half_close(self) -> bool:
        return IHalfCloseableDescriptor.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport)

    def _expire(self) -> None:
        if self._is_flushed:
            self.transport.loseConnection()
        else:
            self.log.info("cut off {peer}: it takes nothing", peer=self._peer or "a local client")
            self.transport.abortConnection()

    def _linger(self, option: bytes) -> None:
        handle = getattr(self.transport, "getHandle", lambda: None)()
        if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class _TurnedAway(Protocol):
    """A client for whom there is no room: a close in order would be an empty poem to it."""

    def connectionMade(self) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]


class PoemFactory(ServerFactory):
    """Makes the connections of a poem server, counts them, and ends them.

    Args:
        source: what has the poem.
        clock: a reactor, or a clock in its place.
        bytes_per_s: how fast to send it to each client; as fast as it goes where no number is given.
        max_connections: how many there may be at once.
        stall_timeout_s: how long a client may take nothing.
        shutdown_grace_s: how long clients may still read once the server stops.
    """

    noisy = False
    log = Logger()

    def __init__(
        self,
        source: PoemSource,
        clock: IReactorTime,
        *,
        bytes_per_s: float | None = None,
        max_connections: int = Limits().max_connections,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        shutdown_grace_s: float = Limits().shutdown_grace_s,
    ) -> None:
        self.source = source
        self.clock = clock
        self.bytes_per_s = bytes_per_s
        self.stall_timeout_s = stall_timeout_s
        self.linger_timeout_s = Limits().linger_timeout_s
        self.connections: Connections[PoemProtocol] = Connections(Limits(max_connections=max_connections))
        self.refusals = RefusalLog(clock)
        self._shutdown_grace_s = shutdown_grace_s
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Take a connection, unless there are too many or the server is stopping."""
        peer: str | None = getattr(addr, "host", None)
        if self._drained is not None:
            return None
        if refusal := self.connections.limit_reached(peer):
            self.refusals.refused(refusal.kind, refusal.reason)
            return _TurnedAway()
        return PoemProtocol(self, peer)

    def failed(self, failure: Failure) -> None:
        """Tell the operator that there was no poem for a client."""
        if isinstance(failure.value, XformError):
            self.refusals.refused(failure.value.code, f"no poem: {failure.value.code}: {failure.value.message}")
        else:
            self.log.failure("no poem for a client", failure)

    def connection_ended(self, connection: PoemProtocol) -> None:
        """Note that a connection is gone."""
        self.connections.discard(connection)
        if self._drained is not None and not self.connections and not self._drained.called:
            self._drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Take no new client, and let those that are here read to the end.

        Returns:
            Fires when the last is gone; who still reads after ``shutdown_grace_s`` is cut off.
        """
        self._drained = drained = Deferred[None]()
        if not self.connections:
            drained.callback(None)
            return drained
        cut = self.clock.callLater(self._shutdown_grace_s, self._cut)
        return drained.addCallback(lambda _: cut.cancel() if cut.active() else None)

    def _cut(self) -> None:
        self.log.warn("cut off {count} clients after the grace period", count=len(self.connections))
        for connection in self.connections:
            connection.abort()
