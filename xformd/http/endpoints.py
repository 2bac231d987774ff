"""The endpoints that only read: the listing and the description of the interface, the server's health, the page.

Invariant: no answer here needs a worker, and ``/livez`` and ``/readyz`` cost next to nothing.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable
from importlib.resources import files
from urllib.parse import unquote

from xformd.counting import CountingService
from xformd.http import openapi, problems
from xformd.http.messages import Request, Response, header_lines
from xformd.limits import Limits
from xformd.telemetry.status import NOT_READY, ServerStatus, readiness

# The sources in page/ are what a person reads; index.html names them in their order.
_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
_SCRIPTS = re.compile(r'(?:<script src="[\w.]+"></script>\s*)+')
_SOURCE = re.compile(r'src="([\w.]+)"')

# The style and the script are allowed by their hashes alone: text from a plugin can never run as a script.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


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
    return Response(
        status, header_lines((b"content-type", b"application/json"), (b"cache-control", cache_control)), body
    )


def show_page(_: Request) -> Response:
    """Respond with the page, and the policy that allows it nothing but its own style and script."""
    document, policy = build_page()
    headers = header_lines(
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )
    return Response(200, headers, document)


@functools.cache
def build_page() -> tuple[bytes, str]:
    """Build the page once, as one document with its style and script inline.

    Returns:
        The document, in UTF-8, and the value of its ``Content-Security-Policy``.
    """
    document = _read("index.html")
    style = "\n" + "".join(map(_read, _STYLE.findall(document)))
    # Inside a function, nothing in the script is global or hides one of the browser's names.
    script = '\n(() => {\n"use strict";\n' + "".join(map(_read, _SOURCE.findall(document))) + "})();\n"
    document = _STYLE.sub(lambda _: f"<style>{style}</style>", document)
    document = _SCRIPTS.sub(lambda _: f"<script>{script}</script>\n", document)
    return document.encode(), _POLICY.format(script=_hash(script), style=_hash(style))


def _read(name: str) -> str:
    return (files("xformd.http") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
