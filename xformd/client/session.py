"""The client's side of the session dialect: one connection that carries many requests.

Invariant: no more than the server's ``max_in_flight`` requests are in flight; the others wait here, and can still go
to another server. A request that has been written fails with its connection, for the server may have run it.
"""

import copy
import math
from collections import deque

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import NotSent, RequestCancelled
from xformd.errors import BadFrame, Busy, ConnectionLost, ShuttingDown, TooLarge, XformError
from xformd.net.deadline import Deadline
from xformd.net.endpoints import failure_reason
from xformd.net.transport import seems_gone
from xformd.net.write_buffer import bytes_in_system
from xformd.spec import Spec
from xformd.wire import netstring, session

Message = session.Request | session.ControlRequest

SILENCE_S, DOUBT_S, GIVE_UP_S = 2.0, 1.0, 2.0
"""How long a server that owes an answer may send nothing until it is asked whether it is there; and from then, until
new requests avoid the connection, and until it is given up."""


@attrs.define(eq=False)
class _Pending:
    """A request without an answer yet; ``ends_at`` is the clock's time at which its caller stops waiting."""

    message: Message
    answer: Deferred[bytes]
    ends_at: float | None


class SpeaksClassic(Exception):
    """The server closed when a session was opened, as one does that speaks only the classic dialect."""


class Session(Protocol):
    """One connection.

    Attributes:
        opened: fires with this session once the server has said hello; fails with ``SpeaksClassic`` or an
            ``XformError``.
        closed: fires when the connection is lost.
        hello: the server's hello: its name, version and limits.
        renews_at: the clock's time at which another one should take its place.
    """

    def __init__(self, address: str, clock: IReactorTime, max_result_bytes: int) -> None:
        self.opened: Deferred[Session] = Deferred(lambda _: self.abort())
        self.closed: Deferred[None] = Deferred()
        self.hello: session.Hello | None = None
        self._address = address
        self._clock = clock
        self._max_result_bytes = max_result_bytes
        self._decoder = netstring.Decoder(max_result_bytes + session.MAX_HEAD_BYTES)
        self._last_id = self._answers = 0
        self._waiting: deque[_Pending] = deque()
        self._in_flight: dict[int, _Pending] = {}
        self._cancelled: set[int] = set()  # cancelled, but the server has not said so yet
        self._goodbye: XformError | None = None
        self._has_received = False
        self._is_aborted = False
        self._silence = Deadline(clock, self._note_silence)
        self._asked_at: float | None = None  # it has sent nothing since then
        self.renews_at = math.inf

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        is_ending = self._goodbye is not None or self._is_aborted
        is_ready = self.hello is not None and not is_ending
        return is_ready and (self._asked_at is None or not self._is_unanswered(DOUBT_S))

    @property
    def load(self) -> int:
        """How many requests have no answer yet; a cancelled one counts until the server confirms it."""
        return len(self._in_flight) + len(self._cancelled) + len(self._waiting)

    def send_request(
        self, spec: Spec, poem: bytes, ends_at: float | None = None, client: str | None = None
    ) -> Deferred[bytes]:
        """Send a poem, for a ``client`` of this program; its caller stops waiting at ``ends_at``, by the clock.

        Returns:
            A Deferred of the result. Cancelling it cancels the request at the server too. It fails with ``NotSent``
            if the server is known not to have run it.
        """
        return self._enqueue(session.Request(self._next_id(), spec, poem, client=client), ends_at)

    def control(self, control: session.Control) -> Deferred[bytes]:
        """Send a control message, and return a Deferred of the answer."""
        return self._enqueue(session.ControlRequest(self._next_id(), control), None)

    def close(self) -> Deferred[None]:
        """Accept no new requests; fires when those in flight are answered and the connection is closed."""
        self._goodbye = self._goodbye or ShuttingDown("this client is closing")
        self._close_if_done()
        return self.closed

    def abort(self) -> None:
        """Close now, and ignore what still arrives."""
        self._is_aborted = True
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it

    # Called by Twisted.

    def connectionMade(self) -> None:
        """Open the session."""
        assert self.transport is not None
        if ITCPTransport.providedBy(self.transport):
            # Otherwise a request would wait until the server had acknowledged the one before.
            self.transport.setTcpNoDelay(True)
        self.transport.write(session.encode_opening())

    def dataReceived(self, data: bytes) -> None:
        """Deliver each answer to its request."""
        if self._is_aborted:
            return
        self._has_received, self._asked_at = True, None
        self._silence.set(SILENCE_S)
        try:
            strings = self._decoder.decode(data)
            violation = None
        except netstring.NetstringError as error:
            strings = error.strings
            violation = error.wire_error
        try:
            for string in strings:
                self._handle_answer(string)
        except BadFrame as error:
            violation = error
        if violation is not None:
            self._break_off(violation)
        else:
            self._write_waiting()
            self._close_if_done()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail the requests in flight; those not written yet may go to another server."""
        self._silence.close()
        said = f": {self._goodbye.message}" if self._goodbye else ""
        lost = ConnectionLost(f"the connection to {self._address} is lost ({failure_reason(reason)}){said}")
        if not self.opened.called:
            # Only a clean close is an answer: a reset means that the server has just died.
            silent = not self._has_received and reason.check(ConnectionDone)
            self.opened.errback(SpeaksClassic(self._address) if silent else lost)
        self._fail_all(lost)
        if not self.closed.called:
            self.closed.callback(None)

    # A request on its way.

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _enqueue(self, message: Message, ends_at: float | None) -> Deferred[bytes]:
        pending = _Pending(message, Deferred(lambda _: self._cancel(pending)), ends_at)
        self._waiting.append(pending)
        self._write_waiting()
        return pending.answer

    def _write_waiting(self) -> None:
        if self.hello is None or not self.is_open:
            return
        while self._waiting and len(self._in_flight) + len(self._cancelled) < self.hello.max_in_flight:
            self._write(self._waiting.popleft(), self.hello.max_request_bytes)

    def _write(self, pending: _Pending, max_request_bytes: int) -> None:
        assert self.transport is not None
        data = self._encode(pending)
        size = len(data) - data.index(b":") - 2  # without its frame
        if size > max_request_bytes:
            message = f"the request has {size} bytes; the limit of {self._address} is {max_request_bytes} bytes"
            pending.answer.errback(TooLarge(message))
            return
        if not self._in_flight and not self._cancelled:
            self._silence.set(SILENCE_S)
        self._in_flight[pending.message.id] = pending
        self.transport.write(data)

    def _encode(self, pending: _Pending) -> bytes:
        message = pending.message
        if isinstance(message, session.ControlRequest):
            return session.encode_control(message)
        if pending.ends_at is not None:
            remaining_s = max(0.0, pending.ends_at - self._clock.seconds())
            message = attrs.evolve(message, timeout_ms=round(remaining_s * 1000))
        return session.encode_request(message)

    def _handle_answer(self, string: bytes) -> None:
        if self.hello is None:
            self.hello = session.decode_hello(string)
            self.opened.callback(self)
            return
        reply = session.decode_reply(string)
        self._answers += 1
        if self._answers > self._last_id + 1:  # one for each id, and one for the connection
            raise BadFrame("more answers than requests")
        pending = self._in_flight.pop(reply.id, None)
        self._cancelled.discard(reply.id)
        if isinstance(reply, session.Reply):
            if pending is not None:
                pending.answer.callback(self._within_limit(reply.poem, pending.message))
        elif reply.id == session.CONNECTION_ID:
            self._goodbye = reply.error
            self._fail_waiting(reply.error)
        elif pending is not None:
            if isinstance(reply.error, ShuttingDown):
                self._goodbye = reply.error
            pending.answer.errback(_as_not_sent(reply.error))

    def _within_limit(self, poem: bytes, message: Message) -> bytes | Failure:
        # The decoder's limit covers head and poem together, so a poem may be longer by what its head is shorter.
        if len(poem) <= self._max_result_bytes or isinstance(message, session.ControlRequest):
            return poem
        return Failure(TooLarge(f"the result has {len(poem)} bytes; the limit is {self._max_result_bytes} bytes"))

    def _cancel(self, pending: _Pending) -> None:
        if pending in self._waiting:
            self._waiting.remove(pending)
        elif self._in_flight.pop(pending.message.id, None) is not None and self.transport is not None:
            self._cancelled.add(pending.message.id)
            self._ask(session.ControlRequest(pending.message.id, "cancel"))
            self._close_if_done()
        pending.answer.errback(RequestCancelled(f"the request to {self._address} was cancelled"))

    # A server that is silent.

    def _ask(self, control: session.ControlRequest) -> None:
        """Send what a server answers at once."""
        assert self.transport is not None
        self.transport.write(session.encode_control(control))
        if self._asked_at is None:
            self._asked_at = self._clock.seconds()
            self._silence.set(GIVE_UP_S)

    def _note_silence(self) -> None:
        if self._asked_at == -math.inf:
            self._fail_all(ConnectionLost(f"{self._address} has stopped answering, even a ping: it may be gone"))
            self.abort()
        elif self._is_unanswered(GIVE_UP_S):
            self._asked_at = -math.inf
            self._silence.set(0)  # what came while this process did something else is read first
        elif self._asked_at is not None:
            self._silence.set(GIVE_UP_S)
        elif self._in_flight or self._cancelled:
            self._ask(session.ControlRequest(self._next_id(), "ping"))

    def _is_unanswered(self, after_s: float) -> bool:
        if self._asked_at is None or self.hello is None or self._clock.seconds() < self._asked_at + after_s:
            return False
        # It may not have heard: at its limit it does not read, and an upload is in the way.
        is_full = len(self._in_flight) + len(self._cancelled) >= self.hello.max_in_flight
        return seems_gone(self.transport) or (not is_full and bytes_in_system(self.transport) < 1_000)

    # The end.

    def _break_off(self, violation: XformError) -> None:
        error = type(violation)(f"{self._address} sent an unreadable answer: {violation.message}")
        self._goodbye = error
        if not self.opened.called:
            self.opened.errback(error)
        self._fail_all(error)
        self.abort()

    def _fail_all(self, error: XformError) -> None:
        self._goodbye = self._goodbye or error
        self._fail_waiting(error)
        in_flight, self._in_flight = self._in_flight, {}
        for pending in in_flight.values():
            pending.answer.errback(copy.copy(error))

    def _fail_waiting(self, error: XformError) -> None:
        waiting, self._waiting = self._waiting, deque()
        for pending in waiting:
            pending.answer.errback(NotSent(error, may_reconnect=True))

    def _close_if_done(self) -> None:
        if self._goodbye is not None and not self._in_flight and not self._waiting and self.transport is not None:
            self.transport.loseConnection()


def _as_not_sent(error: XformError) -> Exception:
    """Mark an error that says when to ask again: it shows that the server did not run the request."""
    if isinstance(error, ShuttingDown | Busy) and error.retry_after_ms is not None:
        return NotSent(error, may_reconnect=isinstance(error, ShuttingDown))
    return error
