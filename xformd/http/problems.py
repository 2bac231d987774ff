"""Errors for HTTP clients: problem details (RFC 9457) with the codes of the one table."""

import http
import json
import re
from typing import Any

from xformd.errors import BadRequest, InternalError, NoSuchTransform, XformError

MEDIA_TYPE = "application/problem+json"

_MS = 1_000
_NEAREST = re.compile(r"did you mean '([a-z][a-z0-9_-]{0,63})'\?\Z")


def details(error: XformError, request_id: str | None = None, status: int | None = None) -> dict[str, Any]:
    """Say what is wrong.

    Args:
        error: one of the table.
        request_id: of the request, where it got so far that it has one.
        status: where HTTP has a better one than the table; None takes the table's.

    Returns:
        The members of the problem, for JSON; ``status`` among them.
    """
    problem: dict[str, Any] = {
        "type": f"urn:xformd:error:{error.code}",
        "title": error.code.replace("-", " "),
        "status": status or error.http_status or InternalError.http_status,
        "detail": error.message,
        "code": error.code,
    }
    if request_id is not None:
        problem["request_id"] = request_id
    if error.retry_after_ms is not None:
        problem["retry_after_ms"] = error.retry_after_ms
    if isinstance(error, NoSuchTransform) and (match := _NEAREST.search(error.message)):
        problem["nearest"] = match[1]
    return problem


def plain(status: int, detail: str, request_id: str) -> dict[str, Any]:
    """Say what is wrong where only HTTP has a word for it: no such path, no such method."""
    return {**details(BadRequest(detail), request_id, status), "title": http.HTTPStatus(status).phrase.lower()}


def headers(problem: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """Give the headers that a problem needs besides its length."""
    given = [(b"content-type", MEDIA_TYPE.encode()), (b"cache-control", b"no-store")]
    if (request_id := problem.get("request_id")) is not None:
        given.append((b"x-request-id", request_id.encode()))
    if (wait_ms := problem.get("retry_after_ms")) is not None:
        given.append((b"retry-after", b"%d" % -(-wait_ms // _MS)))  # whole seconds, rather too long than too short
    return given


def raw(status: int, error: XformError) -> bytes:
    """Give a whole answer, for what no application has seen: the connection ends with it."""
    problem = details(error, status=status)
    content = json.dumps(problem).encode()
    lines = [b"HTTP/1.1 %d %b" % (status, http.HTTPStatus(status).phrase.encode())]
    lines += [b"%b: %b" % header for header in headers(problem)]
    lines += [b"content-length: %d" % len(content), b"connection: close", b"", content]
    return b"\r\n".join(lines)
