"""The endpoints that only read: the listing and the description of the interface, the server's health, the page.

Invariant: no answer here needs a worker, and ``/livez`` and ``/readyz`` cost next to nothing.
"""

import json
from collections.abc import Callable
from urllib.parse import unquote

from xformd.counting import CountingService
from xformd.http import openapi, problems
from xformd.http.messages import Request, Response, header_lines
from xformd.http.web_page import build_page
from xformd.limits import Limits
from xformd.telemetry.status import NOT_READY, ServerStatus, readiness


class ListingEndpoints:
    """``/transforms`` and ``/openapi.json``: the transforms, as ``xformd list-transforms --json`` and OpenAPI."""

    def __init__(self, service: CountingService, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    def list_all(self, _: Request) -> Response:
        """Respond with all transforms."""
        return _json(self._service.listing())

    def describe_one(self, request: Request) -> Response:
        """Respond with the transform that the last segment of the path names."""
        name = unquote(request.path.removeprefix(b"/transforms/").decode())
        if request.method not in ("GET", "HEAD") or "/" in name or not name:
            status = 404 if "/" in name or not name else 405
            listing = f"{request.source.prefix}/openapi.json"
            detail = f"no {request.method} {request.client_path} here: see GET {listing}"
            problem = problems.http_problem(status, detail, request.id)
            return problems.response(problem, b"allow: GET, HEAD\r\n" if status == 405 else b"")
        self._service.registry.resolve(name)
        (described,) = (each for each in self._service.describe()["transforms"] if each["name"] == name)
        return _json(json.dumps(described).encode())

    def describe_interface(self, request: Request) -> Response:
        """Respond with the description of the whole interface."""
        document = openapi.build(self._service.describe(), self._limits, request.source.prefix or openapi.HERE)
        return _json(json.dumps(document).encode())


class HealthEndpoints:
    """``/livez`` and ``/readyz``: whether the event loop runs, and whether the server can take requests."""

    def __init__(self, status: Callable[[], ServerStatus], is_stopping: Callable[[], bool]) -> None:
        self._status = status
        self._is_stopping = is_stopping

    def live(self, _: Request) -> Response:
        """Respond, which shows that the event loop runs."""
        return _json(b'{"status":"alive"}', b"no-store")

    def ready(self, _: Request) -> Response:
        """Respond with 503 if the server should get no requests."""
        report = readiness(self._status(), is_stopping=self._is_stopping())
        return _json(json.dumps(report).encode(), b"no-store", 503 if report["status"] == NOT_READY else 200)


def _json(body: bytes, cache_control: bytes = b"no-cache", status: int = 200) -> Response:
    headers = header_lines((b"content-type", b"application/json"), (b"cache-control", cache_control))
    return Response(status, headers, body)


class PageEndpoint:
    """``/``: the page, and the policy that allows it nothing but its own style and script.

    Args:
        netstring_address: returns where the server speaks netstrings, which the page shows.
    """

    def __init__(self, netstring_address: Callable[[], str]) -> None:
        self._netstring_address = netstring_address

    def __call__(self, _: Request) -> Response:
        """Respond with the page."""
        document, policy = build_page(self._netstring_address())
        headers = header_lines(
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache"),
        )
        return Response(200, headers, document)
