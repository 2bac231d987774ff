"""``POST /batch``: many poems in one request, as JSON lines; results are sent as they finish, each with its index.

Invariant: a batch is one caller, however many lines it has: it queues as one, and at most ``max_in_flight`` lines run.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import BadRequest, XformError
from xformd.http import problems, requests
from xformd.http.exchange import Exchange
from xformd.limits import Limits
from xformd.runners import Caller
from xformd.runners.generation import internal_error
from xformd.service import Service
from xformd.spec import Spec, parse_readable
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

MEDIA_TYPE = b"application/x-ndjson"

TURN_S = 0.01
"""How long a batch may work before other connections get their turn."""

_EXAMPLE = 'write {"spec": "upper", "poem": "The Owl"}, or "poem_base64" for bytes'


def parse_line(text: bytes) -> tuple[Spec, bytes]:
    """Parse a line of a batch: a spec and a poem.

    Raises:
        BadRequest: it is not a JSON object with both.
    """
    try:
        members = json.loads(text)
        if not isinstance(members, dict) or len(members) != 2 or not isinstance(members.get("spec"), str):
            raise ValueError
        is_text = "poem" in members
        poem = members["poem"].encode() if is_text else base64.b64decode(members["poem_base64"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadRequest(f"invalid line of a batch: {_EXAMPLE}") from None
    return parse_readable(members["spec"]), poem


def encode_result(index: int, result: bytes) -> bytes:
    """Encode a result as a line of the response; in base64 if it is not UTF-8."""
    try:
        return _encode({"index": index, "result": result.decode()})
    except UnicodeDecodeError:
        return _encode({"index": index, "result_base64": base64.b64encode(result).decode()})


def encode_error(index: int, error: XformError, request_id: str) -> bytes:
    """Encode an error as a line of the response."""
    return _encode({"index": index, "error": problems.problem(error, request_id)})


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def split_lines(body: bytes) -> Iterator[bytes]:
    """Yield the lines of a body that are not blank, one at a time: together they could take as much memory again."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        if line := body[start:end].strip():
            yield line
        start = end + 1


class BatchEndpoint:
    """The ASGI application for a batch. ``metrics`` counts what the service never sees."""

    def __init__(self, service: Service, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; every line gets a result or an error."""
        exchange = Exchange(scope, receive, send)
        try:
            timeout_s = requests.timeout_s(exchange.headers)
            body = await exchange.body(self._limits.max_request_bytes)
        except XformError as error:
            self._metrics.refused("http", error.code)
            await exchange.respond_error(error)
            return
        request_id = exchange.request_id
        headers = [
            (b"content-type", MEDIA_TYPE),
            (b"x-request-id", request_id.encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        disconnect = asyncio.get_running_loop().create_task(exchange.disconnected())
        response = _BatchResponse(send, disconnect, self._limits.max_in_flight, self._service.caller_has_room)
        lines = (
            self._start(index, text, timeout_s, response, request_id) for index, text in enumerate(split_lines(body))
        )
        try:
            await response.send_all(lines)
        finally:
            response.cancel()

    def _start(
        self, index: int, text: bytes, timeout_s: float | None, caller: Caller, request_id: str
    ) -> bytes | Deferred[bytes]:
        """Run a line; return its line of the response, which may be an error, but never raise one."""
        timing = RequestTiming(request_id)
        try:
            spec, poem = parse_line(text)
        except XformError as error:
            self._metrics.refused("http", error.code)
            return encode_error(index, error, request_id)
        try:
            result = self._service.xform(spec, poem, timeout_s=timeout_s, caller=caller, timing=timing)
        except XformError as error:
            return encode_error(index, error, request_id)
        if isinstance(result, bytes):
            return encode_result(index, result)
        return result.addCallbacks(
            lambda result: encode_result(index, result),
            lambda failure: encode_error(index, _error_of(failure, timing), request_id),
        )


def _error_of(failure: Failure, timing: RequestTiming) -> XformError:
    return failure.value if isinstance(failure.value, XformError) else internal_error(failure, timing)


class _BatchResponse:
    """The response to one batch, which is the caller of all its lines.

    Attributes:
        takes_results: whether the client reads what is sent. While it does not, none of its lines goes to a worker.
    """

    def __init__(
        self, send: Send, disconnect: "asyncio.Task[None]", max_running: int, notify_room: Callable[[Caller], None]
    ) -> None:
        self.takes_results = True
        self._send = send
        self._disconnect = disconnect
        self._max_running = max_running
        self._notify_room = notify_room
        self._running: set[asyncio.Future[bytes]] = set()
        self._finished: list[bytes] = []

    async def send_all(self, lines: Iterable[bytes | Deferred[bytes]]) -> None:
        """Send every line as soon as it has finished; take no more from the iterator than may run."""
        loop = asyncio.get_running_loop()
        turn_ends = time.monotonic() + TURN_S
        for line in lines:
            if isinstance(line, bytes):
                self._finished.append(line)
            else:
                self._running.add(line.asFuture(loop))
            if time.monotonic() >= turn_ends or len(self._running) >= self._max_running:
                await self._flush(more=True)
                await self._collect(wait=len(self._running) >= self._max_running)
                turn_ends = time.monotonic() + TURN_S
            if self._disconnect.done():
                return
        while self._running and not self._disconnect.done():
            await self._flush(more=True)
            await self._collect(wait=True)
        if not self._disconnect.done():
            await self._flush(more=False)

    def cancel(self) -> None:
        """Cancel what still runs."""
        self._disconnect.cancel()
        for each in self._running:
            each.cancel()

    async def _collect(self, *, wait: bool) -> None:
        """Collect the lines that have finished; let other connections have their turn."""
        pending: set[asyncio.Future[Any]] = {*self._running, self._disconnect}
        await asyncio.wait(pending, timeout=None if wait else 0, return_when=asyncio.FIRST_COMPLETED)
        for each in [each for each in self._running if each.done()]:
            self._running.discard(each)
            self._finished.append(each.result())

    async def _flush(self, *, more: bool) -> None:
        if self._finished or not more:
            body, self._finished = b"".join(self._finished), []
            self.takes_results = False
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
            self.takes_results = True
            self._notify_room(self)
