"""How HTTP is spoken on a connection: uvicorn's protocol, between our transport and an ASGI application.

uvicorn parses, and answers in turn what is pipelined. What it leaves open is decided here: how long a request may
take to arrive, how long its head may be, and how a connection ends.
"""

import asyncio
from typing import Any

import attrs
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from xformd.errors import BadRequest, TooLarge, XformError
from xformd.forms import Connection
from xformd.http import dates, problems
from xformd.http.slots import Slots
from xformd.metrics import Metrics

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers, its trailers, and what frames its body: nobody needs more, and it is kept."""

_NEVER_S = 10**8

_FRAMING_BYTES = 8
"""So many for each byte of a body go with it, if a client sends it byte by byte."""


@attrs.frozen
class Answering:
    """What the connections of one HTTP port have in common.

    Args:
        metrics: where to count what no application has seen.
        config: uvicorn's, with the application.
        state: uvicorn's, of a running server.
    """

    metrics: Metrics
    config: Config
    state: ServerState = attrs.field(factory=ServerState)


def answering(application: Any, metrics: Metrics) -> Answering:
    """Prepare to answer with an ASGI application."""
    config = Config(
        application,
        http=HttpForm,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="error",  # what it refuses, we log
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=_NEVER_S,  # the connection's own deadline sees to it
    )
    config.load()
    return Answering(metrics, config)


class HttpForm(HttpToolsProtocol):
    """Answers the requests of one connection, in turn.

    Args:
        connection: on which they come.
        answering: what answers them.
        slots: is told when the connection has nothing to do.
    """

    def __init__(self, connection: Connection, answering: Answering, slots: Slots) -> None:
        super().__init__(answering.config, answering.state, {}, asyncio.get_running_loop())
        self._connection = connection
        self._limits = connection.limits
        self._slots = slots
        self._metrics = answering.metrics
        self._overhead_bytes = 0
        self._is_receiving = False  # a part of a request is here, and not all of it
        self._own_transport = _Transport(connection, self)
        self.connection_made(self._own_transport)
        slots.idle(connection)

    @property
    def _is_running(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    # What the connection calls.

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        self._overhead_bytes += len(data)
        self.data_received(data)
        if self._overhead_bytes > MAX_HEAD_BYTES and not self._own_transport.is_closing():
            self._refuse(431, TooLarge(f"the head of a request has at most {MAX_HEAD_BYTES} bytes"))

    def receive_end(self) -> None:
        """The client will send nothing more: answer what is here whole, then close."""
        if self._is_running and not self._is_receiving:
            self.cycle.keep_alive = False
        else:
            self._abandon()
            self._own_transport.close()

    def output_drained(self) -> None:
        """The client has taken everything."""
        self.resume_writing()

    def expire(self) -> bool:
        """Tell a client that it was too slow; whoever has said nothing is told nothing."""
        if self._is_receiving:
            seconds = self._limits.request_timeout_s
            self._refuse(408, BadRequest(f"the request was not here after {seconds:g} s (request_timeout_s)"))
        else:
            self._own_transport.close()
        return True

    def stop(self) -> None:
        """The server is stopping: answer what is here whole, then close."""
        self.receive_end()

    def lost(self) -> None:
        """The connection is gone: whoever answers is told."""
        self._slots.busy(self._connection)
        self.connection_lost(ConnectionResetError())

    # What uvicorn calls.

    def on_message_begin(self) -> None:
        """Give a request its time to arrive, from its first byte."""
        super().on_message_begin()
        self._overhead_bytes = 0
        self._is_receiving = True
        if not self._is_running:
            self._connection.expect(self._limits.request_timeout_s)

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        self.server_state.default_headers = dates.header()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._overhead_bytes -= len(body) * (1 + _FRAMING_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Give the answer all the time that it needs: the service has deadlines of its own."""
        super().on_message_complete()
        self._is_receiving = False
        if self._is_running:
            self._slots.busy(self._connection)
            self._connection.expect(None)

    def on_response_complete(self) -> None:
        """Send the answer, and wait for what comes next."""
        self._own_transport.flush()
        super().on_response_complete()
        if not self._is_running:
            self._slots.idle(self._connection)
            limits = self._limits
            self._connection.expect(limits.request_timeout_s if self._is_receiving else limits.idle_timeout_s)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        del msg  # which says less
        self._refuse(400, BadRequest("this is no HTTP/1.1 request"))

    def _refuse(self, status: int, error: XformError) -> None:
        """Answer what no application has seen, and close."""
        self._metrics.refused("http", error.code)
        self._connection.log_refusal(error)
        if not self._is_running or not self.cycle.response_started:
            self._own_transport.write(problems.raw(status, error))
        self._abandon()
        self._own_transport.close()

    def _abandon(self) -> None:
        """Tell whoever answers that nobody waits for it."""
        self._is_receiving = False
        self.pipeline.clear()
        if self._is_running:
            self.cycle.disconnected = True
            self.cycle.message_event.set()


class _Transport(asyncio.Transport):
    """What uvicorn writes to: sends head and body of an answer together."""

    def __init__(self, connection: Connection, form: HttpForm) -> None:
        super().__init__()
        self._connection = connection
        self._form = form
        self._max_unread_bytes = connection.limits.max_unread_output_bytes
        self._waiting: list[bytes] = []
        self._flushing: asyncio.Handle | None = None
        self._is_closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Say nothing: no application asks, and looking it up costs as much as a request."""
        del name
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, at the end of this turn of the loop if nothing asks for it before."""
        if self._is_closing:
            return
        self._waiting.append(bytes(data))
        if self._flushing is None:
            self._flushing = self._form.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._waiting and not self._is_closing:
            data, self._waiting = b"".join(self._waiting), []
            self._connection.write(data)
            if self._connection.unread_bytes > self._max_unread_bytes:
                self._form.pause_writing()

    def close(self) -> None:
        """Send what waits, and close."""
        self.flush()
        if not self._is_closing:
            self._is_closing = True
            self._connection.close()

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._is_closing

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Let the client go on."""
        if not self._is_closing:
            self._connection.resume_reading()
