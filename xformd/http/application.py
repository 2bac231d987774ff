"""What a server answers over HTTP: which endpoint answers which path.

Invariant: every error is a problem (RFC 9457) with the request's id.
"""

from collections.abc import Callable, Mapping

import attrs

from xformd.counting import CountingService
from xformd.http import problems
from xformd.http.batch import BatchEndpoint
from xformd.http.endpoints import HealthEndpoints, ListingEndpoints, show_page
from xformd.http.messages import Endpoint, Request, Response, TakeBody, header_lines
from xformd.http.sites import Sites
from xformd.http.transform import PREFIX, TransformEndpoint
from xformd.limits import Limits
from xformd.service import TransformService
from xformd.telemetry.access_log import AccessLog
from xformd.telemetry.metrics import Metrics
from xformd.wire.http1 import METHODS, RequestHead

METRICS_MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Methods = Mapping[str, Endpoint]


@attrs.frozen(kw_only=True)
class HttpDependencies:
    """What the applications depend on."""

    service: TransformService
    metrics: Metrics
    limits: Limits
    health: HealthEndpoints
    render_metrics: Callable[..., bytes]
    sites: Sites = attrs.field(factory=Sites)
    access_log: AccessLog | None = None
    netstring_address: Callable[[], str] = str


class Application:
    """Routes requests by path or path prefix, then by method; the endpoint of GET answers HEAD too.

    ``hint`` ends the errors for all others: it says where to look, with ``{prefix}`` in front of a path.
    """

    def __init__(
        self,
        sites: Sites,
        paths: Mapping[bytes, Methods],
        prefixes: Mapping[bytes, Methods],
        hint: str = "see GET {prefix}/openapi.json",
        access_log: AccessLog | None = None,
    ) -> None:
        self.access_log = access_log
        self._sites = sites
        self._paths = {path: _with_head(methods) for path, methods in paths.items()}
        self._prefixes = [(prefix, _with_head(methods)) for prefix, methods in prefixes.items()]
        self._hint = hint
        self.general_headers: Callable[[RequestHead], bytes] = sites.general_headers

    def respond(self, request: Request) -> Response | TakeBody:
        """Respond to a request, or return what responds once its body is here; raise the error that answers it."""
        if (refusal := self._sites.check(request)) is not None:
            return refusal
        methods = self._methods_of(request.path)
        if methods is None:
            return self._problem(request, 404)
        if (endpoint := methods.get(request.method)) is None:
            return self._problem(request, 405, ", ".join(methods).encode())
        return endpoint(request)

    def endpoint_of(self, path: bytes) -> str | None:
        """Return what an access log may have of a path, none of which is the client's own: it may quote anything."""
        known = [path] if path in self._paths else [prefix for prefix, _ in self._prefixes if path.startswith(prefix)]
        return known[0].decode() if known else None

    def _methods_of(self, path: bytes) -> Methods | None:
        for prefix, methods in self._prefixes:
            if path.startswith(prefix):
                return methods
        return self._paths.get(path)

    def _problem(self, request: Request, status: int, allowed: bytes | None = None) -> Response:
        hint = self._hint.format(prefix=request.source.prefix)
        detail = f"no {request.method} {request.client_path} here: {hint}"
        more = b"" if allowed is None else header_lines((b"allow", allowed))
        return problems.http_response(status, detail, request.id, more)


def _with_head(methods: Methods) -> Methods:
    """Let the endpoint of GET respond to HEAD too, and sort the methods, as ``Allow`` lists them."""
    head = {"HEAD": methods["GET"]} if "GET" in methods else {}
    return dict(sorted({**methods, **head}.items()))


def make_application(dependencies: HttpDependencies) -> Application:
    """Return the application of ``--http``: every endpoint."""
    service, metrics, limits = dependencies.service, dependencies.metrics, dependencies.limits
    counting = CountingService(service, metrics, "http", dependencies.access_log)
    listing = ListingEndpoints(counting, limits)
    paths: dict[bytes, Methods] = {
        b"/": {"GET": lambda _: show_page(dependencies.netstring_address()), "OPTIONS": _allow_get},
        b"/batch": {"POST": BatchEndpoint(counting, metrics, limits)},
        b"/transforms": {"GET": listing.list_all},
        b"/openapi.json": {"GET": listing.describe_interface},
        **_monitoring_paths(dependencies),
    }
    prefixes: dict[bytes, Methods] = {
        # Which methods it allows depends on the transform, so it decides itself.
        PREFIX: dict.fromkeys(METHODS, TransformEndpoint(counting, metrics, limits)),
        b"/transforms/": {"GET": listing.describe_one},
    }
    return Application(dependencies.sites, paths, prefixes, access_log=dependencies.access_log)


def make_monitoring_application(dependencies: HttpDependencies) -> Application:
    """Return the application of ``--metrics``: the endpoints for monitoring, and nothing else."""
    hint = "this address has /metrics, /livez and /readyz only"
    paths = _monitoring_paths(dependencies, names_shares=True)
    return Application(dependencies.sites, paths, {}, hint, dependencies.access_log)


def _monitoring_paths(dependencies: HttpDependencies, *, names_shares: bool = False) -> dict[bytes, Methods]:
    def metrics(_: Request) -> Response:
        headers = header_lines((b"content-type", METRICS_MEDIA_TYPE), (b"cache-control", b"no-store"))
        return Response(200, headers, dependencies.render_metrics(names_shares=names_shares))

    health = dependencies.health
    return {b"/metrics": {"GET": metrics}, b"/livez": {"GET": health.live}, b"/readyz": {"GET": health.ready}}


def _allow_get(_: Request) -> Response:
    """Answer ``OPTIONS /``, with which HAProxy asks whether a server is up."""
    return Response(204, b"allow: GET, HEAD, OPTIONS\r\n")
