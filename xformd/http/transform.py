"""``/transform/{spec}``: one poem in, one out. Written on ASGI alone: it is what a busy server does all day."""

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send
from twisted.logger import Logger

from xformd.counting import CountingService
from xformd.errors import InternalError, XformError
from xformd.http import problems, requests
from xformd.http.exchange import Exchange, Headers
from xformd.http.requests import MAX_AGE_S, TransformRequest, matches_etag, take_poem
from xformd.limits import Limits
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

PREFIX = b"/transform/"

_MAX_AGE = b"public, max-age=%d" % MAX_AGE_S
_NOT_KEPT = (b"cache-control", b"no-store")

# What a transform makes of anybody's poem is a document of nobody: it runs nothing, and is part of no site.
_HARMLESS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]


class TransformEndpoint:
    """The ASGI application for one transform request.

    Args:
        service: what transforms, and counts what it is asked.
        metrics: where to count what does not get as far as that.
        limits: how long a poem may be.
    """

    log = Logger()

    def __init__(self, service: CountingService, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever becomes of it."""
        exchange = Exchange.of(scope, receive, send)
        try:
            if exchange.method == "POST":
                await self._post(exchange)
            elif exchange.method in ("GET", "HEAD"):
                await self._get(exchange)
            else:
                detail = f"{exchange.method}: a transform takes its poem by POST"
                await self._refuse_method(exchange, detail, self._allowed(exchange))
        except XformError as error:
            await exchange.answer_error(error)
        except Exception:
            self.log.failure("internal error {request_id}", request_id=exchange.request_id)
            await exchange.answer_error(InternalError(exchange.request_id))

    async def _post(self, exchange: Exchange) -> None:
        try:
            asked = self._asked(exchange, requests.read_query(exchange.scope["query_string"]))
            timeout_s = requests.timeout_s(exchange.headers)
            max_bytes = self._limits.max_request_bytes
            poem = asked.decode(await exchange.body(max_bytes), exchange.headers, max_bytes)
        except XformError as error:
            self._metrics.refused("http", error.code)
            raise
        await self._run(exchange, asked, poem, timeout_s)

    async def _get(self, exchange: Exchange) -> None:
        try:
            parameters = requests.read_query(exchange.scope["query_string"])
            poem = take_poem(parameters, self._limits.max_request_bytes)
            asked = self._asked(exchange, parameters)
            timeout_s = requests.timeout_s(exchange.headers)
        except XformError as error:
            self._metrics.refused("http", error.code)
            raise
        if not asked.is_deterministic:
            detail = f"{asked.spec} does not always give the same result: POST the poem"
            await self._refuse_method(exchange, detail, b"POST")
            return
        etag = asked.etag(poem)
        validators = [_NOT_KEPT] if etag is None else [(b"etag", etag), (b"cache-control", _MAX_AGE)]
        if etag is None or not matches_etag(exchange.headers, etag):
            await self._run(exchange, asked, poem, timeout_s, validators)
            return
        asked.check_options()  # what is wrong is told, whether the result is known or not
        await exchange.answer(304, [*validators, (b"x-request-id", exchange.request_id.encode())], b"")

    async def _run(
        self, exchange: Exchange, asked: TransformRequest, poem: bytes, timeout_s: float | None, more: Headers = ()
    ) -> None:
        result = self._service.xform(asked.spec, poem, timeout_s=timeout_s, timing=exchange.timing)
        if not isinstance(result, bytes):
            result = await exchange.while_there(result)
        await exchange.answer(200, [*_about(asked, exchange.timing), *more], result)

    def _asked(self, exchange: Exchange, options: Mapping[str, str]) -> TransformRequest:
        segment = exchange.scope["raw_path"].removeprefix(PREFIX)
        return TransformRequest.from_spec(requests.read_spec(segment, options), self._service.registry)

    def _allowed(self, exchange: Exchange) -> bytes:
        """Say which methods there are for a spec."""
        try:
            is_deterministic = self._asked(exchange, {}).is_deterministic
        except XformError:
            is_deterministic = False
        return b"GET, HEAD, POST" if is_deterministic else b"POST"

    async def _refuse_method(self, exchange: Exchange, detail: str, allowed: bytes) -> None:
        problem = problems.http_problem(405, detail, exchange.request_id)
        self._metrics.refused("http", problem["code"])
        await exchange.answer_problem(problem, [(b"allow", allowed)])


def _about(asked: TransformRequest, timing: RequestTiming) -> list[tuple[bytes, bytes]]:
    server_timing = b"queue;dur=%.2f, run;dur=%.2f" % (1_000 * timing.queue_s, 1_000 * timing.run_s)
    return [
        (b"content-type", asked.media_type),
        (b"x-transform", asked.versions),
        (b"server-timing", server_timing),
        (b"x-request-id", str(timing.request_id).encode()),
        *_HARMLESS,
    ]
