"""The endpoints that only read: the listing and the description of the interface, the server's health, the page.

Invariant: no answer here needs a worker, and ``/livez`` and ``/readyz`` cost next to nothing.
"""

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from xformd.counting import CountingService
from xformd.http import openapi
from xformd.http.web_page import build_page
from xformd.limits import Limits
from xformd.telemetry.status import NOT_READY, ServerStatus, readiness

_NO_STORE = {"cache-control": "no-store"}


class ListingEndpoints:
    """``/transforms`` and ``/openapi.json``: the transforms, as ``xformd list-transforms --json`` and OpenAPI."""

    def __init__(self, service: CountingService, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints."""
        return [
            Route("/transforms", self._list_all),
            Route("/transforms/{name}", self._describe_one),
            Route("/openapi.json", self._openapi),
        ]

    async def _list_all(self, _: Request) -> Response:
        return _json(self._service.listing())

    async def _describe_one(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._service.registry.resolve(name)
        (described,) = (each for each in self._service.describe()["transforms"] if each["name"] == name)
        return _json(json.dumps(described).encode())

    async def _openapi(self, _: Request) -> Response:
        return _json(json.dumps(openapi.build(self._service.describe(), self._limits)).encode())


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json", headers={"cache-control": "no-cache"})


class HealthEndpoints:
    """``/livez`` and ``/readyz``: whether the event loop runs, and whether the server can take requests."""

    def __init__(self, status: Callable[[], ServerStatus], is_stopping: Callable[[], bool]) -> None:
        self._status = status
        self._is_stopping = is_stopping

    def routes(self) -> list[Route]:
        """Return the routes to these endpoints."""
        return [Route("/livez", self._live), Route("/readyz", self._ready)]

    async def _live(self, _: Request) -> JSONResponse:
        return JSONResponse({"status": "alive"}, headers=_NO_STORE)

    async def _ready(self, _: Request) -> JSONResponse:
        report = readiness(self._status(), is_stopping=self._is_stopping())
        return JSONResponse(report, 503 if report["status"] == NOT_READY else 200, _NO_STORE)


async def show_page(_: Request) -> Response:
    """Answer with the page, and the policy that allows it nothing but its own style and script."""
    document, policy = build_page("")
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(document, media_type="text/html", headers=headers)
