"""The endpoints that only read: the listing and the description of the interface, the server's health, the page.

Invariant: no answer here needs a worker, and ``/livez`` and ``/readyz`` cost next to nothing.
"""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from urllib.parse import unquote

import attrs

from xformd.counting import CountingService
from xformd.http import openapi
from xformd.http.messages import Request, Response, header_lines
from xformd.http.web_page import build_page
from xformd.limits import Limits
from xformd.telemetry.status import NOT_READY, ServerStatus, readiness


class ListingEndpoints:
    """``/transforms`` and ``/openapi.json``: the transforms, as ``xformd list-transforms --json`` and OpenAPI.

    What they answer is made once for each listing, which changes with a reload or a quarantine: of 300 transforms, an
    OpenAPI document takes about 40 ms.
    """

    def __init__(self, service: CountingService, *, has_jobs: bool = False) -> None:
        self._service = service
        self._transforms = lru_cache(maxsize=1)(_split)
        self._document = lru_cache(maxsize=1)(partial(_build_document, has_jobs=has_jobs))

    def list_all(self, _: Request) -> Response:
        """Respond with all transforms."""
        return _json(self._service.listing())

    def describe_one(self, request: Request) -> Response:
        """Respond with the transform that the rest of the path names."""
        name = unquote(request.path.removeprefix(b"/transforms/").decode())
        self._service.registry.resolve(name)
        return _json(self._transforms(self._service.listing())[name])

    def describe_interface(self, request: Request) -> Response:
        """Respond with the description of the whole interface."""
        document = self._document(self._service.listing(), self._service.limits)
        if request.source.prefix:  # which a client may have chosen, and which needs no escapes
            document = document.replace(_server(openapi.HERE), _server(request.source.prefix), 1)
        return _json(document)


def _server(url: str) -> bytes:
    return json.dumps({"servers": [{"url": url}]})[1:-1].encode()


def _build_document(listing: bytes, limits: Limits, *, has_jobs: bool) -> bytes:
    return json.dumps(openapi.build(json.loads(listing), limits, has_jobs=has_jobs)).encode()


def _split(listing: bytes) -> Mapping[str, bytes]:
    return {each["name"]: json.dumps(each).encode() for each in json.loads(listing)["transforms"]}


@attrs.frozen
class HealthEndpoints:
    """``/livez`` and ``/readyz``: whether the event loop runs, and whether the server can take requests.

    They need no credentials. Where others do, they must not tell which plugins there are, so not ``names_plugins``.
    """

    _status: Callable[[], ServerStatus]
    _is_stopping: Callable[[], bool]
    _names_plugins: bool = attrs.field(default=True, kw_only=True)

    def live(self, _: Request) -> Response:
        """Respond, which shows that the event loop runs."""
        return _json(b'{"status":"alive"}', b"no-store")

    def ready(self, _: Request) -> Response:
        """Respond with 503 if the server should get no requests."""
        report = readiness(self._status(), is_stopping=self._is_stopping())
        if not self._names_plugins:
            report = {key: report[key] for key in report.keys() - {"reasons", "quarantined", "fingerprint"}}
        return _json(json.dumps(report).encode(), b"no-store", 503 if report["status"] == NOT_READY else 200)


def _json(body: bytes, cache_control: bytes = b"no-cache", status: int = 200) -> Response:
    headers = header_lines((b"content-type", b"application/json"), (b"cache-control", cache_control))
    return Response(status, headers, body)


def show_page(netstring_address: str, **switches: bool) -> Response:
    """Respond with the page, which shows where netstrings are spoken; nothing but its own style and script runs."""
    document, policy = build_page(netstring_address, **switches)
    headers = header_lines(
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )
    return Response(200, headers, document)
