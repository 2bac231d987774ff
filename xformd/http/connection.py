"""HTTP/1.1 on a connection: requests are answered in their order, one at a time.

Invariant: nothing behind the request that is being answered is parsed, and at most one read of it is kept. A request
has ``request_timeout_s`` from its first byte, or from its turn, until it has fully arrived.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.python.failure import Failure

from xformd.dialects.handler import ConnectionHandler, TurnTaker
from xformd.errors import BadRequest, Busy, Cancelled, ShuttingDown, TooLarge, XformError
from xformd.http.application import UNTRACED, Application, GuardedApplication
from xformd.http.forwarded import Source, TrustedProxies
from xformd.http.messages import (
    CONTINUE,
    LAST_CHUNK,
    Request,
    Response,
    TakeBody,
    encode_chunk,
    encode_head,
    problem_response,
)
from xformd.limits import Limits
from xformd.net.connections import ConnectionLimitReached, Connections, IdleConnections
from xformd.net.write_buffer import PART_BYTES
from xformd.protocol import BUSY_RETRY_MS, TransformFactory, TransformProtocol
from xformd.runners.generation import internal_error
from xformd.service import Service
from xformd.telemetry.metrics import OK, Metrics
from xformd.wire.http1 import END, HttpError, RequestHead, RequestParser
from xformd.wire.session import read_traceparent

if TYPE_CHECKING:  # a response has it
    from xformd.http.batch import BatchLines

PROBE_S = 0.5  # how long after a half-close to probe whether the client still reads
PROBE_AGAIN_S = 5.0  # how long to wait until the next probe


class HttpHandler(TurnTaker, ConnectionHandler):
    """Answers the requests of one connection, which is among the idle ones while no whole request is there."""

    _connection: TransformProtocol

    def __init__(
        self,
        connection: TransformProtocol,
        application: Application | GuardedApplication,
        idle_connections: IdleConnections,
        proxies: TrustedProxies,
        forwarded: "Connections[HttpHandler]",
    ) -> None:
        super().__init__(connection.service, "")  # whose time it takes a PROXY header may have to say first
        self._connection = connection
        self.call_soon = connection.call_soon
        self._proxies, self._forwarded = proxies, forwarded
        self._source: Source | None = None  # who sends all of its requests; None behind a trusted proxy
        self._application = application
        self._idle_connections = idle_connections
        self._max_request_bytes = connection.limits.max_request_bytes
        self._max_unread_bytes = connection.limits.max_unread_output_bytes
        self._parser = RequestParser(self._max_request_bytes)
        self._request: Request | None = None  # which arrives, or is being answered
        self._take_body: TakeBody | None = None  # responds to it once it is here; None if it has its response already
        self._body = io.BytesIO()  # one that grows: in a list, pieces of a byte would cost forty each
        self._running: Deferred[Response] | BatchLines | None = None  # makes the response, or its body
        self._has_long_body = False  # more is read at a time
        self._closes_after_stream = False
        self._deadline_is_for = "idle"  # or "request" or "probe"; empty where there is none
        self._peer_has_finished = False
        self._is_stopping = False
        idle_connections[connection] = None

    # Called by the connection.

    def receive(self, data: bytes) -> None:
        """Handle what has arrived, or keep it behind the request that is being answered."""
        if not self._share:
            self._share = self._connection.share
            self._takes_turns = not self._connection.is_trusted  # a proxy's clients have turns of their own
        self._parser.feed(data)
        self._work()

    def receive_end(self) -> None:
        """Answer every complete request, then close: the client sends nothing more."""
        self._peer_has_finished = True
        self._work()

    def output_drained(self) -> None:
        """Go on: the client has read everything."""
        if self._running is None:
            self._work()
        elif not isinstance(self._running, Deferred):
            self._running.resume()

    def reject(self, error: XformError) -> None:
        """Answer the request that arrives with an error."""
        if self._running is None and not self._is_closed:
            self._refuse(error)

    def expire(self) -> bool:
        """Answer 408 to a request that was too slow, close an idle connection, or probe one that is half-closed."""
        if self._running is not None:
            request = self._request
            if request is not None and not request.head.is_1_0 and not request.is_answered:
                self._connection.write(CONTINUE)  # a half-closed client ignores it, and one that is gone resets
            self._connection.set_deadline(PROBE_AGAIN_S)
        elif self._parser.is_inside:
            limit_s = self._connection.limits.request_timeout_s
            self._refuse(BadRequest(f"the request had not fully arrived after {limit_s:g} s (request_timeout_s)"), 408)
        else:
            self._close()
        return True

    def stop(self) -> None:
        """Answer every complete request, then close: the server is stopping."""
        self._is_stopping = True
        self._work()

    def lost(self) -> None:
        """Cancel the request in progress: the connection is gone."""
        self._is_closed = True
        self._idle_connections.pop(self._connection, None)
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        self._give_up_request()

    # Called by a stream.

    def has_room_beside(self, count: int) -> bool:
        """Whether the client reads what is sent, and there is room for more beside this many bytes."""
        return not self._is_closed and self._connection.unread_bytes + count <= self._max_unread_bytes

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        assert self._request is not None
        self._send(data if self._request.head.is_1_0 else encode_chunk(data))
        self._flush()

    def end(self) -> None:
        """End the body."""
        assert self._request is not None
        if not self._request.head.is_1_0:
            self._send(LAST_CHUNK)
        if self._request.entry is not None:
            self._request.entry.finish(OK)
        self._running = None
        self._finish_request()
        if self._closes_after_stream:
            self._close()
        self._work()

    # How requests are handled.

    def _has_more(self) -> bool:
        return self._running is None and not self._is_closed and self._parser.has_unread

    def _take_step(self) -> bool:
        is_free = self._running is None and not self._is_closed and self._may_answer()
        return is_free and self._take_request() and self._parser.has_unread

    def _take_request(self) -> bool:
        """Handle what is there of one request; return False where more has to arrive, or nothing more is read."""
        parser, stopwatch = self._parser, self._service.stopwatch
        try:
            while (event := parser.next_event()) is not END:
                if event is None:
                    return False
                if isinstance(event, bytes):
                    self._keep(event)
                    if stopwatch() > self._turn_ends_s and parser.has_unread:  # chunks of one byte, say
                        return True
                else:
                    self._begin(event)
                    if self._is_closed:
                        return False
                    if (whole := parser.take_whole_body()) is not None:
                        self._complete(whole)
                        return True
        except HttpError as error:
            self._refuse(error.wire_error, error.status, error)
            return False
        body, self._body = self._body, io.BytesIO()
        self._complete(body.getvalue())
        return True

    def _may_answer(self) -> bool:
        unread_bytes = self._output_bytes + self._connection.unread_bytes
        if self._output_bytes > PART_BYTES or unread_bytes > self._max_unread_bytes:
            self._flush()
        return self._connection.unread_bytes <= self._max_unread_bytes

    def _begin(self, head: RequestHead) -> None:
        """Respond to a head at once, or learn what makes the response once the body is here."""
        request = self._request = Request(
            head, self._source or self._find_source(head.headers), self._connection.credentials
        )
        application = self._application
        if application.keeps_entries and (
            application.access_log is not None or not application.tracer.skips(head.headers.get(b"traceparent"))
        ):
            self._begin_entry(request)
        body_bytes, max_bytes = head.body_bytes, self._max_request_bytes
        if body_bytes is not None and body_bytes > max_bytes:
            error = TooLarge(f"the body has {body_bytes} bytes; the limit is {max_bytes} bytes")
            self._refuse(error)
            return
        respond = self._respond_within_limit if self._source is None else self._application.respond
        outcome: Response | TakeBody
        try:
            outcome = respond(request)
        except Exception:
            outcome = self._problem(Failure())
        if isinstance(outcome, Response):
            if outcome.code != OK:  # what the service gets, it counts itself
                self._connection.count_refusal(outcome.code)
            # A client that waits for "100 Continue" may send its body now, or another request: they look the same.
            self._respond(outcome, closes=head.expects_continue)
            return
        self._take_body = outcome
        if head.expects_continue:
            self._send(CONTINUE)
        if body_bytes is None or body_bytes > PART_BYTES:
            self._has_long_body = True
            self._connection.note_arrival(body_bytes or PART_BYTES, request.caller.share)

    def _begin_entry(self, request: Request) -> None:
        """Begin its line and its span. The service finishes them, or else whatever ends the request here."""
        trace = read_traceparent(request.headers.get(b"traceparent"))
        state = request.headers.get(b"tracestate", b"")
        entry = self._connection.begin_entry(request.id.decode(), None, trace, state)
        if entry is None:
            return
        # Of methods the parser knows a few, and no other word.
        entry.method, entry.endpoint = request.method or None, self._application.endpoint_of(request.path)
        entry.peer = request.client or entry.peer
        if entry.trace is not None:
            if entry.endpoint in UNTRACED:
                entry.trace = None
            else:
                transport = self._connection.transport
                entry.trace.note("url.scheme", "https" if ISSLTransport.providedBy(transport) else "http")
                entry.trace.note("network.protocol.version", "1.0" if request.head.is_1_0 else "1.1")
        request.entry = None if entry.log is None and entry.trace is None else entry

    def _find_source(self, headers: Mapping[bytes, bytes]) -> Source:
        """Return who sent a request: the peer, for all that come on this connection, unless that is a trusted proxy."""
        peer = self._connection.peer
        if self._connection.is_trusted:
            return self._proxies.read(peer, headers)
        self._source = Source(peer, share=self._connection.share)
        return self._source

    def _respond_within_limit(self, request: Request) -> Response | TakeBody:
        """Respond to a request of a proxy, unless its client has too many in flight."""
        refusal = None if request.client is None else self._forwarded.limit_reached(request.client)
        if refusal is not None and refusal.kind == "peer":
            message = f"too many of your requests are in flight: {refusal.reason}"
            raise Busy(message, retry_after_ms=BUSY_RETRY_MS)
        self._forwarded.add(self, request.client)
        return self._application.respond(request)

    def _finish_request(self) -> None:
        """Forget the request: it has its answer, or its connection is gone."""
        self._request = None
        if self._source is None:
            self._forwarded.discard(self)

    def _keep(self, piece: bytes) -> None:
        """Keep a piece of the body, unless the request has its response already."""
        if self._take_body is None:
            return
        self._body.write(piece)
        if self._request is not None and self._request.head.body_bytes is None:
            self._connection.note_arrival(self._body.tell(), self._request.caller.share)

    def _complete(self, body: bytes) -> None:
        """Run a request that has fully arrived."""
        self._deadline_is_for = ""
        if self._has_long_body:
            self._has_long_body = False
            self._connection.note_arrival(0)
        self._idle_connections.pop(self._connection, None)
        take_body, self._take_body = self._take_body, None
        if take_body is None:
            self._finish_request()
            return
        outcome: Response | Deferred[Response]
        try:
            outcome = take_body(body) if self._source is not None else self._run_for_client(take_body, body)
        except Exception:
            outcome = self._problem(Failure())
        if isinstance(outcome, Response):
            self._answer(outcome)
        else:
            self._running = outcome
            outcome.addCallbacks(self._answer, self._fail)

    def _run_for_client(self, take_body: TakeBody, body: bytes) -> Response | Deferred[Response]:
        """Run a request of a trusted proxy in the turn of its client."""
        assert self._request is not None
        service, share = self._service, self._request.caller.share
        if share in service.turns.over:
            return service.turns.next_turn(share, body).addCallback(take_body)
        began_s = service.stopwatch()
        outcome = take_body(body)
        service.turns.used(share, service.stopwatch() - began_s)
        return outcome

    def _problem(self, failure: Failure) -> Response:
        assert self._request is not None
        error = failure.value
        if not isinstance(error, XformError):
            error = internal_error(failure, self._request.timing)
        return problem_response(error, self._request.id)

    # How they are answered.

    def _answer(self, response: Response) -> None:
        """Send the response to a request that has fully arrived, and go on."""
        self._running = None
        if self._is_closed:
            return
        was_working, self._is_working = self._is_working, True  # a stream may end before _respond returns
        self._respond(response)
        self._is_working = was_working
        if self._running is None:
            self._finish_request()
        if not self._is_working:
            self._work()

    def _fail(self, failure: Failure) -> None:
        if not self._is_closed:
            self._answer(self._problem(failure))

    def _respond(self, response: Response, *, closes: bool = False) -> None:
        """Send a response, or begin one that is a stream; close the connection if it is the last."""
        request, body = self._request, response.body
        assert request is not None
        request.is_answered = True
        if (self._is_stopping or self._peer_has_finished) and not self._parser.has_unread:
            closes = True  # no request can follow
        closes = closes or not request.head.keeps_alive or (request.head.is_1_0 and type(body) is not bytes)
        if request.entry is not None:
            request.entry.status = response.status
        head = encode_head(response, request, self._application.general_headers(request.head), closes=closes)
        if not isinstance(body, bytes):
            self._closes_after_stream = closes
            self._send(head)
            self._running = body
            body.start(self)
            return
        if request.entry is not None:
            request.entry.finish(response.code)
        self._send(head)
        if request.method != "HEAD":
            if len(body) > PART_BYTES:
                self._flush()  # so that it is not copied
            self._send(body)
        if closes:
            self._close()

    def _refuse(self, error: XformError, status: int | None = None, of: HttpError | None = None) -> None:
        """Answer with an error, unless the request has its answer, and close: what follows is not read.

        A ``status`` may be more precise than the error's own; ``of`` is what the parser has raised of a bad head.
        """
        if self._request is None:
            method = self._parser.begun_method
            headers: Mapping[bytes, bytes] = {} if of is None else of.headers
            head = RequestHead(method, b"", b"", headers, 0, is_1_0=False, keeps_alive=False, expects_continue=False)
            self._request = Request(head, self._source or self._find_source(headers))
            if self._application.keeps_entries:
                self._begin_entry(self._request)
        self._take_body = None
        client = self._request.client
        self._connection.log_refusal(error, None if client == self._connection.peer else client)
        if self._request.is_answered:  # and counted
            self._close()
            return
        self._connection.count_refusal(error.code)
        self._respond(problem_response(error, self._request.id, status), closes=True)

    def _close(self) -> None:
        """Send what is left, and close."""
        self._is_closed = True
        self._give_up_request()
        # Until its client closes too it counts as a connection, and one that has all it gets is the first to go.
        self._idle_connections[self._connection] = None
        output, self._output, self._body = self._output, [], io.BytesIO()
        if output:
            self._connection.finish(b"".join(output))
        else:
            self._connection.close()
        if self._connection in self._idle_connections:  # it may be lost by now
            self._idle_connections.move_to_end(self._connection, last=self._connection.unread_bytes > 0)

    def _give_up_request(self) -> None:
        if self._take_body is not None:
            self._take_body = None
            self._connection.count_refusal(Cancelled.code)
        if self._request is not None and self._request.entry is not None:
            self._request.entry.finish(Cancelled.code)
        self._finish_request()

    # What is waited for.

    def _await_more(self) -> None:
        """Read on or not, and set the deadline of what is expected next."""
        connection = self._connection
        if self._running is not None:
            if self._parser.has_unread or self._peer_has_finished:
                connection.pause_reading()  # meanwhile it is watched for a reset
            if self._peer_has_finished:
                self._set_deadline("probe", PROBE_S)
            else:
                self._set_deadline("", None)  # the service has its own
        elif self._has_next_turn or connection.unread_bytes > self._max_unread_bytes:
            connection.pause_reading()
            self._set_deadline("", None)
            if not self._has_next_turn:  # its client does not read
                self._idle_connections[connection] = None
        elif self._is_stopping or self._peer_has_finished:
            self._end()
        else:
            connection.resume_reading()
            self._idle_connections[connection] = None
            if self._parser.is_inside:
                self._set_deadline("request", connection.limits.request_timeout_s)
            else:
                self._set_deadline("idle", connection.limits.idle_timeout_s)

    def _set_deadline(self, reason: str, seconds: float | None) -> None:
        """Set a deadline, unless there is one for the same reason: what arrives gains no time."""
        if reason != self._deadline_is_for or seconds is None:
            self._deadline_is_for = reason
            self._connection.set_deadline(seconds)

    def _end(self) -> None:
        """Close, as no more requests are accepted; tell a client whose request has arrived in part."""
        if self._parser.is_inside and not self._peer_has_finished:
            self._refuse(ShuttingDown.not_started())
        else:
            self._close()


class HttpFactory(TransformFactory):
    """Makes connections that speak HTTP. Of trusted proxies not the connections count for a peer, but the requests."""

    def __init__(
        self,
        application: Application | GuardedApplication,
        metrics: Metrics,
        service: Service,
        limits: Limits,
        clock: IReactorTime,
        proxies: TrustedProxies | None = None,
    ) -> None:
        self._idle_connections = IdleConnections()
        proxies = proxies or TrustedProxies()
        super().__init__(
            service,
            limits,
            clock,
            front="http",
            metrics=metrics,
            make_handler=lambda each: HttpHandler(each, application, self._idle_connections, proxies, self._forwarded),
            access_log=application.access_log,
            tracer=application.tracer,
            trusts=proxies.trusts,
        )
        self._forwarded: Connections[HttpHandler] = Connections(limits)  # whose requests come through proxies
        self.connections = Connections(limits, is_uncounted=proxies.trusts)

    def set_limits(self, limits: Limits) -> None:
        """See ``DrainingFactory``."""
        super().set_limits(limits)
        self._forwarded.set_limits(limits)

    def make_room(self, refusal: ConnectionLimitReached, peer: str | None) -> bool:
        """Close a connection, an idle one if there is one, to make room for a new one; return whether there was any."""
        among = self.connections.to_evict_idle(peer)
        return (refusal.kind == "total" and self._idle_connections.evict(among)) or super().make_room(refusal, peer)
