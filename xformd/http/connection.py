"""HTTP/1.1 on a connection: uvicorn's protocol, between our transport and an ASGI application.

uvicorn and its parser turn bytes into requests and responses into bytes. What they leave open is decided here: which
requests are accepted, how long they may take to arrive, how much of them is buffered, and how a connection ends.

Invariant: requests are answered in order, and at most one piece of input is parsed ahead of the one being answered.
"""

import asyncio
from typing import Any

import httptools
from twisted.internet.interfaces import IReactorTime
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from xformd.dialects.interfaces import Connection
from xformd.errors import BadRequest, ShuttingDown
from xformd.http import problems
from xformd.http.requests import MAX_HEAD_BYTES, RejectedHead, RequestHead, read_head
from xformd.http.uvicorn_adapter import HttpTransport, UvicornSettings, date_header, uvicorn_settings
from xformd.limits import Limits
from xformd.net.connections import ConnectionLimitReached, IdleConnections
from xformd.protocol import TransformFactory
from xformd.service import Service
from xformd.telemetry.metrics import Metrics

PIECE_BYTES = 4 * 1024
"""Parsed at a time. One read can hold thousands of short requests, and each takes some KiB once it is parsed."""

PROBE_S = 0.5
"""How long after a half-close to probe whether the client still reads."""

_FRAMING_BYTES = 8
"""Worst-case chunk framing per body byte."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpHandler(HttpToolsProtocol):
    """Handles the requests of one connection, which is in ``idle_connections`` while it waits for one."""

    def __init__(self, connection: Connection, settings: UvicornSettings, idle_connections: IdleConnections) -> None:
        super().__init__(settings.config, settings.state, {}, asyncio.get_running_loop())
        self.logger = settings.log
        self._connection = connection
        self._limits = connection.limits
        self._idle_connections = idle_connections
        self._metrics = settings.metrics
        self._current: RequestResponseCycle | None = None  # being answered; later requests are in the pipeline
        self._head: RequestHead | None = None  # of the arriving request, once it is complete
        self._is_receiving = False  # part of a request has arrived, but not all of it
        self._is_replaying = False
        self._refusal: RejectedHead | None = None
        self._overhead_bytes = 0
        self._body_left_bytes = 0
        self._backlog = b""  # input behind a request that is not answered yet
        self._final_output: bytes | None = None  # sent before closing; once set, no more input is taken
        self._has_peer_finished = False
        self._probing: asyncio.TimerHandle | None = None
        self._own_transport = HttpTransport(connection, self, self.may_read)
        self.connection_made(self._own_transport)
        idle_connections.add(connection)

    @property
    def _is_running(self) -> bool:
        cycle = self._current
        return cycle is not None and not cycle.response_complete and not cycle.disconnected

    # Called by the connection.

    def receive(self, data: bytes) -> None:
        """Parse input, or keep it behind the request that is being answered."""
        if self._backlog:
            self._backlog += data
        else:
            self._parse(data)

    def receive_end(self) -> None:
        """Answer every complete request, then close: the client sends nothing more."""
        if self._has_peer_finished:
            return
        self._has_peer_finished = True
        if not self._backlog:
            self._end()
        if self._is_running:
            self._connection.pause_reading()  # while paused, the connection is watched for a reset
            self._probing = self.loop.call_later(PROBE_S, self._probe)

    def output_drained(self) -> None:
        """Let the application write again: the client has read everything."""
        self.resume_writing()

    def expire(self) -> bool:
        """Answer 408 to a request that was too slow; close an idle connection without a word."""
        if self._is_receiving:
            seconds = self._limits.request_timeout_s
            error = BadRequest(f"the request had not fully arrived after {seconds:g} s (request_timeout_s)")
            self._refuse(RejectedHead(408, error))
        else:
            self._end()
        return True

    def stop(self) -> None:
        """Answer every complete request, then close: the server is stopping."""
        if self._is_receiving:
            self._refuse(RejectedHead(503, ShuttingDown.not_started()))
        else:
            self._end()

    def lost(self) -> None:
        """Cancel the request in progress: the connection is gone."""
        self._idle_connections.discard(self._connection)
        self._final_output, self._backlog = b"", b""
        self.pipeline.clear()
        if self._current is not None:
            _cancel(self._current)
        if self._probing is not None:
            self._probing.cancel()
        self._own_transport.lost()
        self.connection_lost(ConnectionResetError())

    # Called by the transport.

    def may_read(self) -> bool:
        """Return whether more input can be taken."""
        return not self._backlog and not self._has_peer_finished

    # Called by uvicorn.

    def on_message_begin(self) -> None:
        """Set a request's deadline at its first byte."""
        if self._is_replaying:
            return
        super().on_message_begin()
        self._is_receiving, self._head = True, None
        if not self._is_running:
            self._connection.set_deadline(self._limits.request_timeout_s)

    def on_headers_complete(self) -> None:
        """Reject a bad head, or start to answer the request."""
        if self._is_replaying:
            return
        version = self.parser.get_http_version()
        try:
            self._head = head = read_head(version, self.url, self.headers)
        except RejectedHead as refusal:
            self._refusal = refusal
            raise
        self.url = head.target
        self._body_left_bytes = head.body_bytes
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        self.server_state.default_headers = date_header()
        super().on_headers_complete()
        self.headers = []  # collects the trailers, which are not headers

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body."""
        self._overhead_bytes -= len(body) * (1 + _FRAMING_BYTES)
        self._body_left_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Clear the deadline: the service has its own for the response."""
        if self.parser.should_upgrade() and self._head is not None and self._head.framing:
            return  # the parser takes the body for another protocol
        super().on_message_complete()
        self._is_receiving, self._overhead_bytes = False, 0
        if self._is_running:
            self._idle_connections.discard(self._connection)
            self._connection.set_deadline(None)
        else:
            self._await_request()

    def on_response_complete(self) -> None:
        """Send the response, and go on with the next request."""
        transport = self._own_transport
        transport.flush()
        if transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if self._is_receiving and not self.pipeline:
                self._await_request()
        elif self._final_output is not None:
            self._close()
        else:
            self._await_request()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    # Input.

    def _parse(self, data: bytes) -> None:
        """Parse input until there is enough to answer; keep the rest as the backlog."""
        view, position = memoryview(data), 0
        while position < len(data) and self._final_output is None and not self._has_enough():
            position += self._feed(view[position : position + max(PIECE_BYTES, self._body_left_bytes)])
        if position < len(data) and self._final_output is None:
            self._backlog = data[position:]
            self._connection.pause_reading()

    def _has_enough(self) -> bool:
        return bool(self.pipeline) or (self._is_running and not self._is_receiving)

    def _feed(self, piece: memoryview) -> int:
        """Parse a piece of the input, and return how much of it was consumed."""
        taken = len(piece)
        self._overhead_bytes += taken
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:  # an upgrade is declined by ignoring it
            taken = upgrade.args[0]
            self._replay()
        except httptools.HttpParserError:
            self._refuse(self._refusal or RejectedHead(400, BadRequest("this is not an HTTP/1.1 request")))
        if self._overhead_bytes > MAX_HEAD_BYTES and self._final_output is None:
            self._refuse(RejectedHead.too_large())
        return taken

    def _replay(self) -> None:
        """Let the parser see the body that it took for the beginning of another protocol."""
        if self._head is not None and self._head.framing:
            self._is_replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % self._head.framing)
            self._is_replaying = False

    def _parse_backlog(self) -> None:
        data, self._backlog = self._backlog, b""
        if self._final_output is not None:
            return
        self._parse(data)
        if self._backlog:
            return
        if self._has_peer_finished:
            self._end()
        elif not self.flow.read_paused:
            self._own_transport.resume_reading()

    def _await_request(self) -> None:
        """Set the deadline for the next request, or for the rest of it."""
        has_head = self._is_receiving and self._head is not None
        if has_head and self.expect_100_continue and not self._is_running:
            self._end()  # without "100 Continue", what comes next may be the body or another request
            return
        self._idle_connections.add(self._connection)
        limits = self._limits
        self._connection.set_deadline(limits.request_timeout_s if self._is_receiving else limits.idle_timeout_s)
        if self._backlog:
            self.loop.call_soon(self._parse_backlog)

    # The end.

    def _refuse(self, refusal: RejectedHead) -> None:
        """Answer with an error that bypasses the application, and close."""
        self._metrics.refused("http", refusal.error.code)
        self._connection.log_refusal(refusal.error)
        has_answer = self._is_receiving and self._head is not None and self.cycle.response_started
        self._end(b"" if has_answer else problems.raw_response(refusal.status, refusal.error))

    def _end(self, final_output: bytes = b"") -> None:
        """Take no more input; answer every complete request, send the final output, and close."""
        if self._final_output is not None:
            return
        self._final_output, self._backlog = final_output, b""
        last: RequestResponseCycle | None = self.cycle
        if self._is_receiving and self._head is not None:
            if self.pipeline:
                self.pipeline.popleft()
                last = self.pipeline[0][0] if self.pipeline else self._current
            else:
                _cancel(self.cycle)
        self._is_receiving = False
        if not self._is_running:
            self._close()
            return
        self._connection.set_deadline(None)
        if not final_output and last is not None:
            last.keep_alive = False  # announced as "Connection: close"

    def _close(self) -> None:
        self._own_transport.write(self._final_output or b"")
        self._own_transport.close()

    def _probe(self) -> None:
        """Send "100 Continue" to tell a half-closed client from one that is gone: the latter resets."""
        self._probing = None
        cycle = self._current
        if cycle is None or cycle.disconnected or cycle.response_started:
            return
        if cycle.scope["http_version"] == "1.1":
            self._own_transport.write(_CONTINUE)


def _cancel(cycle: RequestResponseCycle) -> None:
    """Tell the application that the client is gone."""
    cycle.disconnected = True
    cycle.message_event.set()


class HttpFactory(TransformFactory):
    """Makes connections that an ASGI application answers. ``metrics`` counts requests that it never sees."""

    def __init__(
        self, application: Any, metrics: Metrics, service: Service, limits: Limits, clock: IReactorTime
    ) -> None:
        settings, self._idle_connections = uvicorn_settings(application, metrics), IdleConnections()
        super().__init__(
            service,
            limits,
            clock,
            make_handler=lambda connection: HttpHandler(connection, settings, self._idle_connections),
        )

    def make_room(self, refusal: ConnectionLimitReached) -> bool:
        """Close an idle connection to make room for a new one; return whether there was one."""
        return refusal.kind == "total" and self._idle_connections.evict()
