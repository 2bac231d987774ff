"""The server's side of a connection: bytes to requests, requests to the service, results to bytes.

One connection serves one request in the classic form. Its law: whatever arrives, in whatever pieces, each state has
a deadline that no byte from the peer can extend, and what is held in memory is bounded by the limits.
"""

import enum

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPullProducer,
    IReactorTime,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import XformError
from xformd.limits import Limits
from xformd.service import TransformService
from xformd.wire import classic, netstring

CHUNK_BYTES = 64 * 1024
"""How much of a long reply is handed to the transport at a time."""


class IStreamTransport(ITCPTransport, IConsumer):
    """What Twisted's stream servers hand to a protocol."""


class State(enum.Enum):
    """Where a connection stands."""

    WAITING = enum.auto()  # for the first byte
    READING = enum.auto()  # the request
    RUNNING = enum.auto()  # the transform
    CLOSING = enum.auto()  # the reply, or nothing, is on its way; what still arrives is thrown away


@implementer(IHalfCloseableProtocol)
class TransformProtocol(Protocol):
    """One connection.

    Args:
        factory: whose connection it is.
    """

    factory: "TransformFactory"
    transport: IStreamTransport

    log = Logger()

    def __init__(self, factory: "TransformFactory") -> None:
        self.factory = factory
        self._state = State.WAITING
        self._reader = classic.OneString(factory.limits.max_request_bytes)
        self._running: Deferred[bytes] | None = None
        self._deadline: IDelayedCall | None = None
        self._has_trailing_bytes = False
        self._peer_has_finished = False

    def connectionMade(self) -> None:
        """Wait for a request, but not forever."""
        self.factory.connections.add(self)
        self._set_deadline(self.factory.limits.idle_timeout_s)

    def dataReceived(self, data: bytes) -> None:
        """Collect the request; run it when it is whole."""
        if self._state is State.WAITING:
            self._state = State.READING
            self._set_deadline(self.factory.limits.request_timeout_s)
        if self._state is not State.READING:
            self._has_trailing_bytes = True
            return
        try:
            string = self._reader.receive(data)
            if string is not None:
                self._has_trailing_bytes = self._reader.has_trailing_bytes
                self._run(classic.decode_request(string))
        except XformError as error:
            self._refuse(error)

    def readConnectionLost(self) -> None:
        """Note that the peer has sent all that it will; its reply still goes out."""
        self._peer_has_finished = True
        if self._state is State.READING:
            try:
                self._reader.receive_eof()
            except XformError as error:
                self._refuse(error)
        elif self._state is not State.RUNNING:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Nothing to do: this side is only ever ended by the server itself."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - Twisted's signature
        """Give up what nobody waits for any more."""
        self._state = State.CLOSING
        self._clear_deadline()
        if self._running is not None:
            self._running.cancel()
        self.factory.connection_ended(self)

    def stop(self) -> None:
        """Close unless a whole request has been accepted: that one is still answered."""
        if self._state in (State.WAITING, State.READING):
            self._state = State.CLOSING
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close now, whatever is on its way."""
        self.transport.abortConnection()

    def _run(self, request: classic.Request) -> None:
        self._state = State.RUNNING
        self._clear_deadline()  # the service has its own
        result = self.factory.service.xform(request.spec, request.poem)
        if isinstance(result, Deferred):
            self._running = result
            result.addCallbacks(self._reply, self._fail)
        else:
            self._reply(result)

    def _fail(self, failure: Failure) -> None:
        error = failure.value
        assert isinstance(error, XformError)  # what the service promises
        if self._state is State.RUNNING:
            self._refuse(error)

    def _reply(self, poem: bytes) -> None:
        self._state = State.CLOSING
        self._set_deadline(self.factory.limits.write_timeout_s)
        reply = netstring.encode(poem)
        if len(reply) <= CHUNK_BYTES:
            self.transport.write(reply)
            self._close()
        else:
            self.transport.registerProducer(_LongReply(self, reply), False)

    def _refuse(self, error: XformError) -> None:
        """Close and send nothing: that is how the classic form says no."""
        self._state = State.CLOSING
        self.log.info("refused {peer}: {code}: {message}", peer=self._peer(), code=error.code, message=error.message)
        self._close(linger=True)

    def reply_progressed(self) -> None:
        """Note that the client has taken a part of a long reply."""
        self._set_deadline(self.factory.limits.write_timeout_s)

    def reply_written(self) -> None:
        """Note that the client has taken all of a long reply but its last part."""
        self.transport.unregisterProducer()
        self._close()

    def _close(self, *, linger: bool = False) -> None:
        # Closing a socket on which input is unread resets the connection, and the peer may lose what it was sent,
        # or take the refusal for a fault: so end this side, and throw away the rest of what it sends, for a while.
        linger = linger or self._has_trailing_bytes
        if linger and not self._peer_has_finished and self._can_half_close():
            self._set_deadline(self.factory.limits.linger_timeout_s)
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def _can_half_close(self) -> bool:
        # TLS says that it can, and would cut the stream under its own feet.
        return IHalfCloseableDescriptor.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport)

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.factory.clock.callLater(seconds, self._expire)

    def _clear_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _expire(self) -> None:
        if self._state is State.READING:
            self.log.info("cut off {peer}: its request took too long to arrive", peer=self._peer())
        elif self._state is State.CLOSING:
            self.log.info("cut off {peer}: it neither took its reply nor closed", peer=self._peer())
        self.abort()

    def _peer(self) -> str:
        peer = self.transport.getPeer()
        host = getattr(peer, "host", None)
        return f"{host}:{peer.port}" if host is not None else "a local client"


@implementer(IPullProducer)
class _LongReply:
    """Hands a long reply to the transport in parts, so that each part the client takes moves its deadline."""

    def __init__(self, connection: TransformProtocol, reply: bytes) -> None:
        self._connection = connection
        self._rest = memoryview(reply)

    def resumeProducing(self) -> None:
        """Write the next part."""
        part, self._rest = self._rest[:CHUNK_BYTES], self._rest[CHUNK_BYTES:]
        self._connection.reply_progressed()
        self._connection.transport.write(bytes(part))
        if not self._rest:
            self._connection.reply_written()

    def stopProducing(self) -> None:
        """Forget the rest: the connection is gone."""
        self._rest = memoryview(b"")


class TransformFactory(ServerFactory):
    """Makes the connections of one server, counts them, and ends them.

    Args:
        service: what answers the requests.
        limits: what a connection may cost.
        clock: a reactor, or a clock in its place.
    """

    noisy = False
    log = Logger()

    def __init__(self, service: TransformService, limits: Limits, clock: IReactorTime) -> None:
        self.service = service
        self.limits = limits
        self.clock = clock
        self.connections: set[TransformProtocol] = set()
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> TransformProtocol | None:  # type: ignore[override]  # noqa: ARG002
        """Take a connection, unless there are too many or the server is stopping."""
        if self._drained is not None:
            return None
        if len(self.connections) >= self.limits.max_connections:
            self.log.warn("closed a new connection: {limit} are open", limit=self.limits.max_connections)
            return None
        return TransformProtocol(self)

    def connection_ended(self, connection: TransformProtocol) -> None:
        """Note that a connection is gone."""
        self.connections.discard(connection)
        if self._drained is not None and not self.connections and not self._drained.called:
            self._drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Answer what has been accepted, take nothing new, and close.

        Returns:
            Fires when the last connection is gone, at the latest after ``shutdown_grace_s``.
        """
        drained: Deferred[None] = Deferred()
        self._drained = drained
        for connection in [*self.connections]:
            connection.stop()
        if self.connections:
            cut = self.clock.callLater(self.limits.shutdown_grace_s, self._abort_all)
            drained.addCallback(lambda _: cut.cancel() if cut.active() else None)
        else:
            drained.callback(None)
        return drained

    def _abort_all(self) -> None:
        self.log.warn("closed {count} connections after the grace period", count=len(self.connections))
        for connection in [*self.connections]:
            connection.abort()
