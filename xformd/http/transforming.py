"""``/transform/{spec}``: one poem in, one out. Written on ASGI alone: it is what a busy server does all day."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xformd.errors import AmbiguousTransform, Cancelled, InternalError, NoSuchTransform, XformError
from xformd.http import answers, bodies, problems, requests
from xformd.http.asked import Asked, is_known, poem_of
from xformd.limits import Limits
from xformd.metrics import NONE, UNKNOWN, Metrics
from xformd.plugins.registry import Registry
from xformd.runners.trace import Trace
from xformd.spec import Spec

PREFIX = b"/transform/"

Headers = Sequence[tuple[bytes, bytes]]

# What a transform makes of anybody's poem is a document of nobody: it runs nothing, and is part of no site.
_HARMLESS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]


class Service(Protocol):
    """What transforms; ``TransformService`` does."""

    def xform(
        self, spec: Spec, poem: bytes, *, timeout_s: float | None = None, trace: Trace | None = None
    ) -> bytes | Deferred[bytes]:
        """Transform a poem; see ``TransformService.xform``."""
        ...


class Known(Protocol):
    """What knows which transforms there are; ``TransformService`` does."""

    @property
    def registry(self) -> Registry:
        """Which there are now."""
        ...


class Transforming:
    """The ASGI application for one transform request.

    Args:
        service: what transforms, and counts what it is asked.
        known: which transforms there are.
        metrics: where to count what does not get as far as that.
        limits: how long a poem may be.
    """

    log = Logger()

    def __init__(self, service: Service, known: Known, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._known = known
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever becomes of it."""
        headers = dict(scope["headers"])
        trace = Trace(requests.request_id(headers))
        try:
            if scope["method"] == "POST":
                asked, poem = await self._taken(self._from_body(scope, headers, receive))
                await self._answer(asked, poem, headers, trace, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                asked, poem = await self._taken(self._from_address(scope))
                await self._answer_or_not(asked, poem, headers, trace, receive, send)
            else:
                detail = f"{scope['method']}: a transform takes its poem by POST"
                await self._refuse_method(send, detail, trace, self._allowed(scope))
        except XformError as error:
            await answers.send_error(send, error, str(trace.request_id))
        except Exception:
            self.log.failure("internal error {request_id}", request_id=trace.request_id)
            await answers.send_error(send, InternalError(str(trace.request_id)), str(trace.request_id))

    async def _taken(self, request: Coroutine[Any, Any, tuple[Asked, bytes]]) -> tuple[Asked, bytes]:
        try:
            return await request
        except XformError as error:
            names_none = isinstance(error, (NoSuchTransform, AmbiguousTransform))
            self._metrics.count(UNKNOWN if names_none else NONE, "http", error.code)
            raise

    async def _from_body(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive) -> tuple[Asked, bytes]:
        asked = self._asked(scope, requests.read_query(scope["query_string"]))
        poem = await bodies.read(headers, receive, self._limits.max_request_bytes)
        return asked, asked.decoded(poem, headers)

    async def _from_address(self, scope: Scope) -> tuple[Asked, bytes]:
        parameters = requests.read_query(scope["query_string"])
        poem = poem_of(parameters)
        return self._asked(scope, parameters), poem

    def _asked(self, scope: Scope, options: Mapping[str, str]) -> Asked:
        segment = scope["raw_path"].removeprefix(PREFIX)
        return Asked.of(requests.read_spec(segment, options), self._known.registry)

    async def _answer(
        self,
        asked: Asked,
        poem: bytes,
        headers: Mapping[bytes, bytes],
        trace: Trace,
        receive: Receive,
        send: Send,
        more: Headers = (),
    ) -> None:
        result = self._service.xform(asked.spec, poem, timeout_s=requests.timeout_s(headers), trace=trace)
        if not isinstance(result, bytes):
            result = await while_there(result, receive)
        await answers.send_body(send, 200, [*_about(asked, trace), *more], result)

    async def _answer_or_not(
        self, asked: Asked, poem: bytes, headers: Mapping[bytes, bytes], trace: Trace, receive: Receive, send: Send
    ) -> None:
        if not asked.is_deterministic:
            detail = f"{asked.spec} does not always give the same result: POST the poem"
            await self._refuse_method(send, detail, trace)
            return
        validators = asked.validators(poem)
        if is_known(headers, validators[0][1]):
            known = [*validators, (b"x-request-id", str(trace.request_id).encode())]
            await answers.send_body(send, 304, known, b"")
        else:
            await self._answer(asked, poem, headers, trace, receive, send, validators)

    def _allowed(self, scope: Scope) -> bytes:
        """Say which methods there are for a spec."""
        try:
            is_deterministic = self._asked(scope, {}).is_deterministic
        except XformError:
            is_deterministic = False
        return b"GET, HEAD, POST" if is_deterministic else b"POST"

    async def _refuse_method(self, send: Send, detail: str, trace: Trace, allowed: bytes = b"POST") -> None:
        problem = problems.plain(405, detail, str(trace.request_id))
        self._metrics.refused("http", problem["code"])
        await answers.send_problem(send, problem, [(b"allow", allowed)])


async def while_there(work: Deferred[bytes], receive: Receive) -> bytes:
    """Wait for a result, and give it up when the client goes away.

    Args:
        work: what is waited for.
        receive: gives the events of the request, whose body has been read (ASGI).

    Returns:
        The result.

    Raises:
        XformError: whatever the work fails with; ``Cancelled`` when the client is gone.
    """
    loop = asyncio.get_running_loop()
    result = work.asFuture(loop)
    leaving = loop.create_task(bodies.gone(receive))
    try:
        await asyncio.wait((result, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Cancelled("the client has gone")
        return result.result()
    finally:
        leaving.cancel()
        result.cancel()


def _about(asked: Asked, trace: Trace) -> list[tuple[bytes, bytes]]:
    timing = b"queue;dur=%.2f, run;dur=%.2f" % (1_000 * trace.queue_s, 1_000 * trace.run_s)
    return [
        (b"content-type", asked.media_type),
        (b"x-transform", asked.made_by),
        (b"server-timing", timing),
        (b"x-request-id", str(trace.request_id).encode()),
        *_HARMLESS,
    ]
