"""What a server answers over HTTP: which endpoint answers which path, for whom."""

from collections.abc import Callable, Mapping
from functools import partial

import attrs

from xformd.access.guard import Access, Grant, GuardedService
from xformd.counting import CountingService
from xformd.errors import Unauthorized
from xformd.http import jobs
from xformd.http.batch import respond_to_batch
from xformd.http.endpoints import HealthEndpoints, ListingEndpoints, show_page
from xformd.http.messages import Endpoint, HttpProblem, Request, Response, TakeBody, header_lines
from xformd.http.sites import Sites
from xformd.http.transform import PREFIX, TransformEndpoint
from xformd.jobs.manager import JobManager
from xformd.service import RegistryService
from xformd.telemetry.access_log import AccessLog
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.tracing import NO_TRACES, Tracer
from xformd.wire.http1 import METHODS, RequestHead

METRICS_MEDIA_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

OPEN = frozenset({b"/", b"/livez", b"/readyz"})
"""Paths that need no credentials: the page, which asks for a token, and the server's health."""

UNTRACED = frozenset({"/metrics", "/livez", "/readyz"})
"""What probes ask every few seconds: nobody looks for their traces."""

Methods = Mapping[str, Endpoint]


@attrs.frozen(kw_only=True)
class HttpDependencies:
    """What the applications depend on."""

    service: RegistryService
    metrics: Metrics
    health: HealthEndpoints
    render_metrics: Callable[..., bytes]
    sites: Sites = attrs.field(factory=Sites)
    access_log: AccessLog | None = None
    tracer: Tracer = NO_TRACES
    netstring_address: Callable[[], str] = str
    takes_tokens: bool = False
    jobs: JobManager | None = None
    dev_paths: Mapping[bytes, Methods] = attrs.field(factory=dict)  # of a page that follows changes
    grant: Grant | None = None  # what whoever asks may do; None for everything


class Application:
    """Routes requests by path, then by method; the endpoint of GET answers HEAD too. ``/a/`` stands for all below it.

    ``hint`` ends the errors for all others: it says where to look, with ``{prefix}`` in front of a path.
    """

    def __init__(
        self,
        sites: Sites,
        paths: Mapping[bytes, Methods],
        hint: str = "see GET {prefix}/openapi.json",
        access_log: AccessLog | None = None,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self.access_log, self.tracer = access_log, tracer
        self.keeps_entries = access_log is not None or tracer.is_on
        self._sites = sites
        self._methods = {path: _with_head(methods) for path, methods in paths.items()}
        self._prefixes = tuple(path for path in paths if path != b"/" and path.endswith(b"/"))
        self._hint = hint
        self.general_headers: Callable[[RequestHead], bytes] = sites.general_headers

    def respond(self, request: Request) -> Response | TakeBody:
        """Respond to a request, or return what responds once its body is here; raise the error that answers it."""
        if (preflight := self._sites.check(request)) is not None:
            return preflight
        methods = self._methods.get(self._find(request.path))
        if methods is None:
            raise self._problem(request, 404)
        if (endpoint := methods.get(request.method)) is None:
            raise self._problem(request, 405, header_lines((b"allow", ", ".join(methods).encode())))
        return endpoint(request)

    def endpoint_of(self, path: bytes) -> str | None:
        """Return what an access log may have of a path, none of which is the client's own: it may quote anything."""
        return self._find(path).decode() or None

    def _find(self, path: bytes) -> bytes:
        """Return the path, or the beginning of it, that has endpoints; empty if none has."""
        for prefix in self._prefixes:
            if path.startswith(prefix):
                return prefix
        return path if path in self._methods else b""

    def _problem(self, request: Request, status: int, more: bytes = b"") -> HttpProblem:
        prefix = request.source.prefix
        asked = f"{request.method} {prefix}{request.path.decode()}"
        return HttpProblem(status, f"no {asked} here: {self._hint.format(prefix=prefix)}", more)


class GuardedApplication:
    """Has each request answered by the application of whoever makes it, who is told by a token or the connection.

    Args:
        access: who may do what.
        dependencies: what the applications have in common.
        make: makes one of them: ``make_application`` or ``make_monitoring_application``.
    """

    def __init__(
        self, access: Access, dependencies: HttpDependencies, make: Callable[[HttpDependencies], Application]
    ) -> None:
        self._access, self._dependencies, self._make = access, dependencies, make
        self._applications: dict[Grant, Application] = {}
        access.on_revoke.append(lambda grant: self._applications.pop(grant, None))
        self._open = make(dependencies)  # of which anybody may have what is in OPEN
        self.access_log, self.tracer = self._open.access_log, self._open.tracer
        self.keeps_entries, self.endpoint_of = self._open.keeps_entries, self._open.endpoint_of
        self.general_headers = self._open.general_headers

    def respond(self, request: Request) -> Response | TakeBody:
        """See ``Application.respond``; raises ``Unauthorized`` for want of credentials."""
        if request.path in OPEN:
            return self._open.respond(request)
        grant = self._find(request)
        if request.entry is not None:
            request.entry.identity = grant.identity.name or None
        if request.method != "OPTIONS":  # a preflight shows nothing
            grant.check()
        if (application := self._applications.get(grant)) is None:
            guarded = GuardedService(self._dependencies.service, grant)
            application = self._make(attrs.evolve(self._dependencies, service=guarded, grant=grant))
            self._applications[grant] = application
        return application.respond(request)

    def _find(self, request: Request) -> Grant:
        header = request.headers.get(b"authorization")
        if header is None:
            return self._access.by_peer(*request.credentials)
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("write Authorization: Bearer TOKEN")
        return self._access.by_token(token.strip())


def _with_head(methods: Methods) -> Methods:
    """Let the endpoint of GET respond to HEAD too, and sort the methods, as ``Allow`` lists them."""
    head = {"HEAD": methods["GET"]} if "GET" in methods else {}
    return dict(sorted({**methods, **head}.items()))


def make_application(dependencies: HttpDependencies) -> Application:
    """Return the application of ``--http``: every endpoint."""
    access_log = dependencies.access_log
    counting = CountingService(dependencies.service, dependencies.metrics, "http", access_log)
    listing = ListingEndpoints(counting, has_jobs=dependencies.jobs is not None)
    grant = dependencies.grant
    of_jobs = None if dependencies.jobs is None else jobs.JobsEndpoint(dependencies.jobs, counting, grant)

    def page(_: Request) -> Response:
        more = {"takes_tokens": dependencies.takes_tokens, "follows_changes": bool(dependencies.dev_paths)}
        return show_page(dependencies.netstring_address(), **more)

    paths: dict[bytes, Methods] = {
        b"/": {"GET": page, "OPTIONS": _allow_get},
        b"/batch": {"POST": partial(respond_to_batch, counting)},
        b"/transforms": {"GET": listing.list_all},
        b"/openapi.json": {"GET": listing.describe_interface},
        **_monitoring_paths(dependencies),
        # Which methods it allows depends on the transform, so it decides itself.
        PREFIX: dict.fromkeys(METHODS, TransformEndpoint(counting, of_jobs, grant)),
        b"/transforms/": {"GET": listing.describe_one},
        **dependencies.dev_paths,
        **({} if of_jobs is None else {jobs.PREFIX: {"GET": of_jobs.get, "DELETE": of_jobs.delete}}),
    }
    return Application(dependencies.sites, paths, access_log=access_log, tracer=dependencies.tracer)


def make_monitoring_application(dependencies: HttpDependencies) -> Application:
    """Return the application of ``--metrics``: the endpoints for monitoring, and nothing else."""
    hint = "this address has /metrics, /livez and /readyz only"
    paths = _monitoring_paths(dependencies, names_shares=True)
    return Application(dependencies.sites, paths, hint, dependencies.access_log)


def _monitoring_paths(dependencies: HttpDependencies, *, names_shares: bool = False) -> dict[bytes, Methods]:
    def metrics(_: Request) -> Response:
        if dependencies.grant is not None:
            dependencies.grant.check_monitor()
        headers = header_lines((b"content-type", METRICS_MEDIA_TYPE), (b"cache-control", b"no-store"))
        return Response(200, headers, dependencies.render_metrics(names_shares=names_shares))

    health = dependencies.health
    return {b"/metrics": {"GET": metrics}, b"/livez": {"GET": health.live}, b"/readyz": {"GET": health.ready}}


def _allow_get(_: Request) -> Response:
    """Answer ``OPTIONS /``, with which HAProxy asks whether a server is up."""
    return Response(204, b"allow: GET, HEAD, OPTIONS\r\n")
