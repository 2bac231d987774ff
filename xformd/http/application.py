"""The ASGI applications of a server: which endpoint answers which path, and how errors become responses.

Invariant: every error is answered with a problem (RFC 9457) that has the request's id.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from twisted.python.failure import Failure

from xformd.counting import CountingService
from xformd.errors import XformError
from xformd.http import problems, requests
from xformd.http.batch import BatchEndpoint
from xformd.http.endpoints import HealthEndpoints, ListingEndpoints, show_page
from xformd.http.transform import PREFIX, TransformEndpoint
from xformd.limits import Limits
from xformd.runners.generation import internal_error
from xformd.service import TransformService
from xformd.telemetry.metrics import Metrics
from xformd.telemetry.timing import RequestTiming

METRICS_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_EXPOSED = ("x-transform", "server-timing", "x-request-id", "retry-after", "etag")


@attrs.frozen(kw_only=True)
class HttpDependencies:
    """What the applications depend on; ``origins`` are sites whose pages may call this server (CORS), ``*`` is any."""

    service: TransformService
    metrics: Metrics
    limits: Limits
    health: HealthEndpoints
    render_metrics: Callable[[], bytes]
    origins: frozenset[str] = frozenset()


def make_application(dependencies: HttpDependencies) -> ASGIApp:
    """Return the ASGI application of ``--http``: every endpoint."""
    service, metrics, limits = dependencies.service, dependencies.metrics, dependencies.limits
    counting = CountingService(service, metrics, "http")
    transform = TransformEndpoint(counting, metrics, limits)
    router = _router(
        [
            Route("/", show_page),
            Route("/batch", BatchEndpoint(counting, metrics, limits), methods=["POST"]),
            *ListingEndpoints(counting, limits).routes(),
            *_monitoring_routes(dependencies),
        ]
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Past Starlette's routing: a busy server does little else.
        if scope["raw_path"].startswith(PREFIX):
            await transform(scope, receive, send)
        else:
            await router(scope, receive, send)

    return _with_cors(dependencies.origins, application)


def make_monitoring_application(dependencies: HttpDependencies) -> ASGIApp:
    """Return the ASGI application of ``--metrics``: the endpoints for monitoring, and nothing else."""
    return _router(_monitoring_routes(dependencies), "this address has /metrics, /livez and /readyz only")


def _monitoring_routes(dependencies: HttpDependencies) -> list[Route]:
    async def metrics(_: Request) -> Response:
        headers = {"content-type": METRICS_MEDIA_TYPE, "cache-control": "no-store"}
        return Response(dependencies.render_metrics(), headers=headers)

    return [Route("/metrics", metrics), *dependencies.health.routes()]


def _router(routes: Sequence[Route], hint: str = "see GET /openapi.json") -> Starlette:
    router = Starlette(routes=routes, exception_handlers=_EXCEPTION_HANDLERS)
    router.state.hint = hint
    return router


def _with_cors(origins: frozenset[str], application: ASGIApp) -> ASGIApp:
    if not origins:
        return application
    return CORSMiddleware(
        application,
        allow_origins=sorted(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
        max_age=600,
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer with a problem where Starlette has a line of text: no such path, or no such method."""
    assert isinstance(error, HTTPException)
    request_id = _request_id(request)
    detail = f"no {request.method} {request.url.path} here: {request.app.state.hint}"
    return _respond(problems.http_problem(error.status_code, detail, request_id), error.headers)


async def _on_xform_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, XformError)
    return _respond(problems.problem(error, _request_id(request)))


async def _on_internal_error(request: Request, error: Exception) -> Response:
    request_id = _request_id(request)
    return _respond(problems.problem(internal_error(Failure(error), RequestTiming(request_id)), request_id))


def _request_id(request: Request) -> str:
    return requests.request_id(dict(request.scope["headers"]))


def _respond(problem: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    all_headers = {name.decode(): value.decode() for name, value in problems.headers(problem)} | dict(headers or {})
    return Response(json.dumps(problem), problem["status"], all_headers)


_EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    HTTPException: _on_http_exception,
    XformError: _on_xform_error,
    Exception: _on_internal_error,
}
