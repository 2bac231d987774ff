"""The session form, on the server: many requests on one connection, answered in any order.

At most ``max_in_flight`` of them run at a time, and nothing is taken on while the peer leaves more than
``max_unread_output_bytes`` unread: the connection is then not read, so that TCP slows the peer down.
"""

import json
from collections import deque

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd import __version__
from xformd.errors import BadFrame, BadRequest, ShuttingDown, TooLarge, XformError
from xformd.forms import Connection
from xformd.wire import netstring, session


class SessionForm:
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
        self._strings: deque[bytes] = deque()  # decoded, and not taken on yet: at most one read's worth
        self._violation: XformError | None = None  # what came after them
        self._in_flight: dict[int, Deferred[bytes]] = {}
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._awaits_rest = False  # the deadline that is running is that of a request of which a part is here
        self._is_going_on = False
        self._has_ended = False  # the client will send nothing more
        self._is_stopping = False
        self._is_closed = False
        self._send(session.encode_hello(self._hello()))
        self.receive(b"")

    def receive(self, data: bytes) -> None:
        """Decode a read's worth of requests in one pass, and take on as many as may run."""
        if self._is_closed:
            return
        try:
            strings = self._decoder.decode(data)
        except netstring.NetstringError as error:
            strings = error.strings
            self._violation = (TooLarge if error.violation == "too_long" else BadFrame)(error.message)
        if strings:
            self._strings.extend(strings)
            self._awaits_rest = False
        self._go_on()

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads what it has asked for."""
        unread_bytes = self._output_bytes + self._connection.unread_bytes
        return not self._is_closed and unread_bytes <= self._max_unread_bytes

    def receive_end(self) -> None:
        """The client will send nothing more: answer what is in flight, then close."""
        self._has_ended = True
        if self._decoder.is_inside:
            self._violation = BadFrame("the stream ended inside a netstring")
        self._go_on()

    def output_drained(self) -> None:
        """The client reads again: go on."""
        self._service.caller_has_room(self)
        self._go_on()

    def stop(self) -> None:
        """Say that the server is stopping; what is in flight is still answered, and nothing more is taken on."""
        self._is_stopping = True
        self._send(session.encode_refusal(session.Refusal(session.CONNECTION_ID, _shutting_down())))
        self._go_on()

    def lost(self) -> None:
        """Give up what runs: nobody waits for it any more."""
        self._is_closed = True
        self._strings.clear()
        for running in [*self._in_flight.values()]:
            running.cancel()

    def _go_on(self) -> None:
        """Take on what may be taken on, send what there is to send, and say what is expected next."""
        if self._is_closed or self._is_going_on:
            return
        self._is_going_on = True
        in_flight, strings, max_in_flight = self._in_flight, self._strings, self._max_in_flight
        may_go_on = self._has_room()
        while strings and may_go_on:
            self._handle(strings.popleft())
            if self._output_bytes > self._max_unread_bytes or len(in_flight) >= max_in_flight:
                may_go_on = self._has_room()
        self._flush()
        self._is_going_on = False
        if self._violation is not None and not self._strings:
            self._break_off(self._violation)
        elif (self._has_ended or self._is_stopping) and not self._strings and not self._in_flight:
            self._is_closed = True
            self._connection.close()
        else:
            self._regulate()

    def _has_room(self) -> bool:
        if len(self._in_flight) >= self._max_in_flight:
            return False
        if self._output_bytes > self._max_unread_bytes:
            self._flush()
        return self._connection.unread_bytes <= self._max_unread_bytes

    def _regulate(self) -> None:
        """Read on or not, and set the deadline that fits."""
        if self._strings or not self._has_room():
            self._connection.pause_reading()
            self._connection.expect(None)
            self._awaits_rest = False
            return
        self._connection.resume_reading()
        limits = self._connection.limits
        if not self._decoder.is_inside:
            self._awaits_rest = False
            self._connection.expect(None if self._in_flight else limits.idle_timeout_s)
        elif not self._awaits_rest:
            self._awaits_rest = True
            self._connection.expect(limits.request_timeout_s)

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
            self._refuse(message.id, message.error)

    def _take_on(self, request: session.Request) -> None:
        if request.id in self._in_flight:
            self._violate(BadRequest(f"the id {request.id} is that of a request in flight"))
            return
        if self._is_stopping:
            self._refuse(request.id, _shutting_down())
            return
        timeout_s = None if request.timeout_ms is None else request.timeout_ms / 1000
        try:
            result = self._service.xform(request.spec, request.poem, timeout_s=timeout_s, caller=self)
        except XformError as error:
            self._refuse(request.id, error)
            return
        if isinstance(result, Deferred):
            self._in_flight[request.id] = result
            result.addCallbacks(self._answer, self._fail, callbackArgs=(request.id,), errbackArgs=(request.id,))
        else:
            self._send(session.encode_reply(session.Reply(request.id, result)))

    def _control(self, request: session.ControlRequest) -> None:
        if request.control == "cancel":
            if request.id in self._in_flight:
                self._in_flight[request.id].cancel()  # which answers it
        elif request.control == "list":
            listed = json.dumps(self._service.describe())
            self._send(session.encode_reply(session.Reply(request.id, listed.encode())))
        else:
            self._send(session.encode_reply(session.Reply(request.id, b"")))

    def _answer(self, poem: bytes, request_id: int) -> None:
        del self._in_flight[request_id]
        if not self._is_closed:
            self._send(session.encode_reply(session.Reply(request_id, poem)))
            self._go_on()

    def _fail(self, failure: Failure, request_id: int) -> None:
        del self._in_flight[request_id]
        error = failure.value
        assert isinstance(error, XformError)  # what the service promises
        if not self._is_closed:
            self._refuse(request_id, error)
            self._go_on()

    def _refuse(self, request_id: int, error: XformError) -> None:
        self._send(session.encode_refusal(session.Refusal(request_id, error)))

    def _violate(self, error: XformError) -> None:
        self._strings.clear()  # what comes after a violation means nothing
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


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("the server is stopping; ask again, here or elsewhere", retry_after_ms=1_000)
