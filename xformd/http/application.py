"""The ASGI applications of a server: which path is answered by what."""

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
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.counting import CountingService
from xformd.errors import InternalError, XformError
from xformd.http import problems, requests
from xformd.http.batch import BatchEndpoint
from xformd.http.health import Health
from xformd.http.listing import ListingEndpoints
from xformd.http.page import page
from xformd.http.transform import PREFIX, TransformEndpoint
from xformd.limits import Limits
from xformd.service import TransformService
from xformd.telemetry.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_EXPOSED = ("x-transform", "server-timing", "x-request-id", "retry-after", "etag")

log = Logger()


@attrs.frozen(kw_only=True)
class HttpDependencies:
    """What the applications are made of.

    Args:
        service: transforms, and says which transforms there are.
        metrics: where requests are counted.
        limits: what clients may do.
        health: says how the server is.
        render_metrics: gives the figures as Prometheus reads them.
        origins: of other sites whose pages may call this server; ``*`` is all.
    """

    service: TransformService
    metrics: Metrics
    limits: Limits
    health: Health
    render_metrics: Callable[[], bytes]
    origins: frozenset[str] = frozenset()


def make_application(parts: HttpDependencies) -> ASGIApp:
    """Put together what answers everything.

    Args:
        parts: what it is made of.

    Returns:
        An ASGI application for HTTP.
    """
    counted = CountingService(parts.service, parts.metrics, "http")
    transforming = TransformEndpoint(counted, parts.metrics, parts.limits)
    batching = BatchEndpoint(counted, parts.metrics, parts.limits)
    described = ListingEndpoints(counted, parts.limits).routes()
    own = [Route("/", _show_page), Route("/batch", batching, methods=["POST"])]
    others = _routed([*own, *described, *_watching(parts)])

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"].startswith(PREFIX):
            await transforming(scope, receive, send)
        else:
            await others(scope, receive, send)

    return _with_cors(parts.origins, application)


def make_watching_application(parts: HttpDependencies) -> ASGIApp:
    """Put together what answers those who watch the server, and nobody else."""
    return _routed(_watching(parts), "/metrics, /livez and /readyz are")


def _watching(parts: HttpDependencies) -> list[Route]:
    async def metrics(request: Request) -> Response:
        del request
        return Response(parts.render_metrics(), headers={"content-type": METRICS_TYPE, "cache-control": "no-store"})

    return [Route("/metrics", metrics), *parts.health.routes()]


def _routed(routes: Sequence[Route], what_is: str = "GET /openapi.json says what is") -> Starlette:
    answered = Starlette(routes=routes, exception_handlers=_HANDLERS)
    answered.state.what_is = what_is
    return answered


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


async def _show_page(request: Request) -> Response:
    del request
    document, policy = page()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(document, media_type="text/html", headers=headers)


async def _refuse(request: Request, error: Exception) -> Response:
    """Say in a problem what Starlette says in a line: no such path, no such method."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path} is not here; {request.app.state.what_is}"
    return _respond(problems.plain(error.status_code, detail, _id_of(request)), error.headers)


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, XformError)
    return _respond(problems.details(error, _id_of(request)))


async def _fail(request: Request, error: Exception) -> Response:
    request_id = _id_of(request)
    log.failure("internal error {request_id}", Failure(error), request_id=request_id)
    return _respond(problems.details(InternalError(request_id), request_id))


def _id_of(request: Request) -> str:
    return requests.request_id(dict(request.scope["headers"]))


def _respond(problem: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    own = {name.decode(): value.decode() for name, value in problems.headers(problem)}
    return Response(json.dumps(problem), problem["status"], {**own, **(headers or {})})


_HANDLERS: Mapping[Any, Any] = {HTTPException: _refuse, XformError: _explain, Exception: _fail}
