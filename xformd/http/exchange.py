"""One HTTP request and its answer: what an application reads of the one and sends of the other (ASGI)."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred

from xformd.errors import Cancelled, TooLarge, XformError
from xformd.http import problems, requests
from xformd.telemetry.timing import RequestTiming

Headers = Iterable[tuple[bytes, bytes]]


@attrs.define(eq=False)
class Exchange:
    """A request, and the way to answer it.

    Args:
        scope: what was asked, as uvicorn tells it.
        receive: gives the pieces of the body, and then whether the client has gone.
        send: takes the answer.
        headers: of the request; of those that come several times, the last.
        timing: has the request's id, and takes its times.
    """

    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[bytes, bytes]
    timing: RequestTiming

    @classmethod
    def of(cls, scope: Scope, receive: Receive, send: Send) -> "Exchange":
        """Begin an exchange."""
        headers = dict(scope["headers"])
        return cls(scope, receive, send, headers, RequestTiming(requests.request_id(headers)))

    @property
    def method(self) -> str:
        """What is to be done: ``POST``."""
        return str(self.scope["method"])

    @property
    def request_id(self) -> str:
        """By which the log names the request."""
        return str(self.timing.request_id)

    async def body(self, max_bytes: int) -> bytes:
        """Read the request's body.

        Args:
            max_bytes: how long it may be.

        Returns:
            The body.

        Raises:
            TooLarge: it is longer; where its length is known beforehand, nothing of it is read.
            Cancelled: the client is gone.
        """
        announced = requests.content_length(self.headers)
        if announced is not None and announced > max_bytes:
            raise TooLarge(f"the poem has {announced} bytes; the limit is {max_bytes} bytes")
        pieces: list[bytes] = []
        size, has_more = 0, True
        while has_more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the client has gone")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > max_bytes:
                raise TooLarge(f"the poem has more than {max_bytes} bytes, which is the limit")
            has_more = message.get("more_body", False)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def gone(self) -> None:
        """Wait until the client is gone; once its body has been read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def while_there(self, work: Deferred[bytes]) -> bytes:
        """Wait for a result, and give it up when the client goes away.

        Args:
            work: what is waited for.

        Returns:
            The result.

        Raises:
            XformError: whatever the work fails with; ``Cancelled`` when the client is gone.
        """
        loop = asyncio.get_running_loop()
        result = work.asFuture(loop)
        leaving = loop.create_task(self.gone())
        try:
            await asyncio.wait((result, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise Cancelled("the client has gone")
            return result.result()
        finally:
            leaving.cancel()
            result.cancel()

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer.

        Args:
            status: of HTTP.
            headers: all but the length.
            body: what follows; empty for an answer that has none.
        """
        whole = [*headers, (b"content-length", b"%d" % len(body))] if status != 304 else [*headers]
        await self.send({"type": "http.response.start", "status": status, "headers": whole})
        await self.send({"type": "http.response.body", "body": body})

    async def answer_problem(self, problem: dict[str, Any], headers: Headers = ()) -> None:
        """Answer with a problem, which says its own status."""
        given = [*problems.headers(problem), *headers]
        await self.answer(problem["status"], given, json.dumps(problem).encode())

    async def answer_error(self, error: XformError) -> None:
        """Answer with an error of the table.

        Where a part of the request may still be on its way, the connection ends with this: nobody reads it.
        """
        headers = [(b"connection", b"close")] if error.code == TooLarge.code else []
        await self.answer_problem(problems.problem(error, self.request_id), headers)
