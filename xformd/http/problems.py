"""Errors as HTTP clients read them: problem details (RFC 9457), with the codes of the table in ``errors``."""

import json
import re
from typing import Any

from xformd.errors import InternalError, NoSuchTransform, Unauthorized, XformError
from xformd.http.messages import HttpProblem, Response, header_lines

MEDIA_TYPE = "application/problem+json"

_MS = 1_000
_NEAREST = re.compile(r"\Ano [^;]*; did you mean '([a-z][a-z0-9_-]{0,63})'\?")


def problem(error: XformError, request_id: bytes | None = None, status: int | None = None) -> dict[str, Any]:
    """Return an error as problem details, for JSON; an HTTP ``status`` may be more precise than the table's."""
    members: dict[str, Any] = {
        "type": f"urn:xformd:error:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status or error.http_status or InternalError.http_status,
        "detail": error.message,
        "code": error.code,
    }
    if isinstance(error, HttpProblem):
        members |= error.members
    if request_id is not None:
        members["request_id"] = request_id.decode()
    if error.retry_after_ms is not None:
        members["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, NoSuchTransform) and (match := _NEAREST.search(error.message)):
        members["nearest"] = match[1]
    return members


def response(error: XformError, request_id: bytes, status: int | None = None) -> Response:
    """Return the response for an error; a ``status`` may be more precise than the table's."""
    members = problem(error, request_id, status)
    lines = header_lines((b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store"))
    if error.retry_after_ms is not None:
        lines += b"retry-after: %d\r\n" % -(-error.retry_after_ms // _MS)  # in whole seconds, rounded up
    if isinstance(error, Unauthorized):
        lines += b'www-authenticate: Bearer realm="xformd"\r\n'  # RFC 6750, 3
    if isinstance(error, HttpProblem):
        lines += error.more
    return Response(members["status"], lines, json.dumps(members).encode(), error.code)


def http_response(status: int, detail: str, request_id: bytes, more: bytes = b"") -> Response:
    """Return the response for an error that only HTTP has; ``more`` are lines of headers."""
    return response(HttpProblem(status, detail, more), request_id)
