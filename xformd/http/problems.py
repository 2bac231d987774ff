"""Errors as HTTP clients read them: problem details (RFC 9457), with the codes of the table in ``errors``."""

import http
import json
import re
from typing import Any

from xformd.errors import BadRequest, InternalError, NoSuchTransform, XformError

MEDIA_TYPE = "application/problem+json"

_MS = 1_000
_NEAREST = re.compile(r"did you mean '([a-z][a-z0-9_-]{0,63})'\?\Z")


def problem(error: XformError, request_id: str | None = None, status: int | None = None) -> dict[str, Any]:
    """Return an error as problem details, for JSON; an HTTP ``status`` may be more precise than the table's."""
    members: dict[str, Any] = {
        "type": f"urn:xformd:error:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status or error.http_status or InternalError.http_status,
        "detail": error.message,
        "code": error.code,
    }
    if request_id is not None:
        members["request_id"] = request_id
    if error.retry_after_ms is not None:
        members["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, NoSuchTransform) and (match := _NEAREST.search(error.message)):
        members["nearest"] = match[1]
    return members


def http_problem(status: int, detail: str, request_id: str) -> dict[str, Any]:
    """Return a problem for an error that only HTTP has: no such path, no such method."""
    return {**problem(BadRequest(detail), request_id, status), "title": http.HTTPStatus(status).phrase.lower()}


def headers(problem: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a problem, all but its length."""
    found = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store")]
    if (request_id := problem.get("request_id")) is not None:
        found.append((b"x-request-id", request_id.encode()))
    if (wait_ms := problem.get("retry_after_ms")) is not None:
        found.append((b"retry-after", b"%d" % -(-wait_ms // _MS)))  # in whole seconds, rounded up
    return found


def raw_response(status: int, error: XformError) -> bytes:
    """Return a whole response, for an error that bypasses the application; the connection ends with it."""
    members = problem(error, status=status)
    content = json.dumps(members).encode()
    lines = [b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b" % header for header in headers(members)]
    lines += [b"content-length: %d" % len(content), b"connection: close", b"", content]
    return b"\r\n".join(lines)
