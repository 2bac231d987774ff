"""``POST /batch``: many poems in one request, as JSON lines; results are sent as they finish, each with its index.

Invariant: a batch is one caller, however many lines it has: it queues as one, and at most ``max_in_flight`` lines run.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import BadRequest, XformError
from xformd.http import problems, requests
from xformd.http.messages import BodyWriter, Request, Response, TakeBody, header_lines
from xformd.limits import Limits
from xformd.net.write_buffer import PART_BYTES
from xformd.runners import Caller
from xformd.runners.generation import internal_error
from xformd.service import Service
from xformd.spec import Spec, parse_readable
from xformd.telemetry.access_log import AccessEntry
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


def encode_error(index: int, error: XformError, request_id: bytes) -> bytes:
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
    """Responds to a batch. ``metrics`` counts what the service never sees."""

    def __init__(self, service: Service, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    def __call__(self, request: Request) -> Response | TakeBody:
        """Respond to a request; every line gets a result or an error."""
        try:
            timeout_s = requests.timeout_s(request.headers)
        except XformError as error:
            self._metrics.refused("http", error.code)
            raise
        if (detail := requests.unsupported_body(request.headers)) is not None:
            self._metrics.refused("http", BadRequest.code)
            return problems.response(problems.http_problem(415, detail, request.id))

        def take_body(body: bytes) -> Response:
            lines = enumerate(split_lines(body))

            def start_next(caller: Caller) -> bytes | Deferred[bytes] | None:
                index, text = next(lines, (0, None))
                return None if text is None else self._start(index, text, timeout_s, caller, request)

            headers = header_lines((b"content-type", MEDIA_TYPE), (b"cache-control", b"no-store"))
            service = self._service
            return Response(200, headers, _Results(start_next, self._limits.max_in_flight, service))

        return take_body

    def _start(
        self, index: int, text: bytes, timeout_s: float | None, caller: Caller, request: Request
    ) -> bytes | Deferred[bytes]:
        """Run a line; return its line of the response, which may be an error, but never raise one."""
        request_id = request.id
        timing = RequestTiming(request_id.decode()) if request.entry is None else request.entry.part()
        try:
            spec, poem = parse_line(text)
        except XformError as error:
            self._metrics.refused("http", error.code)
            if isinstance(timing, AccessEntry):
                timing.finish(error.code)
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


class _Results:
    """The body of the response to one batch, which is the caller of all its lines.

    Args:
        start_next: starts the next line; returns None after the last one.
        max_running: how many lines may run at a time.
        service: runs them.

    Attributes:
        takes_results: whether the client reads what is sent. While it does not, none of its lines goes to a worker.
    """

    def __init__(
        self, start_next: Callable[[Caller], bytes | Deferred[bytes] | None], max_running: int, service: Service
    ) -> None:
        self._start_next = start_next
        self._max_running = max_running
        self._service = service
        self._running: set[Deferred[bytes]] = set()
        self._finished: list[bytes] = []
        self._finished_bytes = 0
        self._has_more = True
        self._is_working = False

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads what is sent."""
        return self._writer.has_room

    def start(self, writer: BodyWriter) -> None:
        """See ``BodyStream.start``."""
        self._writer = writer
        self._work()

    def resume(self) -> None:
        """See ``BodyStream.resume``."""
        self._service.caller_has_room(self)
        self._work()

    def cancel(self) -> None:
        """See ``BodyStream.cancel``."""
        self._has_more = False
        self._is_working = True  # for good
        for each in [*self._running]:
            each.cancel()

    def _work(self) -> None:
        """Start what may run, send what has finished, and end after the last line."""
        if self._is_working:
            return
        self._is_working = True
        turn_is_over = self._take_turn()
        self._flush()
        self._is_working = False
        if turn_is_over:
            self._writer.call_soon(self._work)
        elif not self._has_more and not self._running:
            self._is_working = True
            self._writer.end()

    def _take_turn(self) -> bool:
        """Start lines while they may run; return True if there is no more time for that."""
        ends_s = self._service.stopwatch() + TURN_S
        while self._has_more and len(self._running) < self._max_running and self._writer.has_room:
            line = self._start_next(self)
            if line is None:
                self._has_more = False
            elif isinstance(line, bytes):
                self._finish(line)
            else:
                self._running.add(line)
                line.addCallback(self._finish_running, line)
            if self._service.stopwatch() > ends_s:
                return True
        return False

    def _finish_running(self, result: bytes, line: Deferred[bytes]) -> None:
        self._running.discard(line)
        self._finish(result)
        self._work()

    def _finish(self, result: bytes) -> None:
        self._finished.append(result)
        self._finished_bytes += len(result)
        if self._finished_bytes > PART_BYTES:  # so that the writer knows how much the client has to read
            self._flush()

    def _flush(self) -> None:
        if self._finished:
            data = b"".join(self._finished)
            self._finished.clear()
            self._finished_bytes = 0
            self._writer.send(data)
