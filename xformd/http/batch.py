"""``POST /batch``: many poems in one request, as JSON lines; results are sent as they finish, each with its index.

Invariant: a batch is one caller, however many lines it has: it queues as one, and at most ``max_in_flight`` lines run.
"""

import base64
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.errors import BadRequest, ShuttingDown, XformError
from xformd.http import problems, requests
from xformd.http.messages import BodyWriter, Request, Response, TakeBody, header_lines
from xformd.limits import Limits
from xformd.net.turns import TURN_S
from xformd.net.write_buffer import PART_BYTES
from xformd.runners import Caller
from xformd.runners.generation import internal_error
from xformd.service import Service
from xformd.spec import Spec, parse_readable
from xformd.telemetry.access_log import AccessEntry
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

MEDIA_TYPE = b"application/x-ndjson"

_LINE = re.compile(rb"\S[^\n]*+")

# What is nested could take thirty times its size in memory, and has no place here.
_FLAT_OBJECT = re.compile(rb'\{[^\[\]{}"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^\[\]{}"]*+)*+\}\Z')

_EXAMPLE = 'write {"spec": "upper", "poem": "The Owl"}, or "poem_base64" for bytes'


def parse_line(text: bytes) -> tuple[Spec, bytes]:
    """Parse a line of a batch: a spec and a poem.

    Raises:
        BadRequest: it is not a JSON object with both.
    """
    if not _FLAT_OBJECT.match(text):
        raise _invalid("it is not one flat JSON object (did curl -d join the lines? use --data-binary)")
    try:
        members = json.loads(text)
    except ValueError:
        raise _invalid("it is not JSON") from None
    if not isinstance(members, dict) or not isinstance(members.get("spec"), str):
        raise _invalid("it is not an object with a spec")
    if unknown := sorted(members.keys() - {"spec", "poem", "poem_base64"}):
        raise _invalid(f"{unknown[0]!r} is unknown; options stand in the spec")
    if len(members) != 2:
        raise _invalid("it has no poem, or two")
    try:
        is_text = "poem" in members
        poem = members["poem"].encode() if is_text else base64.b64decode(members["poem_base64"], validate=True)
    except (ValueError, TypeError, AttributeError):
        raise _invalid("its poem is not text, or not base64") from None
    return parse_readable(members["spec"]), poem


def _invalid(reason: str) -> BadRequest:
    return BadRequest(f"invalid line of a batch: {reason}; {_EXAMPLE}")


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
    return (match[0].rstrip() for match in _LINE.finditer(body))


class BatchEndpoint:
    """Responds to a batch. ``metrics`` counts lines that never reach the service."""

    def __init__(self, service: Service, metrics: Metrics, limits: Limits) -> None:
        self.service = service
        self.metrics = metrics
        self.max_running = limits.max_in_flight

    def __call__(self, request: Request) -> Response | TakeBody:
        """Respond to a request; every line gets a result or an error."""
        timeout_s = requests.timeout_s(request.headers)
        if (detail := requests.unsupported_body(request.headers)) is not None:
            return problems.response(problems.http_problem(415, detail, request.id))

        def take_body(body: bytes) -> Response:
            headers = header_lines((b"content-type", MEDIA_TYPE), (b"cache-control", b"no-store"))
            return Response(200, headers, _Lines(self, request, body, timeout_s))

        return take_body


class _Lines:
    """The lines of one batch, and the body of the response to it. It is the caller of all of them."""

    def __init__(self, endpoint: BatchEndpoint, request: Request, body: bytes, timeout_s: float | None) -> None:
        self._service, self._metrics, self._max_running = endpoint.service, endpoint.metrics, endpoint.max_running
        self._request = request  # whose id they have in the log
        self._caller = Caller(request.caller.share, self)
        self._unread = enumerate(split_lines(body))
        self._timeout_s = timeout_s  # how long the client waits for each
        self._running: set[Deferred[bytes]] = set()
        self._finished: list[bytes] = []
        self._finished_bytes = 0
        self._has_more = True
        self._is_working = False
        self._has_next_turn = False
        self._is_stopping = False  # the server is, so no more are started
        self._is_done = False  # all of them are, or their client is gone

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads what is sent. While it does not, no line goes to a worker."""
        return self._writer.has_room_beside(self._finished_bytes)

    def start(self, writer: BodyWriter) -> None:
        """See ``BodyStream.start``."""
        self._writer = writer
        self._work()

    def resume(self) -> None:
        """See ``BodyStream.resume``."""
        self._service.has_room(self)
        self._work()

    def cancel(self) -> None:
        """See ``BodyStream.cancel``."""
        self._is_done = True
        for each in [*self._running]:
            each.cancel()

    def _work(self) -> None:
        """Start what may run, send what has finished, and end after the last line."""
        if self._is_working or self._is_done:
            return
        self._is_working = True
        turn_is_over = not self._has_next_turn and self._take_turn()
        self._flush()
        self._is_working = False
        if turn_is_over:
            self._has_next_turn = True
            self._writer.call_soon(self._take_next_turn)
        elif not self._has_more and not self._running:
            self._is_done = True
            self._writer.end()

    def _take_next_turn(self) -> None:
        self._has_next_turn = False
        self._work()

    def _take_turn(self) -> bool:
        """Start lines while they may run; return True if there is no more time for that."""
        turns, share = self._service.turns, self._caller.share
        began_s = self._service.stopwatch()
        is_over = share in turns.over
        while self._has_more and not is_over and len(self._running) < self._max_running and self.takes_results:
            index, text = next(self._unread, (0, None))
            if text is None:
                self._has_more = False
                break
            self._start(index, text)
            is_over = self._service.stopwatch() > began_s + TURN_S
        turns.used(share, self._service.stopwatch() - began_s)
        return is_over and self._has_more

    def _start(self, index: int, text: bytes) -> None:
        """Run a line."""
        request, timing = self._request, RequestTiming(self._request.id.decode())
        if request.entry is not None:
            timing = request.entry.part()
        try:
            spec, poem = parse_line(text)
            if self._is_stopping:
                raise ShuttingDown.not_started()
        except XformError as error:
            self._metrics.refused("http", error.code)
            if isinstance(timing, AccessEntry):
                timing.finish(error.code)
            self._finish(encode_error(index, error, request.id))
            return
        try:
            result = self._service.xform(spec, poem, timeout_s=self._timeout_s, caller=self._caller, timing=timing)
        except XformError as error:
            self._finish(encode_error(index, error, request.id))
            return
        if isinstance(result, bytes):
            self._finish(encode_result(index, result))
            return
        self._running.add(result)
        result.addCallback(partial(encode_result, index)).addErrback(self._encode_failure, index, timing)
        result.addCallback(self._finish_running, result)

    def _encode_failure(self, failure: Failure, index: int, timing: RequestTiming) -> bytes:
        error = failure.value
        if not isinstance(error, XformError):
            error = internal_error(failure, timing)
        self._is_stopping = self._is_stopping or isinstance(error, ShuttingDown)
        return encode_error(index, error, self._request.id)

    def _finish_running(self, line: bytes, running: Deferred[bytes]) -> None:
        self._running.discard(running)
        self._finish(line)
        self._work()

    def _finish(self, line: bytes) -> None:
        if self._is_done:
            return
        self._finished.append(line)
        self._finished_bytes += len(line)
        if self._finished_bytes > PART_BYTES or not self.takes_results:
            self._flush()

    def _flush(self) -> None:
        if self._finished:
            data = b"".join(self._finished)
            self._finished.clear()
            self._finished_bytes = 0
            self._writer.send(data)
