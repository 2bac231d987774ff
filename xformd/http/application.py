"""The ASGI application: which path is answered by what."""

from typing import Any

import attrs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from twisted.logger import Logger

from xformd.errors import InternalError
from xformd.http import problems, requests
from xformd.http.batches import Batching
from xformd.http.describing import Describing
from xformd.http.page import page
from xformd.http.transforming import PREFIX, Transforming
from xformd.limits import Limits

_EXPOSED = ("x-transform", "server-timing", "x-request-id", "retry-after", "etag")
_PATH = PREFIX.decode()

log = Logger()


@attrs.frozen(kw_only=True)
class Parts:
    """What the application is made of.

    Args:
        service: what transforms, and says which transforms there are.
        limits: what clients may do.
        origins: of other sites whose pages may call this server; ``*`` is all.
    """

    service: Any
    limits: Limits
    origins: frozenset[str] = frozenset()


def make_application(parts: Parts) -> ASGIApp:
    """Put the application together.

    Args:
        parts: what it is made of.

    Returns:
        An ASGI application for HTTP.
    """
    transforming = Transforming(parts.service, parts.limits)
    batching = Batching(parts.service, parts.limits)
    others = Starlette(
        routes=[
            Route("/", _show_page),
            Route("/batch", batching, methods=["POST"]),
            *Describing(parts.service).routes(),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(_PATH):
            await transforming(scope, receive, send)
        else:
            await others(scope, receive, send)

    return _allow(parts.origins, application)


def _allow(origins: frozenset[str], application: ASGIApp) -> ASGIApp:
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
    detail = f"{request.method} {request.url.path} is not here; GET /openapi.json says what is"
    return _respond(problems.plain(error.status_code, detail), error.headers)


async def _fail(request: Request, error: Exception) -> Response:
    request_id = requests.request_id(dict(request.scope["headers"]))
    log.failure("internal error {request_id}", request_id=request_id)
    del error
    return _respond(problems.details(InternalError(request_id), request_id), {"x-request-id": request_id})


def _respond(problem: dict[str, Any], headers: Any = None) -> Response:
    return JSONResponse(problem, problem["status"], dict(headers or {}), problems.MEDIA_TYPE)
