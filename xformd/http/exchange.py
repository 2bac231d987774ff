"""One HTTP request and its response: what an application reads of the one and sends of the other (ASGI).

Invariant: a client that disconnects cancels what runs for it.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred

from xformd.errors import Cancelled, TooLarge, XformError
from xformd.http import problems, requests
from xformd.telemetry.timing import RequestTiming

Headers = Iterable[tuple[bytes, bytes]]


class Exchange:
    """A request, and the means to respond, from the arguments of an ASGI application.

    Attributes:
        headers: of the request; of those that come several times, the last.
        timing: has the request's id, and takes its times.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.timing = RequestTiming(requests.request_id(self.headers))
        self._receive = receive
        self._send = send

    @property
    def method(self) -> str:
        """The HTTP method: ``POST``."""
        return str(self.scope["method"])

    @property
    def request_id(self) -> str:
        """The request's id in the log."""
        return str(self.timing.request_id)

    async def body(self, max_bytes: int) -> bytes:
        """Read the request's body.

        Raises:
            TooLarge: it is longer than ``max_bytes``; if its length is announced, nothing of it is read.
            Cancelled: the client has disconnected.
        """
        announced = int(self.headers.get(b"content-length", b"0"))  # the parser has checked it
        if announced > max_bytes:
            raise TooLarge(f"the body has {announced} bytes; the limit is {max_bytes} bytes")
        pieces: list[bytes] = []
        size, has_more = 0, True
        while has_more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client has disconnected")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > max_bytes:
                raise TooLarge(f"the body has more than {max_bytes} bytes, which is the limit")
            has_more = message.get("more_body", False)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def disconnected(self) -> None:
        """Wait until the client disconnects; call it when the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def wait_for(self, deferred: Deferred[bytes]) -> bytes:
        """Wait for a result; cancel it if the client disconnects.

        Raises:
            XformError: the Deferred's own failure; ``Cancelled`` if the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        result = deferred.asFuture(loop)
        disconnect = loop.create_task(self.disconnected())
        try:
            await asyncio.wait((result, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise Cancelled("the client has disconnected")
            return result.result()
        finally:
            disconnect.cancel()
            result.cancel()

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response, with its ``content-length`` where the status allows a body."""
        length = [] if status == 304 else [(b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self._send({"type": "http.response.body", "body": body})

    async def respond_problem(self, problem: dict[str, Any], headers: Headers = ()) -> None:
        """Send a problem, with its own status."""
        await self.respond(problem["status"], [*problems.headers(problem), *headers], json.dumps(problem).encode())

    async def respond_error(self, error: XformError) -> None:
        """Send an error of the table.

        ``too-large`` closes the connection: the rest of the request may still be on its way, and nobody reads it.
        """
        headers = [(b"connection", b"close")] if error.code == TooLarge.code else []
        await self.respond_problem(problems.problem(error, self.request_id), headers)
