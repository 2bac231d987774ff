"""How HTTP is spoken on a connection: uvicorn's protocol, between our transport and an ASGI application.

uvicorn and its parser turn bytes into requests and answers into bytes. What they leave open is decided here: which
requests are read at all, how long they may take to arrive, how much is kept of them, and how a connection ends.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from xformd.dialects.interfaces import Connection
from xformd.errors import BadRequest, ShuttingDown, XformError
from xformd.http import heads, problems
from xformd.http.heads import MAX_HEAD_BYTES, RejectedHead, RequestHead
from xformd.http.uvicorn_adapter import HttpTransport, UvicornSettings, date_header
from xformd.net.connections import IdleConnections

PIECE_BYTES = 4 * 1024
"""Parsed at a time: a read full of short requests would be thousands, each of which takes some KiB."""

PROBE_S = 0.5
"""After how long a client that sends nothing more is asked whether it still reads."""

_FRAMING_BYTES = 8
"""So many for each byte of a body go with it, if a client sends it byte by byte."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpHandler(HttpToolsProtocol):
    """Answers the requests of one connection, in turn.

    Args:
        connection: on which they come.
        settings: what all connections of the port share.
        idle_connections: is told when the connection has nothing to do.
    """

    def __init__(self, connection: Connection, settings: UvicornSettings, idle_connections: IdleConnections) -> None:
        super().__init__(settings.config, settings.state, {}, asyncio.get_running_loop())
        self.logger = settings.log
        self._connection = connection
        self._limits = connection.limits
        self._idle_connections = idle_connections
        self._metrics = settings.metrics
        self._current: RequestResponseCycle | None = None  # what is being answered; those after it are in the pipeline
        self._head: RequestHead | None = None  # of the request that is arriving, once it is whole
        self._is_receiving = False  # a part of a request is here, and not all of it
        self._is_replaying = False
        self._refusal: RejectedHead | None = None
        self._overhead_bytes = 0
        self._body_left_bytes = 0
        self._backlog = b""  # what came after a request that is not answered yet
        self._last_word: bytes | None = None  # before the connection ends; set, nothing more is taken
        self._has_peer_finished = False
        self._probing: asyncio.TimerHandle | None = None
        self._own_transport = HttpTransport(connection, self)
        self.connection_made(self._own_transport)
        idle_connections.add(connection)

    @property
    def _is_running(self) -> bool:
        cycle = self._current
        return cycle is not None and not cycle.response_complete and not cycle.disconnected

    # What the connection calls.

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._backlog:
            self._backlog += data
        else:
            self._parse(data)

    def receive_end(self) -> None:
        """The client will send nothing more: answer what is here whole, then close."""
        if self._has_peer_finished:
            return
        self._has_peer_finished = True
        if not self._backlog:
            self._end()
        if self._is_running:
            self._connection.pause_reading()  # who is not read is watched for being gone
            self._probing = self.loop.call_later(PROBE_S, self._probe)

    def output_drained(self) -> None:
        """The client has taken everything."""
        self.resume_writing()

    def expire(self) -> bool:
        """Tell a client that it was too slow; whoever has said nothing is told nothing."""
        if self._is_receiving:
            seconds = self._limits.request_timeout_s
            self._refuse(408, BadRequest(f"the request was not here after {seconds:g} s (request_timeout_s)"))
        else:
            self._end()
        return True

    def stop(self) -> None:
        """The server is stopping: answer what is here whole, then close."""
        if self._is_receiving:
            self._refuse(503, ShuttingDown.not_started())
        else:
            self._end()

    def lost(self) -> None:
        """The connection is gone: whoever answers is told."""
        self._idle_connections.discard(self._connection)
        self._last_word, self._backlog = b"", b""
        self.pipeline.clear()
        if self._current is not None:
            _give_up(self._current)
        if self._probing is not None:
            self._probing.cancel()
        self._own_transport.lost()
        self.connection_lost(ConnectionResetError())

    # What the transport asks.

    def may_read(self) -> bool:
        """Say whether more can be taken."""
        return not self._backlog and not self._has_peer_finished

    # What uvicorn calls.

    def on_message_begin(self) -> None:
        """Give a request its time to arrive, from its first byte."""
        if self._is_replaying:
            return
        super().on_message_begin()
        self._is_receiving, self._head = True, None
        if not self._is_running:
            self._connection.set_deadline(self._limits.request_timeout_s)

    def on_headers_complete(self) -> None:
        """Begin to answer, unless this is nothing to answer."""
        if self._is_replaying:
            return
        version = self.parser.get_http_version()
        try:
            self._head = head = heads.read(version, self.url, self.headers)
        except RejectedHead as refusal:
            self._refusal = refusal
            raise
        self.url = head.target
        self._body_left_bytes = head.body_bytes
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        self.server_state.default_headers = date_header()
        super().on_headers_complete()
        self.headers = []  # for trailers, which are nobody's headers

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._overhead_bytes -= len(body) * (1 + _FRAMING_BYTES)
        self._body_left_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Give the answer all the time that it needs: the service has deadlines of its own."""
        if self.parser.should_upgrade() and self._head is not None and self._head.framing:
            return  # the parser thinks that another protocol follows, and it is the body
        super().on_message_complete()
        self._is_receiving, self._overhead_bytes = False, 0
        if self._is_running:
            self._idle_connections.discard(self._connection)
            self._connection.set_deadline(None)
        else:
            self._await_request()

    def on_response_complete(self) -> None:
        """Send the answer, and go on with what comes next."""
        transport = self._own_transport
        transport.flush()
        if transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            if self._is_receiving and not self.pipeline:
                self._await_request()
        elif self._last_word is not None:
            self._close()
        else:
            self._await_request()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    # How requests arrive.

    def _parse(self, data: bytes) -> None:
        """Take requests from what has arrived, but not many more than are answered."""
        view, position = memoryview(data), 0
        while position < len(data) and self._last_word is None and not self._has_enough():
            position += self._feed(view[position : position + max(PIECE_BYTES, self._body_left_bytes)])
        if position < len(data) and self._last_word is None:
            self._backlog = data[position:]
            self._connection.pause_reading()

    def _has_enough(self) -> bool:
        return bool(self.pipeline) or (self._is_running and not self._is_receiving)

    def _feed(self, piece: memoryview) -> int:
        """Parse some bytes, and say how many of them were taken."""
        taken = len(piece)
        self._overhead_bytes += taken
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:  # which is refused by not taking it up
            taken = upgrade.args[0]
            self._replay()
        except httptools.HttpParserError:
            refusal = self._refusal or RejectedHead(400, BadRequest("this is no HTTP/1.1 request"))
            self._refuse(refusal.status, refusal.error)
        if self._overhead_bytes > MAX_HEAD_BYTES and self._last_word is None:
            refusal = heads.too_large()
            self._refuse(refusal.status, refusal.error)
        return taken

    def _replay(self) -> None:
        """Let the parser see the body of a request in which it saw the beginning of another protocol."""
        if self._head is not None and self._head.framing:
            self._is_replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % self._head.framing)
            self._is_replaying = False

    def _go_on(self) -> None:
        """Take more of what has arrived before."""
        data, self._backlog = self._backlog, b""
        if self._last_word is not None:
            return
        self._parse(data)
        if self._backlog:
            return
        if self._has_peer_finished:
            self._end()
        elif not self.flow.read_paused:
            self._own_transport.resume_reading()

    def _await_request(self) -> None:
        """Wait for what the client sends next, or for the rest of it."""
        has_head = self._is_receiving and self._head is not None
        if has_head and self.expect_100_continue and not self._is_running:
            self._end()  # it was not told to send the body: nobody knows whether what comes is that
            return
        self._idle_connections.add(self._connection)
        limits = self._limits
        self._connection.set_deadline(limits.request_timeout_s if self._is_receiving else limits.idle_timeout_s)
        if self._backlog:
            self.loop.call_soon(self._go_on)

    # How a connection ends.

    def _refuse(self, status: int, error: XformError) -> None:
        """Answer what no application has seen, and close."""
        self._metrics.refused("http", error.code)
        self._connection.log_refusal(error)
        has_answer = self._is_receiving and self._head is not None and self.cycle.response_started
        self._end(b"" if has_answer else problems.raw(status, error))

    def _end(self, last_word: bytes = b"") -> None:
        """Take nothing more; answer what is here whole, say a last word, and close."""
        if self._last_word is not None:
            return
        self._last_word, self._backlog = last_word, b""
        last: RequestResponseCycle | None = self.cycle
        if self._is_receiving and self._head is not None:
            if self.pipeline:
                self.pipeline.popleft()
                last = self.pipeline[0][0] if self.pipeline else self._current
            else:
                _give_up(self.cycle)
        self._is_receiving = False
        if not self._is_running:
            self._close()
            return
        self._connection.set_deadline(None)
        if not last_word and last is not None:
            last.keep_alive = False  # and says so

    def _close(self) -> None:
        self._own_transport.write(self._last_word or b"")
        self._own_transport.close()

    def _probe(self) -> None:
        """Find out whether a client is gone, or has only sent all that it will: who is gone answers with a reset."""
        self._probing = None
        cycle = self._current
        if cycle is None or cycle.disconnected or cycle.response_started:
            return
        if cycle.scope["http_version"] == "1.1":
            self._own_transport.write(_CONTINUE)


def _give_up(cycle: RequestResponseCycle) -> None:
    """Tell whoever answers that nobody waits for it."""
    cycle.disconnected = True
    cycle.message_event.set()
