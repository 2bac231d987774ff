"""The session form, on the server: many requests on one connection, answered in any order.

At most ``max_in_flight`` of them run at a time, and nothing is taken on while the peer leaves more than
``max_unread_output_bytes`` unread: the connection is then not read, so that TCP slows the peer down. What one read
brings may be thousands of messages: others are heard after ``TURN_S`` of them.
"""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd import __version__
from xformd.dialects import fast_path
from xformd.dialects.interfaces import Connection
from xformd.errors import BadFrame, BadRequest, ShuttingDown, TooLarge, TransformTimeout, XformError
from xformd.net.write_buffer import PART_BYTES
from xformd.wire import netstring, session

TURN_S = 0.01
"""How long one connection's messages are worked at before it is the others' turn."""


class SessionHandler:
    """Answers requests until the client or the server has had enough.

    Args:
        connection: on which they come.
        decoder: has decoded the client's opening, and may hold what came after it.
    """

    def __init__(self, connection: Connection, decoder: netstring.Decoder) -> None:
        self._connection = connection
        self._decoder = decoder
        self._service = connection.service
        self._max_in_flight = connection.limits.max_in_flight
        self._max_unread_bytes = connection.limits.max_unread_output_bytes
        self._max_request_bytes = connection.limits.max_request_bytes
        self._idle_timeout_s = connection.limits.idle_timeout_s
        self._violation: XformError | None = None  # what came after all that has been taken on
        self._in_flight: dict[int, Deferred[bytes]] = {}
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._is_at_rest = False  # no request waits or is here in part, and more may be taken on
        self._awaits_rest = False  # the deadline that is running is that of a request of which a part is here
        self._is_going_on = False
        self._awaits_turn = False  # its time is over, and messages are left
        self._has_ended = False  # the client will send nothing more
        self._is_stopping = False
        self._is_closed = False
        self._send(session.encode_hello(self._hello()))
        self.receive(b"")

    def receive(self, data: bytes) -> None:
        """Take on what has arrived, as much of it as may run; the rest waits in the decoder."""
        if not self._is_at_rest or len(data) > self._max_request_bytes:
            if not self._is_closed:
                self._decoder.feed(data)
                self._go_on()
            return
        # What nearly every read goes through, so it leaves out all that cannot have changed.
        replies: list[bytes] = []
        end, outcome = fast_path.answer(self._service, data, 0, self._in_flight, self._max_unread_bytes, replies)
        self._decoder.feed(data, end)
        if end < len(data) or outcome is not None:
            self._note_answers(replies, outcome)
            self._go_on()
            return
        self._connection.write(b"".join(replies))
        if self._connection.unread_bytes:
            self._go_on()
        elif not self._in_flight:
            self._connection.set_deadline(self._idle_timeout_s)

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads what it has asked for."""
        unread_bytes = self._output_bytes + self._connection.unread_bytes
        return not self._is_closed and unread_bytes <= self._max_unread_bytes

    def receive_end(self) -> None:
        """The client will send nothing more: answer what is in flight, if that comes soon, then close."""
        self._has_ended = True
        self._go_on()

    def output_drained(self) -> None:
        """The client reads again: go on."""
        self._service.caller_has_room(self)
        self._go_on()

    def expire(self) -> bool:
        """End a session that has been at rest for too long, and say so; anything else must be cut off."""
        if not self._is_at_rest or self._in_flight or self._connection.unread_bytes:
            return False
        self._break_off(TransformTimeout(f"nothing was asked for {self._idle_timeout_s:g} s"))
        return True

    def stop(self) -> None:
        """Say that the server is stopping; what is in flight is still answered, and nothing more is taken on."""
        self._is_stopping = True
        self._is_at_rest = False
        self._send(session.encode_refusal(session.Refusal(session.CONNECTION_ID, ShuttingDown.not_started())))
        self._go_on()

    def lost(self) -> None:
        """Give up what runs: nobody waits for it any more."""
        self._is_closed = True
        self._is_at_rest = False
        for running in [*self._in_flight.values()]:
            running.cancel()

    def _go_on(self) -> None:
        """Take on what may be taken on, send what there is to send, and say what is expected next."""
        if self._is_closed or self._is_going_on:
            return
        self._is_going_on = True
        self._is_at_rest = False
        if not self._awaits_turn:
            self._take_turn()
        self._flush()
        self._is_going_on = False
        decoder = self._decoder
        if self._has_ended and decoder.is_inside and not decoder.has_unread:
            self._violation = self._violation or BadFrame("the stream ended inside a netstring")
        if self._violation is not None:
            self._connection.count_refusal(self._violation)
            self._break_off(self._violation)
        elif (self._has_ended or self._is_stopping) and not decoder.has_unread and not self._in_flight:
            self._is_closed = True
            self._connection.close()
        else:
            self._regulate()

    def _take_turn(self) -> None:
        """Take on what may be taken on, as long as this turn lasts; the rest has another turn."""
        stopwatch = self._service.stopwatch
        ends_s = stopwatch() + TURN_S
        while self._has_room() and self._take_on_some():
            if stopwatch() > ends_s:
                if self._decoder.has_unread:
                    self._awaits_turn = True
                    self._connection.call_soon(self._next_turn)
                return

    def _next_turn(self) -> None:
        self._awaits_turn = False
        self._go_on()

    def _take_on_some(self) -> bool:
        """Take on plain requests, as many as come, or else one message of any kind; say whether there may be more."""
        decoder = self._decoder
        if self._violation is not None or not decoder.has_unread:
            return False
        if not decoder.is_inside and not self._is_stopping and self._answer_at_once():
            return True
        try:
            strings = decoder.decode(max_strings=1)
        except netstring.NetstringError as error:
            self._violation = (TooLarge if error.violation == "too_long" else BadFrame)(error.message)
            return False
        for string in strings:
            self._awaits_rest = False
            self._handle(string)
        return bool(strings)

    def _answer_at_once(self) -> bool:
        """Answer plain requests; say whether any was."""
        data, position = self._decoder.unread
        if len(data) > self._max_request_bytes:
            return False
        room_bytes = self._max_unread_bytes - self._output_bytes
        replies: list[bytes] = []
        end, outcome = fast_path.answer(self._service, data, position, self._in_flight, room_bytes, replies)
        if end == position:
            return False
        self._decoder.skip_to(end)
        self._note_answers(replies, outcome)
        return True

    def _note_answers(self, replies: list[bytes], outcome: fast_path.Outcome | None) -> None:
        self._awaits_rest = False
        self._send(b"".join(replies))
        if outcome is not None:
            self._settle(outcome.request_id, lambda: outcome.ready.finish_call(outcome.result))

    def _has_room(self) -> bool:
        if len(self._in_flight) >= self._max_in_flight:
            return False
        if self._output_bytes > self._max_unread_bytes:
            self._flush()
        return self._connection.unread_bytes <= self._max_unread_bytes

    def _regulate(self) -> None:
        """Read on or not, and set the deadline that fits."""
        if self._decoder.has_unread or not self._has_room():
            self._connection.pause_reading()
            self._connection.set_deadline(None)
            self._awaits_rest = False
            return
        self._connection.resume_reading()
        self._connection.hint_read_size(self._decoder.string_bytes)
        if not self._decoder.is_inside:
            self._is_at_rest = not self._is_stopping
            self._awaits_rest = False
            self._connection.set_deadline(self._answer_timeout_s() if self._in_flight else self._idle_timeout_s)
        elif not self._awaits_rest:
            self._awaits_rest = True
            self._connection.set_deadline(self._connection.limits.request_timeout_s)

    def _answer_timeout_s(self) -> float | None:
        """Say how long the next answer may take: the service has limits of its own.

        But a client that has ended its side may be gone, which only an answer to it would show.
        """
        return self._connection.limits.linger_timeout_s if self._has_ended else None

    def _handle(self, string: bytes) -> None:
        try:
            message = session.decode_request(string)
        except BadFrame as error:
            self._violate(error)
            return
        if isinstance(message, session.Request):
            self._take_on(message)
        elif isinstance(message, session.ControlRequest):
            self._control(message)
        else:
            self._turn_away(message.id, message.error)

    def _take_on(self, request: session.Request) -> None:
        if request.id in self._in_flight:
            self._violate(BadRequest(f"the id {request.id} is that of a request in flight"))
            return
        if self._is_stopping:
            self._turn_away(request.id, ShuttingDown.not_started())
            return
        timeout_s = None if request.timeout_ms is None else request.timeout_ms / 1000
        xform = self._service.xform
        self._settle(request.id, lambda: xform(request.spec, request.poem, timeout_s=timeout_s, caller=self))

    def _settle(self, request_id: int, work: Callable[[], bytes | Deferred[bytes]]) -> None:
        try:
            result = work()
        except XformError as error:
            self._refuse(request_id, error)
            return
        if isinstance(result, Deferred):
            self._in_flight[request_id] = result
            result.addCallbacks(self._answer, self._fail, callbackArgs=(request_id,), errbackArgs=(request_id,))
        else:
            self._send(session.encode_reply(session.Reply(request_id, result)))

    def _control(self, request: session.ControlRequest) -> None:
        if request.control == "cancel":
            if request.id in self._in_flight:
                self._in_flight[request.id].cancel()  # which answers it
        elif request.control == "list":
            self._send(session.encode_reply(session.Reply(request.id, self._service.listing())))
        else:
            self._send(session.encode_reply(session.Reply(request.id, b"")))

    def _answer(self, poem: bytes, request_id: int) -> None:
        del self._in_flight[request_id]
        if self._is_closed:
            return
        if len(poem) < PART_BYTES:
            self._send(session.encode_reply(session.Reply(request_id, poem)))
        else:  # as it lies: it is not copied into its frame
            self._flush()
            for part in session.frame_reply(session.Reply(request_id, poem)):
                self._connection.write(part)
        self._go_on()

    def _fail(self, failure: Failure, request_id: int) -> None:
        del self._in_flight[request_id]
        error = failure.value
        assert isinstance(error, XformError)  # what the service promises
        if not self._is_closed:
            self._refuse(request_id, error)
            self._go_on()

    def _turn_away(self, request_id: int, error: XformError) -> None:
        """Refuse a request that never reaches the service."""
        self._connection.count_refusal(error)
        self._refuse(request_id, error)

    def _refuse(self, request_id: int, error: XformError) -> None:
        self._send(session.encode_refusal(session.Refusal(request_id, error)))

    def _violate(self, error: XformError) -> None:
        self._violation = error

    def _break_off(self, error: XformError) -> None:
        self._refuse(session.CONNECTION_ID, error)
        self._flush()
        self._connection.log_refusal(error)
        self.lost()
        self._connection.close()

    def _send(self, data: bytes) -> None:
        self._output.append(data)
        self._output_bytes += len(data)

    def _flush(self) -> None:
        if self._output:
            data = b"".join(self._output) if len(self._output) > 1 else self._output[0]
            self._output.clear()
            self._output_bytes = 0
            self._connection.write(data)

    def _hello(self) -> session.Hello:
        limits = self._connection.limits
        return session.Hello(f"xformd {__version__}", limits.max_request_bytes, limits.max_in_flight)
