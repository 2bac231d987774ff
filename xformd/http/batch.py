"""``POST /batch``: many poems in one request, as JSON lines; results come as they are done, each with its index."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import attrs
from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd import spec
from xformd.errors import BadRequest, InternalError, XformError
from xformd.http import problems, requests
from xformd.http.exchange import Exchange
from xformd.limits import Limits
from xformd.runners import Caller
from xformd.service import Service
from xformd.spec import Spec
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

MEDIA_TYPE = b"application/x-ndjson"

TURN_S = 0.01
"""How long a batch may work at its lines before it is the others' turn."""

_SHAPE = 'write {"spec": "upper", "poem": "The Owl"}, or "poem_base64" for bytes'


@attrs.frozen
class Line:
    """One request of a batch: what to do with which poem."""

    spec: Spec
    poem: bytes


def read_line(text: bytes) -> Line:
    """Read a line of a batch.

    Raises:
        BadRequest: it is none.
    """
    try:
        given = json.loads(text)
        if not isinstance(given, dict) or len(given) != 2 or not isinstance(given.get("spec"), str):
            raise ValueError
        poem = given["poem"].encode() if "poem" in given else base64.b64decode(given["poem_base64"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadRequest(f"this is no line of a batch: {_SHAPE}") from None
    return Line(spec.parse_readable(given["spec"]), poem)


def write_result(index: int, result: bytes) -> bytes:
    """Write a line of the answer: a result, in base64 where it is no text."""
    try:
        return _write({"index": index, "result": result.decode()})
    except UnicodeDecodeError:
        return _write({"index": index, "result_base64": base64.b64encode(result).decode()})


def write_error(index: int, error: XformError, request_id: str) -> bytes:
    """Write a line of the answer: what went wrong, in the request that has this id."""
    return _write({"index": index, "error": problems.problem(error, request_id)})


def _write(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def lines_of(body: bytes) -> Iterator[bytes]:
    """Give the lines of a body, one at a time; an empty one is none."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        if line := body[start:end].strip():
            yield line
        start = end + 1


class BatchEndpoint:
    """The ASGI application for a batch.

    Args:
        service: what transforms, and counts what it is asked.
        metrics: where to count what does not get as far as that.
        limits: how long a batch may be, and how many of its lines run at a time.
    """

    log = Logger()

    def __init__(self, service: Service, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever becomes of it."""
        exchange = Exchange.of(scope, receive, send)
        try:
            timeout_s = requests.timeout_s(exchange.headers)
            body = await exchange.body(self._limits.max_request_bytes)
        except XformError as error:
            self._metrics.refused("http", error.code)
            await exchange.answer_error(error)
            return
        about = [
            (b"content-type", MEDIA_TYPE),
            (b"x-request-id", exchange.request_id.encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": about})
        leaving = asyncio.get_running_loop().create_task(exchange.gone())
        answer = _Answer(send, leaving, self._limits.max_in_flight, self._service.caller_has_room)

        def begin(index: int, text: bytes) -> bytes | Deferred[bytes]:
            return self._begin(index, text, timeout_s, answer, RequestTiming(exchange.request_id))

        try:
            await answer.send_all(itertools.starmap(begin, enumerate(lines_of(body))))
        finally:
            answer.close()

    def _begin(
        self, index: int, text: bytes, timeout_s: float | None, caller: Caller, timing: RequestTiming
    ) -> bytes | Deferred[bytes]:
        """Run a line; what is given is its answer, and no error."""
        request_id = str(timing.request_id)
        try:
            line = read_line(text)
        except XformError as error:
            self._metrics.refused("http", error.code)
            return write_error(index, error, request_id)
        try:
            result = self._service.xform(line.spec, line.poem, timeout_s=timeout_s, caller=caller, timing=timing)
        except XformError as error:
            return write_error(index, error, request_id)
        if isinstance(result, bytes):
            return write_result(index, result)
        return result.addCallbacks(
            lambda done: write_result(index, done), lambda failure: self._explain(index, failure, request_id)
        )

    def _explain(self, index: int, failure: Failure, request_id: str) -> bytes:
        if isinstance(failure.value, XformError):
            return write_error(index, failure.value, request_id)
        self.log.failure("internal error {request_id}", failure, request_id=request_id)
        return write_error(index, InternalError(request_id), request_id)


class _Answer:
    """What goes back to the client of one batch, who is one caller, however many lines wait for a worker.

    Args:
        send: takes the events of the answer (ASGI).
        leaving: ends when the client is gone.
        max_running: how many lines run at a time.
        tell_room: is called when there is room for results again.

    Attributes:
        takes_results: whether the client reads what is sent; what waits for a worker waits for this too.
    """

    def __init__(
        self, send: Send, leaving: "asyncio.Task[None]", max_running: int, tell_room: Callable[[Caller], None]
    ) -> None:
        self.takes_results = True
        self._send = send
        self._leaving = leaving
        self._max_running = max_running
        self._tell_room = tell_room
        self._running: set[asyncio.Future[bytes]] = set()
        self._waiting: list[bytes] = []

    async def send_all(self, lines: Iterable[bytes | Deferred[bytes]]) -> None:
        """Send every line when it is there; the iterable is not asked for more than may run."""
        loop = asyncio.get_running_loop()
        turn_ends = time.monotonic() + TURN_S
        for line in lines:
            if isinstance(line, bytes):
                self._waiting.append(line)
            else:
                self._running.add(line.asFuture(loop))
            if time.monotonic() >= turn_ends or len(self._running) >= self._max_running:
                await self._flush(more=True)
                await self._collect(wait=len(self._running) >= self._max_running)
                turn_ends = time.monotonic() + TURN_S
            if self._leaving.done():
                return
        while self._running and not self._leaving.done():
            await self._flush(more=True)
            await self._collect(wait=True)
        if not self._leaving.done():
            await self._flush(more=False)

    def close(self) -> None:
        """Give up what still runs."""
        self._leaving.cancel()
        for each in self._running:
            each.cancel()

    async def _collect(self, *, wait: bool) -> None:
        """Take what is done, and let others have their turn."""
        timeout_s = None if wait else 0
        hoped: set[asyncio.Future[Any]] = {*self._running, self._leaving}
        await asyncio.wait(hoped, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for each in [each for each in self._running if each.done()]:
            self._running.discard(each)
            self._waiting.append(each.result())

    async def _flush(self, *, more: bool) -> None:
        if self._waiting or not more:
            body, self._waiting = b"".join(self._waiting), []
            self.takes_results = False
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
            self.takes_results = True
            self._tell_room(self)
