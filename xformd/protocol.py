"""TransformProtocol and TransformFactory: the server's connections, their deadlines, their dialects and their end.

Invariant: whatever arrives, in whatever pieces, each state has a deadline that no byte from the peer can extend, and
what is held in memory is bounded by the limits.
"""

import select
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IHalfCloseableProtocol, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.access.guard import Access, Grant, describe
from xformd.access.rules import ANONYMOUS
from xformd.dialects.classic import ClassicHandler
from xformd.dialects.handler import ConnectionHandler
from xformd.dialects.session import SessionHandler
from xformd.errors import BadFrame, Busy, XformError
from xformd.limits import Limits
from xformd.net.connections import DisconnectWatcher, share_of
from xformd.net.deadline import Deadline
from xformd.net.factory import DrainableProtocol, DrainingFactory
from xformd.net.tls import client_names
from xformd.net.transport import peer_uid
from xformd.net.write_buffer import PART_BYTES, ReadProgress, WriteBuffer
from xformd.runners import Caller
from xformd.runners.shares import JOB_BYTES, FairQueue
from xformd.service import Service
from xformd.telemetry.access_log import AccessEntry, AccessLog
from xformd.telemetry.metrics import ConnectionStats, Front, Metrics
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.tracing import NO_TRACES, Tracer
from xformd.wire import netstring, session

_HTTP_WORDS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ")

BUSY_RETRY_MS = 1_000
FLUSH_TIMEOUT_S = 1.0
"""How long a client has to read the last answers when the grace period of a stopping server is over."""


@attrs.frozen(eq=False)
class _Arrival:
    """A long request that is on its way."""

    connection: "TransformProtocol"
    caller: Caller
    size_bytes: int
    is_admitted: bool = False


@implementer(IHalfCloseableProtocol)
class TransformProtocol(DrainableProtocol):
    """One connection. Its first netstring decides on the dialect, unless the factory has done so."""

    log = Logger()

    def __init__(self, factory: "TransformFactory", peer: str | None = None) -> None:
        super().__init__(factory, peer)
        self.factory: TransformFactory = factory
        self.service: Service = factory.service
        self._front = factory.front
        self.limits = factory.limits
        self._decoder = netstring.Decoder(factory.limits.max_request_bytes)
        self._handler: ConnectionHandler | None = None
        self._output: WriteBuffer | None = None  # made for the first output that may have to wait
        self._deadline = Deadline(factory.clock, self._deadline_passed)
        self._has_begun = False  # the first byte has arrived
        self._has_written = False
        self._has_written_much = False
        self._progress: ReadProgress | None = None  # of a peer that has much to read, since all was with the system
        self._is_paused = False
        self._is_closing = False  # what arrives is dropped
        self._is_flushed = False  # all output is with the transport
        self._has_ended = False  # all output and the end of this side are with the system
        self._peer_has_finished = False
        self._share = ""
        self._grant: Grant | None = None  # what its peer may do; None if everybody may do everything
        self._credentials: tuple[frozenset[str], int] | None = None
        self._arrival: _Arrival | None = None  # a long request of which not all is here

    @property
    def is_idle(self) -> bool:
        """See ``DrainableProtocol.is_idle``."""
        return self._handler is None or getattr(self._handler, "is_idle", False)

    # What Twisted calls.

    def connectionMade(self) -> None:
        """Wait for a first byte, for as long as a connection may be idle."""
        super().connectionMade()
        self._is_eager = hasattr(self.transport, "hint_read_size")
        # Of the class: TLS forwards unknown attributes to the socket under it, which would send plain text.
        self._can_send_now = hasattr(type(self.transport), "send_now")
        self._deadline.set(self.limits.idle_timeout_s)
        if self.factory.make_handler is not None:
            self._handler = self.factory.make_handler(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass on what arrives; drop it once the connection is closing."""
        if self._is_closing:
            return
        if self._handler is not None:
            self._handler.receive(data)
            return
        if not self._has_begun:
            self._has_begun = True
            self._deadline.set(self.limits.request_timeout_s)
        self._detect_dialect(data)

    def readConnectionLost(self) -> None:
        """Note that the peer will send nothing more; what it has asked for is still answered."""
        self._peer_has_finished = True
        if self._is_closing:
            if self._is_flushed:
                self.transport.loseConnection()
        elif self._handler is not None:
            self._handler.receive_end()
        elif self._has_begun:
            self._refuse(BadFrame("the stream ended inside a netstring"))
        else:
            self.close()

    def writeConnectionLost(self) -> None:
        """Note that the system has all output, and the end of this side."""
        self._has_ended = True
        if self.factory.is_stopping:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel what nobody waits for any more."""
        self._is_closing = True
        self._deadline.close()
        self.factory.disconnects.forget(self)
        self.service.turns.forget(self.share, self)
        if self._arrival is not None:
            self.factory.arrivals.remove(self._arrival)
            self._arrival = None
        output, self._output = self._output, None  # without these cycles all is freed at once, not by the collector
        if output is not None:
            output.close()
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.lost()
        super().connectionLost(reason)

    # What its handler calls.

    @property
    def _is_local(self) -> bool:
        return self.peer is None and isinstance(self.transport.getPeer(), UNIXAddress)

    @property
    def share(self) -> str:
        """Whose part of the server its requests take."""
        if not self._share:  # not a ``cached_property``, which makes all attributes slower: 0.2 us for each request
            self._share = share_of(self.peer) if not self._is_local else f"unix:{peer_uid(self.transport)}"
        return self._share

    @property
    def is_trusted(self) -> bool:
        """Whether the peer is a proxy that may say for whom it asks."""
        return self.factory.trusts("unix" if self._is_local else self.peer)

    @property
    def credentials(self) -> tuple[frozenset[str], int]:
        """The names in its peer's certificate, and the user of the peer's process; nothing and -1 if there are none."""
        if self._credentials is None:
            # Behind a PROXY header, the process at the other end is the proxy's, whoever its client is.
            is_direct = self._is_local and not isinstance(self.transport, ProtocolWrapper)
            self._credentials = client_names(self.transport), peer_uid(self.transport) if is_direct else -1
        return self._credentials

    def authenticate(self, token: bytes) -> bytes:
        """Do from now on what the owner of a token may do; return what the client is told.

        Raises:
            Unauthorized: nobody has this token.
        """
        if (access := self.factory.access) is None:
            return describe(ANONYMOUS, self.service)
        self._grant = access.by_token(token)
        self.service = access.service(self._front, self._grant)
        return describe(self._grant.identity.name, self.service)

    @property
    def unread_bytes(self) -> int:
        """How much output waits for the peer to read it."""
        return 0 if self._output is None else self._output.unread_bytes

    def write(self, data: bytes) -> None:
        """Send, or keep until the peer has read what was sent before."""
        self._has_written = True
        if len(data) > PART_BYTES:
            self._has_written_much = True
        if self._output is None:
            if self._can_send_now:  # nearly always the system takes all of it, and no buffer is needed
                sent: int = self.transport.send_now(data)
                if sent == len(data):
                    return
                data = data[sent:]
            self._output = WriteBuffer(
                self.transport, self.factory.clock, self.limits, self._cut_off, self._output_drained
            )
        self._output.write(data)

    def finish(self, data: bytes) -> None:
        """Send the last data, then close."""
        if self._can_send_now:  # under TLS the end comes much later, and the last segment would wait for it
            self.transport.hint_close_after_write()
        self.write(data)
        self.close()

    def set_deadline(self, seconds: float | None) -> None:
        """Call the handler's ``expire`` after this many seconds, unless it is set again; None clears it."""
        if seconds is None:
            self._deadline.clear()
        else:
            self._deadline.set(seconds)

    def note_arrival(self, count: int, share: str | None = None, *, is_here: bool = False) -> None:
        """Note how long the request is that arrives, or ``is_here``; ``share`` is the peer's if not given.

        Where others need the room of a long one, the handler's ``reject`` is called. While single strings are as long
        as this one, more is read at a time, where the transport can.
        """
        if self._is_eager:
            self.transport.hint_read_size(count)
        arrivals = self.factory.arrivals
        if self._arrival is not None:
            if self._arrival.size_bytes == count and not is_here:
                return
            arrivals.remove(self._arrival)
            self._arrival = None
        if count > PART_BYTES and not is_here:
            self._arrival = _Arrival(self, Caller(share or self.share), count)
            for each in arrivals.put(self._arrival):
                self.factory.clock.callLater(0, each.connection._reject, each)

    def _reject(self, arrival: _Arrival) -> None:
        if self._is_closing or self._arrival is not arrival:  # all of it has arrived meanwhile
            return
        message = "too much is arriving (max_arriving_bytes), and most of it from you: send less at a time"
        error = Busy(message, retry_after_ms=BUSY_RETRY_MS)
        if self._handler is None:
            self._refuse(error)
        else:
            self._handler.reject(error)

    def pause_reading(self) -> None:
        """Read no more, so that TCP slows the peer down."""
        if not self._is_paused:
            self._is_paused = True
            self.transport.pauseProducing()
            if (fileno := getattr(self.transport, "fileno", None)) is not None:
                self.factory.disconnects.watch(self, fileno())

    def resume_reading(self) -> None:
        """Read again."""
        if self._is_paused:
            self._is_paused = False
            self.factory.disconnects.forget(self)
            self.transport.resumeProducing()

    def close(self) -> None:
        """Send what is left, then close; what else arrives is dropped."""
        self._is_closing = True
        self.resume_reading()
        if not self._is_flushed:
            self._deadline.clear()  # it was for something else, and the write buffer has its own
        self._finish_closing()

    def call_soon(self, go_on: Callable[[], None]) -> None:
        """Call a function after the other connections' turn, unless this one is lost by then."""
        self.service.turns.wait(self.share, self, go_on)

    def begin_entry(
        self,
        request_id: str | None = None,
        session_id: int | None = None,
        traceparent: str | None = None,
        tracestate: bytes = b"",
    ) -> AccessEntry | None:
        """Begin what is kept of a request, if there is an access log or it is traced."""
        log, trace = self.factory.access_log, self.factory.tracer.begin(traceparent, tracestate)
        if log is None and trace is None:
            return None
        peer = self.peer or str(getattr(self.transport.getPeer(), "host", "unix"))
        name = None if self._grant is None else self._grant.identity.name or None
        ids: Any = {"session_id": session_id, "identity": name, "traceparent": traceparent, "trace": trace}
        return AccessEntry(request_id, log=log, front=self._front, peer=peer, **ids)

    def count_refusal(self, code: str, entry: AccessEntry | None = None) -> None:
        """Count a request that never reached the service, and finish its entry, if it has one."""
        if self.factory.metrics is not None:
            self.factory.metrics.refused(self._front, code)
        if entry is not None:
            entry.finish(code)

    def log_refusal(self, error: XformError, client: str | None = None) -> None:
        """Log why a peer was refused, or the client that it stands for."""
        fields = {"peer": client or self._peer(), "code": error.code, "reason": error.log_message}
        self.factory.limited_log.add(error.code, self.log.info, "refused {peer}: {code}: {reason}", **fields)

    # What its factory calls.

    def stop(self) -> None:
        """Answer what has been accepted, then close."""
        if self._has_ended:
            self.transport.loseConnection()
        elif self._is_flushed:
            self._await_end()
        elif self._handler is not None:
            self._handler.stop()
        elif not self._is_closing:
            self.close()

    def has_input(self) -> bool:
        """Return whether something has arrived that has not been read yet."""
        fileno = getattr(self.transport, "fileno", None)
        if fileno is None:
            return False
        poll = select.poll()
        poll.register(fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _detect_dialect(self, data: bytes) -> None:
        try:
            strings = self._decoder.decode(data, max_strings=1)
        except netstring.NetstringError as error:
            refusal = error.wire_error
            if data.startswith(_HTTP_WORDS):
                refusal.log_message = "this looks like HTTP, which has a port of its own (--http)"
            self._refuse(refusal)
            return
        self.note_arrival(self._decoder.string_bytes, is_here=not self._decoder.is_inside)
        if strings == [session.OPENING]:
            self._speak("session")
            self._handler = SessionHandler(self, self._decoder)
        elif strings:
            self._speak("classic")
            self._handler = ClassicHandler(self, strings[0])

    def _speak(self, front: Front) -> None:
        self._front = front
        if (access := self.factory.access) is None:
            self.service = self.factory.counting.get(front, self.factory.service)
        else:
            self._grant = access.by_peer(*self.credentials)
            self.service = access.service(front, self._grant)

    def _refuse(self, error: XformError) -> None:
        self.count_refusal(error.code, self.begin_entry())
        self.log_refusal(error)
        self.close()

    def _output_drained(self) -> None:
        if self._is_closing:
            self._finish_closing()
        elif self._handler is not None:
            self._handler.output_drained()

    def _finish_closing(self) -> None:
        # Closing a socket while the peer still sends resets the connection: the peer may lose its reply, or take a
        # refusal for a network error. So end this side alone, and drop what else arrives until _await_end's deadline.
        if self.unread_bytes or self._is_flushed:
            return
        self._is_flushed = True
        if self._output is not None:
            self._output.close()
            self.transport.unregisterProducer()
        self._await_end()
        if self._peer_has_finished or not self.can_half_close():
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _await_end(self) -> None:
        limits = self.limits
        if self._has_written_much:
            self._progress = ReadProgress(self.transport, limits)
        if self.factory.is_stopping and ISSLTransport.providedBy(self.transport):
            self._deadline.set(FLUSH_TIMEOUT_S)
        else:
            self._deadline.set(limits.write_timeout_s if self._has_written else limits.linger_timeout_s)

    def _deadline_passed(self) -> None:
        if self._is_flushed and self.factory.is_stopping and ISSLTransport.providedBy(self.transport):
            # Only the peer's close_notify of TLS is missing; what was sent still reaches it.
            transport: Any = self.transport
            while isinstance(transport, ProtocolWrapper):
                transport = transport.transport
            transport.loseConnection()
        elif self._is_flushed and self._progress is not None and self._progress.is_enough:
            self._await_end()  # the peer reads on
        elif self._is_closing or self._handler is None or not self._handler.expire():
            self._cut_off()

    def _cut_off(self) -> None:
        why = "it neither read its reply nor closed" if self._is_closing else "it took too long"
        self.factory.cut_off += 1
        self.factory.limited_log.add(why, self.log.info, "cut off {peer}: {why}", peer=self._peer(), why=why)
        self.abort()

    def _peer(self) -> str:
        peer = self.transport.getPeer()
        host = getattr(peer, "host", None)
        return f"{host}:{peer.port}" if host is not None else "a local client"


@attrs.define(eq=False, slots=False)
class TransformFactory(DrainingFactory[TransformProtocol]):
    """Makes the connections of one server.

    Args:
        service: answers the requests, such as ``TransformService.from_functions`` makes.
        limits: what a connection may cost.
        reactor: the reactor, or a clock in its place; the global one if None.
        front: what its connections speak, unless their first netstring says more.
        metrics: where to count the requests that reach no service; None counts nothing.
        counting: services that count the requests of one dialect each; ``service`` answers the others.
        make_handler: makes the handler of a connection; None leaves the dialect to its first netstring.
        access_log: gets an entry for each request.
        tracer: says which requests are traced.
        trusts: whether an address is that of a proxy that may say for whom it asks; ``unix`` stands for Unix sockets.
        access: who may do what, and the service of each; None if everybody may do everything.

    Attributes:
        cut_off: how many connections were aborted because they took too long.
    """

    service: Service
    limits: Limits = Limits()
    _reactor: Any = None
    front: Front = attrs.field(default="netstring", kw_only=True)
    metrics: Metrics | None = attrs.field(default=None, kw_only=True)
    counting: Mapping[Front, Service] = attrs.field(default=MappingProxyType({}), kw_only=True)
    make_handler: Callable[[TransformProtocol], ConnectionHandler] | None = attrs.field(default=None, kw_only=True)
    access_log: AccessLog | None = attrs.field(default=None, kw_only=True)
    tracer: Tracer = attrs.field(default=NO_TRACES, kw_only=True)
    trusts: Callable[[str | None], bool] = attrs.field(default=lambda _: False, kw_only=True)
    access: Access | None = attrs.field(default=None, kw_only=True)

    protocol = TransformProtocol
    flush_timeout_s = FLUSH_TIMEOUT_S

    def __attrs_post_init__(self) -> None:
        if not hasattr(self.service, "xform"):
            raise TypeError(f"{type(self.service).__name__} is no service: TransformService.from_functions() makes one")
        super().__init__(self.limits, self._reactor)
        limits = self.limits
        self.arrivals: FairQueue[_Arrival] = FairQueue(limits.max_connections, _arriving_bytes(limits))
        self.cut_off = 0
        self.disconnects = DisconnectWatcher(self.clock)
        self.limited_log = RateLimitedLog(self.clock)

    def set_limits(self, limits: Limits) -> None:
        """See ``DrainingFactory``."""
        super().set_limits(limits)
        self.arrivals.max_jobs, self.arrivals.max_bytes = limits.max_connections, _arriving_bytes(limits)

    @property
    def connection_stats(self) -> ConnectionStats:
        """What has become of its connections."""
        return ConnectionStats(len(self.connections), self.refusals.counts, self.cut_off)

    def cancel_requests(self) -> None:
        """Cancel what is in flight; each request is answered with ``ShuttingDown``."""
        self.service.stop()


def _arriving_bytes(limits: Limits) -> int:
    return max(limits.max_arriving_bytes, limits.max_request_bytes + JOB_BYTES)
