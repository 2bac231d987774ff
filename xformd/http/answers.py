"""Sends answers: a result, a document, a problem."""

import json
from collections.abc import Iterable
from typing import Any

from starlette.types import Send

from xformd.errors import XformError
from xformd.http import problems

Headers = Iterable[tuple[bytes, bytes]]


async def send_body(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Answer.

    Args:
        send: takes the events of the answer (ASGI).
        status: of HTTP.
        headers: all but the length.
        body: what follows; empty for an answer that has none.
    """
    whole = [*headers, (b"content-length", b"%d" % len(body))] if status != 304 else [*headers]
    await send({"type": "http.response.start", "status": status, "headers": whole})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: dict[str, Any], headers: Headers = ()) -> None:
    """Answer with a problem, which says its own status."""
    given = [*problems.headers(problem), *headers]
    await send_body(send, problem["status"], given, json.dumps(problem).encode())


async def send_error(send: Send, error: XformError, request_id: str) -> None:
    """Answer with an error of the table.

    Where a part of the request may still be on its way, the connection ends with this: nobody reads it.
    """
    headers = [(b"connection", b"close")] if error.code == "too-large" else []
    await send_problem(send, problems.details(error, request_id), headers)
