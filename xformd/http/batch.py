"""``POST /batch``: many poems in one request, as JSON lines; results are sent as they finish, each with its index.

Invariant: a batch is one caller, however many lines it has: it queues as one, and at most ``max_in_flight`` lines run.
"""

import base64
import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.counting import CountingService
from xformd.dialects.handler import TurnTaker
from xformd.errors import BadRequest, ShuttingDown, TooLarge, XformError
from xformd.http import requests
from xformd.http.messages import Request, Response, TakeBody, header_lines, problem_details
from xformd.net.write_buffer import PART_BYTES
from xformd.runners import Caller
from xformd.runners.generation import internal_error
from xformd.spec import Spec, parse_readable
from xformd.telemetry.timing import RequestTiming
from xformd.wire.http1 import END

if TYPE_CHECKING:
    from xformd.http.connection import HttpHandler

MEDIA_TYPE = b"application/x-ndjson"

MAX_LINE_BYTES = 512 * 1024
"""Longest line, and longest result: to parse or to write it holds the reactor for up to 8 ms."""

BLANK_BYTES = 48 * 1024  # how much blank space is skipped before others may have their turn

MAX_BAD_LINES = 100  # the rest of a batch is not read: a line of two bytes gets an error of three hundred

_find_text = re.compile(rb"\S").search

# What is nested could take thirty times its size in memory, and many members much time: neither has a place here.
_STRING = rb'"[^"\\]*+(?>\\.[^"\\]*+)*+"'
_FLAT_OBJECT = re.compile(rb'\{[^\[\]{}"]*+(?>%b[^\[\]{}"]*+){0,16}+\}\Z' % _STRING)

_EXAMPLE = 'write {"spec": "upper", "poem": "The Owl"}, or "poem_base64" for bytes'
_ALONE = "POST such a poem alone"


def parse_line(text: bytes) -> tuple[Spec, bytes]:
    """Parse a line of a batch; raise ``BadRequest`` if it is not a JSON object with a spec and a poem."""
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
    """Encode a result as a line of the response, in base64 if it is not UTF-8; raise ``TooLarge`` if it is long."""
    if len(result) > MAX_LINE_BYTES:
        raise TooLarge(f"the result has {len(result)} bytes; in a batch it has at most {MAX_LINE_BYTES}: {_ALONE}")
    try:
        return _encode({"index": index, "result": result.decode()})
    except UnicodeDecodeError:
        return _encode({"index": index, "result_base64": base64.b64encode(result).decode()})


def encode_error(index: int, error: XformError, request_id: bytes) -> bytes:
    """Encode an error as a line of the response."""
    return _encode({"index": index, "error": problem_details(error, request_id)})


def _encode(value: dict[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def read_lines(body: bytes) -> Iterator[tuple[Spec, bytes] | XformError | None]:
    """Yield what each line that is not blank says, or why it is invalid; None where others may have their turn."""
    place = bad_lines = 0
    while place < len(body):
        text = _find_text(body, place, place + BLANK_BYTES)
        if text is None:
            place += BLANK_BYTES
            yield None
            continue
        start, place = text.start(), body.find(b"\n", text.start()) % (len(body) + 1)  # -1 is its end
        try:
            if bad_lines >= MAX_BAD_LINES:
                raise BadRequest(
                    f"{bad_lines} lines of this batch are invalid: the rest is not read; correct them and send it again"
                )
            if place - start > MAX_LINE_BYTES:
                raise TooLarge(f"a line of a batch has at most {MAX_LINE_BYTES} bytes: {_ALONE}")
            yield parse_line(body[start:place].rstrip())
        except XformError as error:
            error.__traceback__ = error.__context__ = None  # whose frames keep the body
            yield error
            if (bad_lines := bad_lines + 1) > MAX_BAD_LINES:
                return


def respond_to_batch(service: CountingService, request: Request) -> TakeBody:
    """Respond to a batch; every line gets a result or an error."""
    timeout_s = requests.timeout_s(request.headers)
    requests.check_body(request.headers)

    def take_body(body: bytes) -> Response:
        headers = header_lines((b"content-type", MEDIA_TYPE), (b"cache-control", b"no-store"))
        return Response(200, headers, BatchLines(service, request, body, timeout_s))

    return take_body


class BatchLines(TurnTaker):
    """The lines of one batch, and the body of the response to it. It is the caller of all of them."""

    _connection: "HttpHandler"
    _service: CountingService

    def __init__(self, service: CountingService, request: Request, body: bytes, timeout_s: float | None) -> None:
        super().__init__(service, request.caller.share)
        self._max_running = service.limits.max_in_flight
        self._request = request  # whose id they have in the log
        self._unread = read_lines(body)
        self._indices = itertools.count()
        self._timeout_s = timeout_s  # how long the client waits for each
        self._running: set[Deferred[bytes]] = set()
        self._is_read = False  # all of them are
        self._is_stopping = False  # the server is, so no more are started

    @property
    def takes_results(self) -> bool:
        """Whether the client is there, and reads what is sent. While it does not, no line goes to a worker."""
        return self._connection.has_room_beside(self._output_bytes)

    def start(self, writer: "HttpHandler") -> None:
        """Begin to send, with the writer's methods for streams."""
        self._connection = writer
        self._work()

    def resume(self) -> None:
        """Go on: the client has read everything."""
        self._service.has_room(self)
        self._work()

    def cancel(self) -> None:
        """Stop: the client is gone."""
        self._is_closed = True
        for each in [*self._running]:
            each.cancel()

    def _await_more(self) -> None:
        """End after the last line."""
        if self._is_read and not self._running:
            self._is_closed = True
            self._connection.end()

    def _has_more(self) -> bool:
        return not self._is_read

    def _take_step(self) -> bool:
        """Read a line and start it, while its client reads."""
        if self._is_read or len(self._running) >= self._max_running or not self.takes_results:
            return False
        if (line := next(self._unread, END)) is END:
            self._is_read = True
        elif line is not None:
            self._start(next(self._indices), line)
        return True

    def _start(self, index: int, line: tuple[Spec, bytes] | XformError) -> None:
        """Run a line."""
        entry = self._request.entry
        timing = RequestTiming(self._request.id.decode()) if entry is None else entry.part()
        try:
            if isinstance(line, XformError):
                raise self._service.refused(line, timing)
            if self._is_stopping:
                raise self._service.refused(ShuttingDown.not_started(), timing)
            caller = Caller(self._share, self)
            result = self._service.xform(*line, timeout_s=self._timeout_s, caller=caller, timing=timing)
            if isinstance(result, bytes):
                self._finish(encode_result(index, result))
                return
        except XformError as error:
            error.__traceback__ = None  # a cycle, by way of this frame, which keeps the body
            self._finish(encode_error(index, error, self._request.id))
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
        if not self._is_closed:
            self._finish(line)
            self._work()

    def _finish(self, line: bytes) -> None:
        self._send(line)
        if self._output_bytes > PART_BYTES or not self.takes_results:
            self._flush()  # so that the writer knows how much the client has to read
