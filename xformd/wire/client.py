"""The client's side of a session, without I/O: bytes and requests go in, bytes to send and outcomes come out.

A shell (``client/link.py``, ``xformd.blocking``) owns the connection. After each call it
writes ``data_to_send()``, hands ``outcomes()`` to those who wait, and closes if ``is_aborted`` or ``is_finished``; at
``check_at`` it calls ``check``. Invariants: no more than the server's ``max_in_flight`` requests are in flight, the
others wait here and can still go to another server; a request that has been written fails with its connection, for the
server may have run it.
"""

import copy
import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from xformd.errors import BadFrame, BadRequest, Busy, ConnectionLost, RequestRefused, ShuttingDown, TooLarge, XformError
from xformd.spec import Spec
from xformd.wire import classic, netstring, session

Message = session.Request | session.ControlRequest

SILENCE_S, DOUBT_S, GIVE_UP_S = 2.0, 1.0, 2.0
"""How long a server that owes an answer may send nothing until it is asked whether it is there; and from then, until
new requests avoid the connection, and until it is given up."""

BARELY_UNSENT_BYTES = 1_000  # with more than this on its way, a question may not have arrived yet
NEVER_HEARD = -math.inf
_ENDS = {True: "the server closed it", False: "it was broken off"}


class SpeaksClassic(Exception):
    """The server closed when a session was opened, as one does that speaks only the classic dialect."""


class NotSent(Exception):
    """The server is known not to have run the request, so it may be sent to another server.

    ``may_reconnect`` says whether to try the same server again on a new connection.
    """

    def __init__(self, error: XformError, *, may_reconnect: bool = False) -> None:
        super().__init__(str(error))
        self.may_reconnect = may_reconnect
        self._error = error

    @property
    def error(self) -> XformError:
        """What the caller gets: a copy of its own, which carries its own poem."""
        error = copy.copy(self._error)
        error.__cause__ = self._error.__cause__
        return error


class Outcome(NamedTuple):
    """What came of something: of a request, its result or error; of the opening, the server's hello or an error."""

    waiter: Any
    value: bytes | session.Hello | Exception


class Pending(NamedTuple):
    """A request without an answer yet; ``ends_at`` is the time at which its caller stops waiting."""

    message: Message
    waiter: Any
    ends_at: float | None
    on_version: Callable[[str | None], None] | None = None  # is told which versions made the result


class _Exchange:
    """What shells treat alike: what is to be written, and what has come of it."""

    opener: Any = None  # the waiter for the outcome of its opening

    def __init__(self, address: str, max_string_bytes: int) -> None:
        self.is_aborted = False
        self.check_at = math.inf
        self._address = address
        self._decoder = netstring.Decoder(max_string_bytes)
        self._has_received = False
        self._output: list[bytes] = []
        self._outcomes: list[Outcome] = []

    @property
    def unsent(self) -> int:
        """How many messages ``data_to_send`` would return."""
        return len(self._output)

    def data_to_send(self) -> bytes:
        """Return what is to be written now."""
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    def outcomes(self) -> list[Outcome]:
        """Return what has come of requests, and of the opening, since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def abort(self) -> None:
        """Ignore what still arrives."""
        self.is_aborted = True

    def _unreadable(self, violation: XformError) -> XformError:
        return type(violation)(f"{self._address} sent an unreadable answer: {violation.message}")


class ClientSession(_Exchange):
    """One session. Times are those of one monotonic clock, in seconds.

    Args:
        address: the server's name in messages.
        max_result_bytes: the longest result to accept.
        token: shown to the server before anything else.

    Its opening has as outcome ``hello``, ``SpeaksClassic`` or an ``XformError``.
    """

    # What a shell may set: whether the system has sent the same again and again without an answer, and how much of the
    # output the server's machine has not acknowledged.
    seems_gone: Callable[[], bool] = staticmethod(lambda: False)
    bytes_in_system: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(self, address: str, max_result_bytes: int, token: str | None = None) -> None:
        super().__init__(address, max_result_bytes + session.MAX_HEAD_BYTES)
        self.hello: session.Hello | None = None  # the server's name, version and limits
        self._max_result_bytes = max_result_bytes
        self._token = token  # until the server knows it
        self._is_opening = True
        self._last_id = self._answers = 0
        self._waiting: deque[Pending] = deque()
        self._in_flight: dict[int, Pending] = {}
        self._cancelled: set[int] = set()  # cancelled, but the server has not said so yet
        self._goodbye: XformError | None = None
        self._asked_at: float | None = None  # it has sent nothing since then

    def is_open(self, now: float) -> bool:
        """Whether it accepts new requests."""
        is_ready = self.hello is not None and self._goodbye is None and not self.is_aborted
        return is_ready and (self._asked_at is None or not self._is_unanswered(now, DOUBT_S))

    @property
    def load(self) -> int:
        """How many requests have no answer yet; a cancelled one counts until the server confirms it."""
        return len(self._in_flight) + len(self._cancelled) + len(self._waiting)

    @property
    def is_finished(self) -> bool:
        """Whether the connection is to be closed, once all is sent: nothing new may be asked, and all is answered."""
        return self._goodbye is not None and not self._in_flight and not self._waiting

    @property
    def is_ending(self) -> bool:
        """Whether it will never accept a request again."""
        return self._goodbye is not None or self.is_aborted

    # What the program does.

    def open(self) -> None:
        """Begin, once there is a connection."""
        self._output.append(session.encode_opening())
        if self._token is not None:
            request = session.ControlRequest(self._next_id(), "auth", self._token.encode())
            self._in_flight[request.id] = Pending(request, self, None)
            self._output.append(session.encode_control(request))

    def request(
        self,
        waiter: Any,
        now: float,
        spec: Spec,
        poem: bytes,
        ends_at: float | None = None,
        client: str | None = None,
        traceparent: str | None = None,
        on_version: Callable[[str | None], None] | None = None,
    ) -> Pending:
        """Send a poem, for a ``client`` of this program; its caller stops waiting at ``ends_at``.

        Its outcome is ``NotSent`` if the server is known not to have run it. Before a result, ``on_version`` is told
        which versions made it, as far as the server says so.
        """
        wants_version = on_version is not None
        request = session.Request(self._next_id(), spec, poem, None, client, traceparent, wants_version)
        return self._enqueue(Pending(request, waiter, ends_at, on_version), now)

    def control(self, waiter: Any, now: float, control: session.Control) -> Pending:
        """Send a control message; its outcome is the answer."""
        return self._enqueue(Pending(session.ControlRequest(self._next_id(), control), waiter, None), now)

    def cancel(self, pending: Pending, now: float) -> None:
        """Cancel a request, at the server too. It has no outcome."""
        if pending in self._waiting:
            self._waiting.remove(pending)
        elif self._in_flight.pop(pending.message.id, None) is not None and not self.is_aborted:
            self._cancelled.add(pending.message.id)
            self._ask(session.ControlRequest(pending.message.id, "cancel"), now)

    def close(self) -> None:
        """Accept no new requests, and be finished when those in flight are answered."""
        self._goodbye = self._goodbye or ShuttingDown("this client is closing")

    # What the connection does.

    def receive(self, data: bytes, now: float) -> None:
        """Take what has arrived."""
        if self.is_aborted:
            return
        self._has_received, self._asked_at = True, None
        self.check_at = now + SILENCE_S
        violation: XformError | None = None
        try:
            strings = self._decoder.decode(data)
        except netstring.NetstringError as error:
            strings, violation = error.strings, error.wire_error
        try:
            for string in strings:
                self._handle(string)
        except BadFrame as error:
            violation = error
        if violation is not None:
            self._break_off(violation)
        else:
            self._write_waiting(now)

    def lose(self, reason: str, *, is_clean: bool) -> None:
        """Take the end of the connection: fail what is in flight; what is not written may go to another server.

        It ``is_clean`` if the server closed it in order: only that is an answer; a reset means that it has just died.
        There is a ``reason`` if it is neither of these.
        """
        self.check_at = math.inf
        said = f": {self._goodbye.message}" if self._goodbye else ""
        lost = ConnectionLost(f"the connection to {self._address} is lost ({reason or _ENDS[is_clean]}){said}")
        self._fail_opening(SpeaksClassic(self._address) if is_clean and not self._has_received else lost)
        self._fail_all(lost)
        self._cancelled.clear()
        self.is_aborted = True

    def check(self, now: float) -> None:
        """Ask a server that owes an answer and is silent whether it is there; give it up if that has no answer."""
        now, self.check_at = max(now, self.check_at) if self.check_at < math.inf else now, math.inf
        if self._asked_at == NEVER_HEARD:
            self._fail_all(ConnectionLost(f"{self._address} has stopped answering, even a ping: it may be gone"))
            self.abort()
        elif self.is_finished:  # only what nobody waits for is unsent, and a server need not read it
            self.abort()
        elif self._is_unanswered(now, GIVE_UP_S):
            self._asked_at = NEVER_HEARD
            self.check_at = now  # what came while this process did something else is read first
        elif self._asked_at is not None:
            self.check_at = now + GIVE_UP_S
        elif self._in_flight or self._cancelled:
            self._ask(session.ControlRequest(self._next_id(), "ping"), now)

    # A request on its way.

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _enqueue(self, pending: Pending, now: float) -> Pending:
        if self.is_ending:
            error = self._goodbye or ShuttingDown("this client is closing")
            self._outcomes.append(Outcome(pending.waiter, NotSent(error, may_reconnect=True)))
        else:
            self._waiting.append(pending)
            self._write_waiting(now)
        return pending

    def _write_waiting(self, now: float) -> None:
        # A session that was closed here has accepted what waits; where the server ends it, nothing waits any more.
        if self.hello is None or self.is_aborted or self._is_unanswered(now, DOUBT_S):
            return
        while self._waiting and len(self._in_flight) + len(self._cancelled) < self.hello.max_in_flight:
            self._write(self._waiting.popleft(), self.hello.max_request_bytes, now)

    def _write(self, pending: Pending, max_request_bytes: int, now: float) -> None:
        data = _encode(pending, now)
        size = len(data) - data.index(b":") - 2  # without its frame
        if size > max_request_bytes:
            message = f"the request has {size} bytes; the limit of {self._address} is {max_request_bytes} bytes"
            self._outcomes.append(Outcome(pending.waiter, TooLarge(message)))
            return
        if not self._in_flight and not self._cancelled:
            self.check_at = now + SILENCE_S
        self._in_flight[pending.message.id] = pending
        self._output.append(data)

    def _handle(self, string: bytes) -> None:
        if self.hello is None:
            self.hello = session.decode_hello(string)
            self._open_if_known()
            return
        reply = session.decode_reply(string)
        self._answers += 1
        if self._answers > self._last_id + 1:  # one for each id, and one for the connection
            raise BadFrame("more answers than requests")
        pending = self._in_flight.pop(reply.id, None)
        self._cancelled.discard(reply.id)
        if isinstance(reply, session.Reply):
            if pending is not None:
                self._take_result(pending, reply)
        elif reply.id == session.CONNECTION_ID:
            self._goodbye = reply.error
            self._fail_waiting(reply.error)
        elif pending is not None:
            if isinstance(reply.error, ShuttingDown):
                self._goodbye = reply.error
                self._fail_waiting(reply.error)
            self._settle(pending, _as_not_sent(reply.error))

    def _take_result(self, pending: Pending, reply: session.Reply) -> None:
        if pending.on_version is not None:
            pending.on_version(reply.version)
        value: bytes | TooLarge = reply.poem
        # The decoder's limit covers head and poem together, so a poem may be longer by what its head is shorter.
        if len(reply.poem) > self._max_result_bytes and not isinstance(pending.message, session.ControlRequest):
            limit = f"the limit is {self._max_result_bytes} bytes"
            value = TooLarge(f"the result has {len(reply.poem)} bytes; {limit}")
        self._settle(pending, value)

    def _settle(self, pending: Pending, value: bytes | Exception) -> None:
        if pending.waiter is not self:
            self._outcomes.append(Outcome(pending.waiter, value))
        elif isinstance(value, bytes | BadRequest):  # an older server knows no such message, and needs no token
            self._token = None
            self._open_if_known()
        elif self._is_opening:
            self._fail_opening(value)
            self.abort()

    def _open_if_known(self) -> None:
        if self._token is None and self.hello is not None and self._is_opening:
            self._is_opening = False
            self._outcomes.append(Outcome(self.opener, self.hello))

    # A server that is silent.

    def _ask(self, control: session.ControlRequest, now: float) -> None:
        """Send what a server answers at once."""
        self._output.append(session.encode_control(control))
        if self._asked_at is None:
            self._asked_at = now
            self.check_at = now + GIVE_UP_S

    def _is_unanswered(self, now: float, after_s: float) -> bool:
        if self._asked_at is None or self.hello is None or now < self._asked_at + after_s:
            return False
        # It may not have heard: at its limit it does not read, and an upload is in the way.
        is_full = len(self._in_flight) + len(self._cancelled) >= self.hello.max_in_flight
        return self.seems_gone() or (not is_full and self.bytes_in_system() < BARELY_UNSENT_BYTES)

    # The end.

    def _break_off(self, violation: XformError) -> None:
        error = self._unreadable(violation)
        self._goodbye = error
        self._fail_opening(error)
        self._fail_all(error)
        self.abort()

    def _fail_opening(self, error: Exception) -> None:
        if self._is_opening:
            self._is_opening = False
            self._outcomes.append(Outcome(self.opener, error))

    def _fail_all(self, error: XformError) -> None:
        self._goodbye = self._goodbye or error
        self._fail_waiting(error)
        in_flight, self._in_flight = self._in_flight, {}
        for pending in in_flight.values():
            if pending.waiter is not self:
                self._outcomes.append(Outcome(pending.waiter, copy.copy(error)))

    def _fail_waiting(self, error: XformError) -> None:
        waiting, self._waiting = self._waiting, deque()
        self._outcomes.extend(Outcome(each.waiter, NotSent(error, may_reconnect=True)) for each in waiting)


class ClassicExchange(_Exchange):
    """One request to a server that speaks only the classic dialect; its outcome is that of its opening.

    A shell treats it as it treats a ``ClientSession``. It is aborted after an answer too: a server that answered early
    may never read all of the request.
    """

    is_finished = False

    def __init__(self, address: str, spec: Spec, poem: bytes, max_result_bytes: int) -> None:
        super().__init__(address, max_result_bytes)
        self._spec = spec
        self._output.append(classic.encode_request(classic.Request(spec, poem)))

    def open(self) -> None:
        """Begin, once there is a connection."""

    def receive(self, data: bytes, _: float) -> None:
        """Take what has arrived."""
        self._has_received = True
        try:
            strings = self._decoder.decode(data, max_strings=1)
        except netstring.NetstringError as violation:
            self._settle(self._unreadable(violation.wire_error))
        else:
            if strings:
                self._settle(strings[0])

    def lose(self, reason: str, *, is_clean: bool) -> None:
        """Take the end of the connection; as in a ``ClientSession``."""
        if self._has_received or not is_clean:
            how = "closed the connection" if is_clean else f"is gone ({reason or _ENDS[is_clean]})"
            self._settle(ConnectionLost(f"{self._address} {how} before the whole answer had arrived"))
            return
        refused = (
            f"{self._address} refused {self._spec} without an answer, as the classic dialect does: check the "
            "transform's name and options (xformd list-transforms), that the poem is what it takes (UTF-8 text?) "
            "and its size; the server's log has the reason"
        )
        self._settle(RequestRefused(refused, log_message=f"{self._address} refused a request"))

    def _settle(self, value: bytes | Exception) -> None:
        if not self.is_aborted:
            self.is_aborted = True
            self._outcomes.append(Outcome(self.opener, value))


def _encode(pending: Pending, now: float) -> bytes:
    message = pending.message
    if isinstance(message, session.ControlRequest):
        return session.encode_control(message)
    if pending.ends_at is not None:
        timeout_ms = round(1000 * max(0.0, pending.ends_at - now))
        more = message.client, message.traceparent, message.wants_version
        message = session.Request(message.id, message.spec, message.poem, timeout_ms, *more)
    return session.encode_request(message)


def _as_not_sent(error: XformError) -> Exception:
    """Mark an error that says when to ask again: it shows that the server did not run the request."""
    if isinstance(error, ShuttingDown | Busy) and error.retry_after_ms is not None:
        return NotSent(error, may_reconnect=isinstance(error, ShuttingDown))
    return error
