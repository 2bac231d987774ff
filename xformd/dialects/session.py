"""The session dialect, on the server: many requests on one connection, answered in any order.

Invariant: at most ``max_in_flight`` requests run at a time, and none is started while the client leaves more than
``max_unread_output_bytes`` unread: the connection is then not read, so that TCP slows the client down. One read may
hold thousands of messages, so other connections get their turn every ``TURN_S``.

``answer_plain_requests`` is the fast path: it answers pipelined requests of inline transforms in one loop, without a
call or an object for each. A request then takes 1.4 us instead of 9 us (64 requests of 100 bytes in a read, Python
3.11). It may not do anything that ``_handle`` does not: whatever it cannot answer in full stays unread at its place.
"""

from collections.abc import Callable, Container
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from xformd import __version__
from xformd.dialects.handler import ConnectionHandler, TurnTaker
from xformd.errors import BadFrame, BadRequest, ShuttingDown, TransformTimeout, XformError
from xformd.net.connections import UNKNOWN, share_of
from xformd.net.write_buffer import PART_BYTES
from xformd.runners import Caller
from xformd.runners.generation import PreparedCall
from xformd.runners.inline import SLOW_CALL_S, Outcome
from xformd.runners.policy import LONG_POEM_BYTES
from xformd.service import Service
from xformd.spec import Spec
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracing import Tracer
from xformd.wire import netstring, session

if TYPE_CHECKING:  # it makes the handlers
    from xformd.protocol import TransformProtocol

Work = Callable[..., bytes | Deferred[bytes]]
"""Finishes a request: returns its result, or raises an ``XformError``."""

_COMMA = ord(",")

_MOST = 256
_BURST = (None,) * _MOST
"""Check the clock every 256 plain requests: they take about 0.4 ms. Or sooner, so that a long poem is the only one."""

GOODBYE_S = 0.5
"""How long a session goes on after the goodbye: what was on its way is answered, and need not count as lost."""

STOPS_SOON = "it will stop soon: send new requests elsewhere"

MAX_WRONG_TOKENS = 3  # the last of them ends the session

SHORT_S = 0.00002
"""What takes less is not counted as a share's time: counting takes as long as a request, reading it takes longer."""


class SessionHandler(TurnTaker, ConnectionHandler):
    """Answers requests until the client or the server ends the session; its opening is decoded already."""

    _connection: "TransformProtocol"

    def __init__(self, connection: "TransformProtocol", decoder: netstring.Decoder) -> None:
        super().__init__(connection.service, connection.share)
        limits = connection.limits
        self._connection = connection
        self._decoder = decoder
        self._turns = connection.service.turns
        self._max_in_flight = limits.max_in_flight
        self._max_unread_bytes = limits.max_unread_output_bytes
        self._max_request_bytes = limits.max_request_bytes
        self._idle_timeout_s = limits.idle_timeout_s
        tracer = connection.factory.tracer
        self._tracer = tracer if tracer.is_on else None
        self._violation: XformError | None = None  # ends the session once what came before it is answered
        self._in_flight: dict[int, Deferred[bytes]] = {}
        self._is_between_requests = False  # nothing is unread here or by the client, and no request is here in part
        self._has_request_deadline = False  # the rest of a request must come in time
        self._wrong_tokens = 0
        self._peer_has_finished = False
        self._is_stopping = False
        self._goodbye: IDelayedCall | None = None  # while requests of a client that has not heard it may arrive
        self._send(
            session.encode_hello(session.Hello(f"xformd {__version__}", self._max_request_bytes, self._max_in_flight))
        )
        self.receive(b"")

    # What the connection calls.

    def receive(self, data: bytes) -> None:
        """Handle what has arrived, as much of it as may run; the rest waits in the decoder."""
        if not self._is_between_requests or len(data) > self._max_request_bytes or self._turns.over:
            if not self._is_closed:
                self._decoder.feed(data)
                self._work()
            return
        # Nearly every read goes this way, so it leaves out all that cannot have changed.
        service, room_bytes = self._service, self._max_unread_bytes
        in_flight, tracer = self._in_flight, self._tracer
        end, replies, pending, ran_s = answer_plain_requests(service, data, 0, in_flight, room_bytes, tracer)
        if ran_s > SHORT_S:
            self._turns.used(self._share, ran_s)
        self._decoder.feed(data, end)
        if end < len(data) or pending is not None:
            self._send_answers(replies, pending)
            self._work()
            return
        self._connection.write(b"".join(replies))
        if self._connection.unread_bytes:
            self._work()
        elif not in_flight:
            self._connection.set_deadline(self._idle_timeout_s)

    def receive_end(self) -> None:
        """Answer what is in flight, if that comes soon, then close: the client will send nothing more."""
        self._peer_has_finished = True
        self._work()

    def output_drained(self) -> None:
        """Go on: the client has read everything."""
        self._service.has_room(self)
        self._work()

    def reject(self, error: XformError) -> None:
        """End the session with an error."""
        self._violation = self._violation or error
        self._work()

    def expire(self) -> bool:
        """End a session that was idle for too long, and tell the client so; anything else must be cut off."""
        if not self._is_between_requests or self._in_flight or self._connection.unread_bytes:
            return False
        self._end(TransformTimeout(f"no request for {self._idle_timeout_s:g} s (idle_timeout_s)"))
        return True

    def stop(self) -> None:
        """Tell the client that the server is stopping; answer what is in flight, and start nothing more."""
        self._is_stopping = True
        self._is_between_requests = False
        self._refuse(session.CONNECTION_ID, ShuttingDown.not_started())
        self._goodbye = self._connection.factory.clock.callLater(GOODBYE_S, self._end_goodbye)
        self._work()

    def _end_goodbye(self) -> None:
        self._goodbye = None
        self._work()

    def lost(self) -> None:
        """Cancel what runs: nobody waits for it any more."""
        if self._goodbye is not None:
            self._goodbye.cancel()
            self._goodbye = None
        self._is_closed = True
        self._is_between_requests = False
        for running in [*self._in_flight.values()]:
            running.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is in flight, and no request is here in part."""
        return self._is_between_requests and not self._in_flight

    # What the service asks (Reader).

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads its answers."""
        unread_bytes = self._output_bytes + self._connection.unread_bytes
        return not self._is_closed and unread_bytes <= self._max_unread_bytes

    # How messages are handled.

    def _await_more(self) -> None:
        """End the session if it is to be ended; else read on or not, and set the deadline of what is expected next."""
        decoder = self._decoder
        self._is_between_requests = False
        may_close = self._peer_has_finished or (self._is_stopping and self._goodbye is None)
        if self._peer_has_finished and decoder.is_inside and not decoder.has_unread:
            self._violation = self._violation or BadFrame("the stream ended inside a netstring")
        if self._violation is not None:
            self._connection.count_refusal(self._violation.code, self._connection.begin_entry())
            self._end(self._violation)
        elif may_close and not decoder.has_unread and not self._in_flight:
            self._is_closed = True
            self._connection.close()
        else:
            self._await_input()

    def _has_more(self) -> bool:
        return self._decoder.has_unread

    def _take_step(self) -> bool:
        """Answer all plain requests that are next, or handle one message of any kind; return whether any was there."""
        decoder = self._decoder
        if not self._has_room() or self._violation is not None or not decoder.has_unread:
            return False
        if not decoder.is_inside and not self._is_stopping and self._answer_plain_requests():
            return True
        try:
            strings = decoder.decode(max_strings=1)
        except netstring.NetstringError as error:
            self._violation = error.wire_error
            return False
        for string in strings:
            self._has_request_deadline = False
            self._handle(string)
        return bool(strings)

    def _answer_plain_requests(self) -> bool:
        data, position = self._decoder.unread
        if len(data) > self._max_request_bytes:
            return False
        room_bytes = self._max_unread_bytes - self._output_bytes - self._connection.unread_bytes
        service, in_flight = self._service, self._in_flight
        end, replies, pending, _ = answer_plain_requests(service, data, position, in_flight, room_bytes, self._tracer)
        if end == position:
            return False
        self._decoder.skip_to(end)
        self._send_answers(replies, pending)
        return True

    def _send_answers(self, replies: list[bytes], pending: tuple[int, Work] | None) -> None:
        self._has_request_deadline = False
        self._send(b"".join(replies))
        if pending is not None:
            self._has_room()  # sends what is too much: a job that waits for room goes on only once all is read
            request_id, finish = pending
            self._start(request_id, partial(finish, caller=self._caller()))

    def _has_room(self) -> bool:
        if len(self._in_flight) >= self._max_in_flight:
            return False
        if self._output_bytes + self._connection.unread_bytes > self._max_unread_bytes:
            self._flush()
        return self._connection.unread_bytes <= self._max_unread_bytes

    def _await_input(self) -> None:
        self._connection.note_arrival(self._decoder.string_bytes, is_here=not self._decoder.is_inside)
        if self._decoder.has_unread or not self._has_room():
            self._connection.pause_reading()
            self._connection.set_deadline(None)
            self._has_request_deadline = False
            return
        self._connection.resume_reading()
        if not self._decoder.is_inside:
            self._is_between_requests = not self._is_stopping and not self._connection.unread_bytes
            self._has_request_deadline = False
            # The service has limits of its own. But a client that has ended its side may be gone, and only an answer
            # that is sent to it would show that.
            answer_s = self._connection.limits.linger_timeout_s if self._peer_has_finished else None
            self._connection.set_deadline(answer_s if self._in_flight else self._idle_timeout_s)
        elif not self._has_request_deadline:
            self._has_request_deadline = True
            self._connection.set_deadline(self._connection.limits.request_timeout_s)

    def _handle(self, string: bytes) -> None:
        try:
            message = session.decode_request(string)
        except BadFrame as error:
            self._violation = error
            return
        if isinstance(message, session.Malformed):
            self._reject(message.id, message.error)
        elif isinstance(message, session.ControlRequest):
            self._control(message)
        elif message.id in self._in_flight:
            self._violation = BadRequest(f"the id {message.id} is that of a request in flight")
        elif self._is_stopping:
            self._reject(message.id, ShuttingDown.not_started())
        else:
            timeout_s = None if message.timeout_ms is None else message.timeout_ms / 1000
            caller = self._caller(message.client)
            work = partial(self._service.xform, message.spec, message.poem, timeout_s=timeout_s, caller=caller)
            trace = message.traceparent
            timing: RequestTiming | None = self._connection.begin_entry(session_id=message.id, traceparent=trace)
            if timing is None and trace is not None:
                timing = RequestTiming(traceparent=trace)
            versions_of = message.spec if message.wants_version else None
            self._start(message.id, work if timing is None else partial(work, timing=timing), versions_of)

    def _caller(self, client: str | None = None) -> Caller:
        """Return whom a request is for: a proxy that is trusted may name a client, or else it is the peer."""
        share = self._share
        if client is not None and self._connection.is_trusted:
            named = share_of(client)
            share = named if named != UNKNOWN else f"{share}/{client}"  # a name that only the proxy knows
        return Caller(share, self)

    def _start(self, request_id: int, work: Work, versions_of: Spec | None = None) -> None:
        try:
            result = work()
            version = None if versions_of is None else self._service.versions(versions_of)
        except XformError as error:
            self._refuse(request_id, error)
            return
        if isinstance(result, Deferred):
            self._in_flight[request_id] = result
            result.addCallbacks(self._answer, self._fail, callbackArgs=(request_id, version), errbackArgs=(request_id,))
        else:
            self._send(session.encode_reply(session.Reply(request_id, result, version)))

    def _control(self, request: session.ControlRequest) -> None:
        if request.control == "cancel":
            if request.id in self._in_flight:
                self._in_flight[request.id].cancel()  # which answers it
            return
        try:
            self._reply(request.id, self._answer_to(request))
        except XformError as error:
            self._reject(request.id, error)
            self._wrong_tokens += request.control == "auth"
            if self._wrong_tokens >= MAX_WRONG_TOKENS:
                self._violation = error

    def _answer_to(self, request: session.ControlRequest) -> bytes:
        if request.control == "auth":
            told = self._connection.authenticate(request.token)
            self._service = self._connection.service
            return told
        if request.control == "list":
            return self._service.listing()
        stops = STOPS_SOON if self._connection.factory.will_stop else ""
        return ", ".join(filter(None, (stops, self._service.missing()))).encode()

    # How requests are answered.

    def _answer(self, poem: bytes, request_id: int, version: str | None) -> None:
        del self._in_flight[request_id]
        if not self._is_closed:
            self._reply(request_id, poem, version)
            self._work()

    def _reply(self, request_id: int, poem: bytes, version: str | None = None) -> None:
        if len(poem) < PART_BYTES:
            self._send(session.encode_reply(session.Reply(request_id, poem, version)))
        else:  # not copied into its frame: a listing is the same for all who ask
            self._flush()
            for part in session.frame_reply(session.Reply(request_id, poem, version)):
                self._connection.write(part)

    def _fail(self, failure: Failure, request_id: int) -> None:
        del self._in_flight[request_id]
        error = failure.value
        assert isinstance(error, XformError)  # what a Service promises
        if not self._is_closed:
            self._refuse(request_id, error)
            self._work()

    def _reject(self, request_id: int, error: XformError) -> None:
        """Answer a request with an error here, and count it: it never reaches the service, which counts the others."""
        self._connection.count_refusal(error.code, self._connection.begin_entry(session_id=request_id))
        self._refuse(request_id, error)

    def _refuse(self, request_id: int, error: XformError) -> None:
        self._send(session.encode_refusal(session.Refusal(request_id, error)))

    def _end(self, error: XformError) -> None:
        """End the session with an error of the connection."""
        self._refuse(session.CONNECTION_ID, error)
        self._flush()
        self._connection.log_refusal(error)
        self.lost()
        self._connection.close()


def answer_plain_requests(  # noqa: C901 - a call for each request would cost as much as the request
    service: Service,
    data: bytes,  # at most ``max_request_bytes``, so that no request in it is too long
    position: int,  # where in it a netstring begins
    in_flight: Container[int],  # the ids of the requests that run
    room_bytes: int,  # stop after more output than this
    tracer: Tracer | None = None,  # says how many of the next requests are not traced: they are answered, and counted
) -> tuple[int, list[bytes], tuple[int, Work] | None, float]:
    """Answer the requests that are here whole, and whose transforms run at once.

    Returns the position of the first byte that was not handled; the replies, framed; the id of a request whose
    transform has run without giving such a reply, with what finishes it; and the seconds that this took.
    """
    size, max_result_bytes, match_head = len(data), service.max_result_bytes, session.match_plain_request
    limit = position + LONG_POEM_BYTES // 2
    replies: list[bytes] = []
    result: Outcome
    words, call, counts, started_s, pending, ran_s = None, None, None, 0.0, None, 0.0
    left = _MOST if tracer is None else tracer.unsampled_left
    for _ in _BURST if left >= _MOST else _BURST[:left]:
        if not (match := match_head(data, position, limit)):
            break
        length, number, new_words = match.groups()
        if new_words != words:  # looking them up and reading the clock takes as long as answering
            if call is not None:
                ran_s += note_run_time(service, call, started_s)
            words, call, started_s = new_words, service.prepare_call(new_words), service.stopwatch()
            counts = None if call is None else call.batched_counts
        start, end = match.end(), match.start(2) + int(length)
        if call is None or not 0 <= end - start <= LONG_POEM_BYTES or end >= size or data[end] != _COMMA:
            break
        if in_flight and int(number) in in_flight:
            break
        position = end + 1
        try:
            result = call.run(data[start:end])
        except BaseException:  # the transform's: nothing else runs in there
            result = Failure()
        if type(result) is not bytes or (result_bytes := len(result)) > max_result_bytes:
            if counts is not None:
                counts.poems_bytes.append(end - start)
            pending = int(number), partial(call.finish_call, result)
            break
        if counts is not None:
            counts.poems_bytes.append(end - start)
            counts.results_bytes.append(result_bytes)
        reply = b"%d:%b ok.%b," % (len(number) + 4 + result_bytes, number, result)
        replies.append(reply)
        if (room_bytes := room_bytes - len(reply)) < 0:
            break
    if tracer is not None:
        tracer.unsampled_left = left - len(replies) - (pending is not None)
    if call is not None:
        ran_s += note_run_time(service, call, started_s)
    return position, replies, pending, ran_s


def note_run_time(service: Service, call: PreparedCall, started_s: float) -> float:
    """Count and return how many seconds a call has run, once or several times in turn; log it if it was slow."""
    ran_s = service.stopwatch() - started_s
    if ran_s > SLOW_CALL_S:
        call.on_slow_call(ran_s)
    if call.batched_counts is not None:
        call.batched_counts.ran(ran_s)
    return ran_s
