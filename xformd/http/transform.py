"""``/transform/{spec}``: one poem in, one result out.

Invariant: each request is counted once, as what became of it.
"""

from collections.abc import Mapping

from twisted.internet.defer import Deferred

from xformd.counting import CountingService
from xformd.errors import XformError
from xformd.http import problems, requests
from xformd.http.messages import Headers, Request, Response, TakeBody
from xformd.http.requests import MAX_AGE_S, TransformRequest, if_match, matches_etag, take_poem
from xformd.limits import Limits
from xformd.spec import SHORT_CHARACTERS
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

PREFIX = b"/transform/"

MAX_REMEMBERED = 1_024
"""How many short specs are kept parsed, with their transforms."""

_MAX_AGE = b"public, max-age=%d" % MAX_AGE_S
_NO_STORE = (b"cache-control", b"no-store")

# A result may be HTML made from anybody's text: in a browser it runs no script, and belongs to no site.
_SANDBOX = (b"content-security-policy", b"default-src 'none'; sandbox")


class TransformEndpoint:
    """Responds to a transform request. ``metrics`` counts what the service never sees."""

    def __init__(self, service: CountingService, metrics: Metrics, limits: Limits) -> None:
        self._service = service
        self._metrics = metrics
        self._max_bytes = limits.max_request_bytes
        self._registry = service.registry
        self._remembered: dict[bytes, TransformRequest] = {}

    def __call__(self, request: Request) -> Response | TakeBody:
        """Respond to a request, whatever its method."""
        try:
            if request.method == "POST":
                return self._post(request)
            if request.method in ("GET", "HEAD"):
                return self._get(request)
        except XformError as error:
            self._metrics.refused("http", error.code)
            raise
        detail = f"{request.method} is not supported: POST the poem"
        return self._reject(request, 405, detail, [(b"allow", self._allowed_methods(request))])

    def _post(self, request: Request) -> Response | TakeBody:
        wanted = self._read(request, requests.read_query(request.query))
        timeout_s = requests.timeout_s(request.headers)
        if (detail := requests.unsupported_body(request.headers)) is not None:
            return self._reject(request, 415, detail, [(b"accept-encoding", b"identity")])

        def take_body(body: bytes) -> Response | Deferred[Response]:
            try:
                poem = wanted.decode(body, request.headers, self._max_bytes)
            except XformError as error:
                self._metrics.refused("http", error.code)
                raise
            return self._run(request, wanted, poem, timeout_s)

        return take_body

    def _get(self, request: Request) -> Response | TakeBody:
        parameters = requests.read_query(request.query)
        poem = take_poem(parameters, self._max_bytes)
        wanted = self._read(request, parameters)
        timeout_s = requests.timeout_s(request.headers)
        if not wanted.is_deterministic:
            detail = f"{wanted.spec} is not deterministic, so GET is not supported: POST the poem"
            return self._reject(request, 405, detail, [(b"allow", b"POST")])
        etag = wanted.etag(poem)
        if not if_match(request.headers, etag):
            return self._reject(request, 412, "the result is not the one that If-Match names")
        caching = [_NO_STORE] if etag is None else [(b"etag", etag), (b"cache-control", _MAX_AGE)]
        if etag is None or not matches_etag(request.headers, etag):
            return lambda _: self._run(request, wanted, poem, timeout_s, caching)
        wanted.check_options()  # a cached result must not hide an invalid option
        return Response(304, caching)

    def _run(
        self, request: Request, wanted: TransformRequest, poem: bytes, timeout_s: float | None, more: Headers = ()
    ) -> Response | Deferred[Response]:
        timing = request.timing
        result = self._service.xform(wanted.spec, poem, timeout_s=timeout_s, timing=timing)
        if isinstance(result, bytes):
            return _respond(result, wanted, timing, more)
        return result.addCallback(_respond, wanted, timing, more)

    def _read(self, request: Request, options: Mapping[str, str]) -> TransformRequest:
        """Read the spec, and look up its transforms; a short one is read once for all."""
        if self._registry is not self._service.registry:
            self._registry = self._service.registry
            self._remembered.clear()
        segment = request.path[len(PREFIX) :]
        if (remembered := self._remembered.get(segment)) is not None and not options:
            return remembered
        wanted = TransformRequest.from_spec(requests.read_spec(segment, options), self._registry)
        if not options and len(segment) <= SHORT_CHARACTERS:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[segment] = wanted
        return wanted

    def _allowed_methods(self, request: Request) -> bytes:
        try:
            is_deterministic = self._read(request, {}).is_deterministic
        except XformError:
            is_deterministic = False
        return b"GET, HEAD, POST" if is_deterministic else b"POST"

    def _reject(self, request: Request, status: int, detail: str, headers: Headers = ()) -> Response:
        problem = problems.http_problem(status, detail, request.id)
        self._metrics.refused("http", problem["code"])
        return problems.response(problem, headers)


def _respond(result: bytes, wanted: TransformRequest, timing: RequestTiming, more: Headers) -> Response:
    server_timing = b"queue;dur=%.2f, run;dur=%.2f" % (1_000 * timing.queue_s, 1_000 * timing.run_s)
    return Response(200, [*wanted.result_headers, (b"server-timing", server_timing), _SANDBOX, *more], result)
