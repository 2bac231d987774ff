"""``/transform/{spec}``: one poem in, one out. Written on ASGI alone: it is what a busy server does all day."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from starlette.types import Receive, Scope, Send
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xformd.errors import Cancelled, InternalError, XformError
from xformd.http import answers, bodies, problems, requests
from xformd.http.asked import Asked, is_known, poem_of
from xformd.limits import Limits
from xformd.plugins.registry import Registry
from xformd.spec import Spec

PREFIX = b"/transform/"

Headers = list[tuple[bytes, bytes]]

# What a transform makes of anybody's poem is a document of nobody: it runs nothing, and is part of no site.
_HARMLESS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; sandbox"),
]


class Service(Protocol):
    """What transforms; ``TransformService`` does."""

    @property
    def registry(self) -> Registry:
        """Which transforms there are."""
        ...

    def xform(self, spec: Spec, poem: bytes, *, timeout_s: float | None = None) -> bytes | Deferred[bytes]:
        """Transform a poem; see ``TransformService.xform``."""
        ...


class Transforming:
    """The ASGI application for one transform request.

    Args:
        service: what transforms.
        limits: how long a poem may be.
    """

    log = Logger()

    def __init__(self, service: Service, limits: Limits) -> None:
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever becomes of it."""
        headers = dict(scope["headers"])
        request_id = requests.request_id(headers)
        try:
            if scope["method"] == "POST":
                await self._post(scope, headers, request_id, receive, send)
            elif scope["method"] in ("GET", "HEAD"):
                await self._get(scope, headers, request_id, receive, send)
            else:
                await _refuse_method(send, "POST", "a transform takes its poem by POST")
        except XformError as error:
            await answers.send_error(send, error, request_id)
        except Exception:
            self.log.failure("internal error {request_id}", request_id=request_id)
            await answers.send_error(send, InternalError(request_id), request_id)

    async def _post(
        self, scope: Scope, headers: Mapping[bytes, bytes], request_id: str, receive: Receive, send: Send
    ) -> None:
        asked = self._asked(scope, requests.read_query(scope["query_string"]))
        poem = await bodies.read(headers, receive, self._limits.max_request_bytes)
        result = await self._run(asked, asked.decoded(poem, headers), headers, receive)
        await answers.send_body(send, 200, _about(asked, request_id), result)

    async def _get(
        self, scope: Scope, headers: Mapping[bytes, bytes], request_id: str, receive: Receive, send: Send
    ) -> None:
        parameters = requests.read_query(scope["query_string"])
        poem = poem_of(parameters)
        asked = self._asked(scope, parameters)
        if not asked.is_deterministic:
            await _refuse_method(send, "POST", f"{asked.spec} does not always give the same result: POST the poem")
            return
        validators = asked.validators(poem)
        if is_known(headers, validators[0][1]):
            await answers.send_body(send, 304, [*validators, (b"x-request-id", request_id.encode())], b"")
            return
        result = await self._run(asked, poem, headers, receive)
        await answers.send_body(send, 200, [*_about(asked, request_id), *validators], result)

    def _asked(self, scope: Scope, options: Mapping[str, str]) -> Asked:
        segment = scope["raw_path"].removeprefix(PREFIX)
        return Asked.of(requests.read_spec(segment, options), self._service.registry)

    async def _run(self, asked: Asked, poem: bytes, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        result = self._service.xform(asked.spec, poem, timeout_s=requests.timeout_s(headers))
        return result if isinstance(result, bytes) else await while_there(result, receive)


async def while_there(work: Deferred[bytes], receive: Receive) -> bytes:
    """Wait for a result, and give it up when the client goes away.

    Args:
        work: what is waited for.
        receive: gives the events of the request, whose body has been read (ASGI).

    Returns:
        The result.

    Raises:
        XformError: whatever the work fails with; ``Cancelled`` when the client is gone.
    """
    loop = asyncio.get_running_loop()
    result = work.asFuture(loop)
    leaving = loop.create_task(bodies.gone(receive))
    try:
        await asyncio.wait((result, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Cancelled("the client has gone")
        return result.result()
    finally:
        leaving.cancel()
        result.cancel()


def _about(asked: Asked, request_id: str) -> Headers:
    return [
        (b"content-type", asked.media_type),
        (b"x-transform", asked.made_by),
        (b"x-request-id", request_id.encode()),
        *_HARMLESS,
    ]


async def _refuse_method(send: Send, allowed: str, detail: str) -> None:
    await answers.send_problem(send, problems.plain(405, detail), [(b"allow", allowed.encode())])
