"""TransformProxy: transform servers, seen from a program. Here poems get their kind, and requests find a server."""

import json
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from xformd import spec
from xformd.client.errors import NotSent, RequestCancelled
from xformd.client.session import Session
from xformd.client.upstream import LONGEST_DELAY_S, Upstream
from xformd.errors import (
    ConnectionFailed,
    GibberishError,
    RequestRefused,
    TransformTimeout,
    XformError,
)
from xformd.limits import Limits
from xformd.net import endpoints as addresses
from xformd.spec import OptionValue

Poem = TypeVar("Poem", str, bytes)
Answer = TypeVar("Answer")
Server = str | IStreamClientEndpoint


class TransformProxy:
    """Transform servers, seen from a client. Use it as an async context manager, or ``close()`` it.

    It opens one session to each server that it uses and sends all requests on it; a server that knows only the
    classic form gets a connection for each. A request goes to the server that has the least to do for this proxy;
    one that does not answer is left out for a while, and while others answer, no request waits for it. A request is
    sent again only where the server is known not to have run it.

    Args:
        servers: a host; or ``HOST:PORT``, or any Twisted client endpoint, such as one for TLS or a Unix socket; or
            several of these.
        port: of the host; left out with the other forms.
        reactor: what connects; the running one where none is given.
        address: how messages name a server; made from what is given where it is not.
        max_result_bytes: the longest result to accept.
        longest_delay_s: how many seconds a server that does not answer is left out, at most.
    """

    def __init__(
        self,
        servers: Server | Sequence[Server],
        port: int | None = None,
        *,
        reactor: Any = None,
        address: str | None = None,
        max_result_bytes: int = Limits().max_result_bytes,
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        named: list[tuple[IStreamClientEndpoint, str]]
        if isinstance(servers, str) and port is not None:
            named = [(addresses.tcp_client(reactor, servers, port), address or f"{servers}:{port}")]
        else:
            several = list(servers) if isinstance(servers, list | tuple) else [cast(Server, servers)]
            named = [_endpoint(reactor, server, address) for server in several]
        self._upstreams = [
            Upstream(endpoint, name, reactor, max_result_bytes, longest_delay_s=longest_delay_s)
            for endpoint, name in named
        ]
        self._is_closed = False

    def xform(
        self, transform: str, poem: Poem, /, *, timeout: float | None = None, **options: OptionValue
    ) -> Deferred[Poem]:
        """Send a poem to be transformed.

        Args:
            transform: a transform's name, or a whole spec such as ``wrap:width=40+upper``.
            poem: ``str``, sent as UTF-8, or ``bytes``.
            timeout: give up after this many seconds; the server is told, and gives up too.
            options: of the transform; with a spec of several steps they stand in the spec.

        Returns:
            A Deferred of the result, of the same type as the poem. Cancelling it cancels the request at the server.
            It fails with what the server answered, or with ``ConnectionFailed``, ``ConnectionLost``,
            ``RequestRefused`` (a server of the classic form closed without an answer), ``BadFrame``, ``TooLarge``,
            ``TransformTimeout``, ``Cancelled``, ``BadRequest`` or ``GibberishError``; each carries the poem.

        Raises:
            ValueError: the timeout is no number of seconds above 0.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        ends_at = None if timeout is None else self._reactor.seconds() + timeout
        answer = self._within(timeout, Deferred.fromCoroutine(self._xform(transform, poem, ends_at, options)))
        return answer.addCallbacks(_like, _carrying, callbackArgs=(poem,), errbackArgs=(poem,))

    def list_transforms(self, *, timeout: float | None = None) -> Deferred[dict[str, Any]]:
        """Give what ``xformd list-transforms --json`` prints, of a server, within ``timeout`` seconds."""
        return self._within(timeout, Deferred.fromCoroutine(self._list()))

    def ping(self, *, timeout: float | None = None) -> Deferred[str]:
        """Ask a server for a sign of life; fires with the name and version that it gives itself."""
        return self._within(timeout, Deferred.fromCoroutine(self._ping()))

    def close(self) -> Deferred[None]:
        """Take no new requests; fires when those in flight have ended and every connection is closed."""
        self._is_closed = True
        return Deferred.fromCoroutine(self._close())

    async def __aenter__(self) -> "TransformProxy":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _xform(
        self, transform: str, poem: str | bytes, ends_at: float | None, options: dict[str, OptionValue]
    ) -> bytes:
        request, data = spec.build(transform, options), _to_bytes(poem)
        tried: list[Upstream] = []
        while True:
            upstream = self._choose(tried)
            tried.append(upstream)
            try:
                return await upstream.ask(request, data, ends_at)
            except NotSent as refusal:
                elsewhere = len(set(tried)) < len(self._upstreams)
                again = refusal.may_reconnect and len(tried) <= len(self._upstreams)
                if not (elsewhere or again):
                    raise refusal.error from refusal

    def _choose(self, tried: Sequence[Upstream]) -> Upstream:
        if self._is_closed:
            raise ConnectionFailed("this TransformProxy is closed")
        now = self._reactor.seconds()
        untried = [upstream for upstream in self._upstreams if upstream not in tried] or self._upstreams
        rested = [upstream for upstream in untried if upstream.rests_until <= now]
        if not rested:
            return min(untried, key=lambda upstream: upstream.rests_until)
        answering = [upstream for upstream in rested if not upstream.is_failing]
        for upstream in rested if answering else ():
            if upstream.is_failing:
                upstream.reach()  # with no request to wait for it: it may accept and never answer
        return min(answering or rested, key=lambda upstream: upstream.load)

    def _within(self, timeout: float | None, answer: Deferred[Answer]) -> Deferred[Answer]:
        if timeout is not None and not answer.called:
            answer.addTimeout(timeout, self._reactor, onTimeoutCancel=self._expired)
        return answer

    async def _session(self) -> Session:
        upstream = self._choose([])
        try:
            session = await upstream.session()
        except NotSent as refusal:
            raise refusal.error from refusal
        if session is None:
            raise RequestRefused(f"{upstream.address} speaks only the classic form: it transforms poems, nothing else")
        return session

    async def _list(self) -> dict[str, Any]:
        session = await self._session()
        listed: dict[str, Any] = json.loads(await session.control("list"))
        return listed

    async def _ping(self) -> str:
        session = await self._session()
        await session.control("ping")
        assert session.hello is not None
        return session.hello.server

    async def _close(self) -> None:
        for upstream in self._upstreams:
            await upstream.close()

    def _expired(self, result: object, timeout: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError):
            names = " or ".join(dict.fromkeys(upstream.address for upstream in self._upstreams))
            raise TransformTimeout(f"no answer from {names} within {timeout:g} s")
        return result


def _endpoint(reactor: Any, server: Server, address: str | None) -> tuple[IStreamClientEndpoint, str]:
    if isinstance(server, str):
        return addresses.client_endpoint(reactor, server), address or server
    return server, address or "the server"


def _to_bytes(poem: object) -> bytes:
    if isinstance(poem, bytes | bytearray | memoryview):
        return bytes(poem)
    if not isinstance(poem, str):
        raise TypeError(f"a poem is str or bytes, not {type(poem).__name__}")
    try:
        return poem.encode()
    except UnicodeEncodeError:
        raise GibberishError("the poem has a lone surrogate in it: it is no text that can be sent") from None


def _like(result: bytes, poem: Poem) -> Poem:
    if not isinstance(poem, str):
        return result
    try:
        return result.decode()
    except UnicodeDecodeError:
        message = "the answer is not UTF-8: send the poem as bytes to get bytes"
        raise GibberishError(message, poem=poem) from None


def _carrying(failure: Failure, poem: str | bytes) -> Failure:
    error = failure.value
    if isinstance(error, CancelledError) and not isinstance(error, XformError):
        failure = Failure(RequestCancelled("the request was given up"))
    if isinstance(failure.value, XformError):
        failure.value.poem = poem
    return failure
