"""``/transform/{spec}``: one poem in, one result out.

Plain ASGI, without a framework: a busy server does little else.
Invariant: each request is counted once, as what became of it.
"""

from collections.abc import Mapping

from starlette.types import Receive, Scope, Send
from twisted.python.failure import Failure

from xformd.counting import CountingService
from xformd.errors import XformError
from xformd.http import problems, requests
from xformd.http.exchange import Exchange, Headers
from xformd.http.requests import MAX_AGE_S, TransformRequest, matches_etag, take_poem
from xformd.limits import Limits
from xformd.runners.generation import internal_error
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

PREFIX = b"/transform/"

_MAX_AGE = b"public, max-age=%d" % MAX_AGE_S
_NO_STORE = (b"cache-control", b"no-store")

# A result may be HTML made from anybody's text: in a browser it runs no script, and belongs to no site.
_SANDBOX_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]


class TransformEndpoint:
    """The ASGI application for one transform request. ``metrics`` counts what the service never sees."""

    def __init__(self, service: CountingService, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever goes wrong."""
        exchange = Exchange(scope, receive, send)
        try:
            if exchange.method == "POST":
                await self._post(exchange)
            elif exchange.method in ("GET", "HEAD"):
                await self._get(exchange)
            else:
                detail = f"{exchange.method} is not supported: POST the poem"
                await self._reject_method(exchange, detail, self._allowed_methods(exchange))
        except XformError as error:
            await exchange.respond_error(error)
        except Exception:
            await exchange.respond_error(internal_error(Failure(), exchange.timing))

    async def _post(self, exchange: Exchange) -> None:
        await self._run(exchange, *await self._read(exchange))

    async def _get(self, exchange: Exchange) -> None:
        request, poem, timeout_s = await self._read(exchange)
        if not request.is_deterministic:
            detail = f"{request.spec} is not deterministic, so GET is not supported: POST the poem"
            await self._reject_method(exchange, detail, b"POST")
            return
        etag = request.etag(poem)
        caching = [_NO_STORE] if etag is None else [(b"etag", etag), (b"cache-control", _MAX_AGE)]
        if etag is None or not matches_etag(exchange.headers, etag):
            await self._run(exchange, request, poem, timeout_s, caching)
            return
        request.check_options()  # a cached result must not hide an invalid option
        await exchange.respond(304, [*caching, (b"x-request-id", exchange.request_id.encode())], b"")

    async def _run(
        self, exchange: Exchange, request: TransformRequest, poem: bytes, timeout_s: float | None, more: Headers = ()
    ) -> None:
        result = self._service.xform(request.spec, poem, timeout_s=timeout_s, timing=exchange.timing)
        if not isinstance(result, bytes):
            result = await exchange.wait_for(result)
        await exchange.respond(200, [*_result_headers(request, exchange.timing), *more], result)

    async def _read(self, exchange: Exchange) -> tuple[TransformRequest, bytes, float | None]:
        """Read the request, the poem and the timeout; count what is rejected."""
        has_body, max_bytes = exchange.method == "POST", self._limits.max_request_bytes
        try:
            parameters = requests.read_query(exchange.scope["query_string"])
            poem = b"" if has_body else take_poem(parameters, max_bytes)
            request = self._transforms(exchange, parameters)
            timeout_s = requests.timeout_s(exchange.headers)
            if has_body:
                poem = request.decode(await exchange.body(max_bytes), exchange.headers, max_bytes)
        except XformError as error:
            self._metrics.refused("http", error.code)
            raise
        return request, poem, timeout_s

    def _transforms(self, exchange: Exchange, options: Mapping[str, str]) -> TransformRequest:
        segment = exchange.scope["raw_path"].removeprefix(PREFIX)
        return TransformRequest.from_spec(requests.read_spec(segment, options), self._service.registry)

    def _allowed_methods(self, exchange: Exchange) -> bytes:
        try:
            is_deterministic = self._transforms(exchange, {}).is_deterministic
        except XformError:
            is_deterministic = False
        return b"GET, HEAD, POST" if is_deterministic else b"POST"

    async def _reject_method(self, exchange: Exchange, detail: str, allowed: bytes) -> None:
        problem = problems.http_problem(405, detail, exchange.request_id)
        self._metrics.refused("http", problem["code"])
        await exchange.respond_problem(problem, [(b"allow", allowed)])


def _result_headers(request: TransformRequest, timing: RequestTiming) -> list[tuple[bytes, bytes]]:
    server_timing = b"queue;dur=%.2f, run;dur=%.2f" % (1_000 * timing.queue_s, 1_000 * timing.run_s)
    return [
        (b"content-type", request.media_type),
        (b"x-transform", request.versions),
        (b"server-timing", server_timing),
        (b"x-request-id", str(timing.request_id).encode()),
        *_SANDBOX_HEADERS,
    ]
