"""TransformProxy: transform servers, as a program sees them. Converts poems and results, and tries servers in turn.

Invariant: a request is sent again only if the server is known not to have run it.
"""

import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail  # noqa: A004
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from xformd import spec
from xformd.client.errors import ConnectionFailed, NotSent, RequestCancelled
from xformd.client.upstream import LONGEST_DELAY_S, MAX_SESSION_AGE_S, PATIENCE_S, Upstream, choose
from xformd.errors import GibberishError, TransformTimeout, XformError, one_line
from xformd.limits import Limits
from xformd.net import endpoints as addresses
from xformd.spec import OptionValue, Spec
from xformd.wire.session import decode_listing

Poem = TypeVar("Poem", str, bytes)
Answer = TypeVar("Answer")
Server = str | int | IStreamClientEndpoint


class TransformProxy:
    """One or several transform servers. Use it as an async context manager, or ``close()`` it.

    It opens a session to each server, for a host name to each of its addresses, and sends all requests on these; a
    server that speaks only the classic dialect gets a connection for each request. A request goes to the server with
    the fewest requests of this proxy in flight. A server that does not answer is left out for a while, and while
    another one answers, no request waits for it.

    Args:
        servers: a host; or ``HOST:PORT``, or a port on 127.0.0.1, or any Twisted client endpoint, such as one for TLS
            or a Unix socket; or several of these.
        port: the host's port; only with a host.
        reactor: the reactor; the global one if None.
        address: the server's name in messages; by default, as given in ``servers``.
        max_result_bytes: the longest result to accept.
        longest_delay_s: the longest time in seconds for which a server that does not answer is left out.
        max_session_age_s: replace a session after this many seconds, or up to half as many, so that connections spread
            over servers that came later. What is in flight on the old one is still answered.
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
        max_session_age_s: float = MAX_SESSION_AGE_S,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        named: list[tuple[IStreamClientEndpoint, str]]
        if isinstance(servers, str) and port is not None:
            named = [(addresses.tcp_client(reactor, servers, port), address or f"{servers}:{port}")]
        else:
            several = list(servers) if isinstance(servers, list | tuple) else [cast(Server, servers)]
            named = [addresses.named_client(reactor, each, address, unnamed="the server") for each in several]
        bounds = max_result_bytes, longest_delay_s, max_session_age_s
        self._upstreams = [Upstream(endpoint, name, reactor, *bounds) for endpoint, name in named]
        self._is_closed = False

    def xform(
        self, transform: str, poem: Poem, /, *, timeout: float | None = None, **options: OptionValue
    ) -> Deferred[Poem]:
        """Send a poem to be transformed.

        Args:
            transform: a transform's name, or a whole spec such as ``wrap:width=40+upper``.
            poem: ``str``, sent as UTF-8, or ``bytes``.
            timeout: give up after this many seconds; the server gives up too.
            options: the transform's options; with a spec of several steps, write them into the spec.

        Returns:
            A Deferred of the result, of the same type as the poem. Cancelling it cancels the request at the server.
            It fails with the server's error, or with ``ConnectionFailed``, ``ConnectionLost``, ``RequestRefused``
            (a server that speaks the classic dialect closed without an answer), ``BadFrame``, ``TooLarge``,
            ``TransformTimeout``, ``Cancelled``, ``BadRequest`` or ``GibberishError``; each carries the poem. It fails
            with ``ValueError`` if the timeout is not a number of seconds above 0.
        """
        ends_at = None if timeout is None else self._reactor.seconds() + timeout
        answer = self._within(timeout, self._xform(transform, poem, ends_at, options))
        return answer.addCallbacks(_in_type_of, _with_poem, callbackArgs=(poem,), errbackArgs=(poem,))

    def forward(self, spec: Spec, poem: bytes, client: str | None, *, timeout: float | None = None) -> Deferred[bytes]:
        """Send a poem for somebody else, as a proxy does; otherwise as ``xform``.

        Args:
            spec: the transforms and their options.
            poem: the poem.
            client: for whom it is, of up to 100 characters, such as an IP address. A server that trusts this program
                lets each client have a share of its own.
            timeout: see ``xform``.
        """
        ends_at = None if timeout is None else self._reactor.seconds() + timeout
        answer = self._within(timeout, self._try_servers(Upstream.send_request, spec, poem, ends_at, client))
        return answer.addErrback(_with_poem, poem)

    def list_transforms(self, *, timeout: float | None = None) -> Deferred[dict[str, Any]]:
        """Fire with what ``xformd list-transforms --json`` prints for a server; fail as ``xform`` does."""
        return self._within(timeout, self._list())

    def ping(self, *, timeout: float | None = None) -> Deferred[str]:
        """Check that a server answers: fire with its name and version, and with what it still misses."""
        return self._within(timeout, self._ping())

    def close(self) -> Deferred[None]:
        """Accept no new requests; fires when those in flight are done and every connection is closed."""
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
        request = spec.build(transform, options), _to_bytes(poem), ends_at
        return await self._try_servers(Upstream.send_request, *request)

    async def _try_servers(self, ask: Callable[..., Awaitable[Answer]], *arguments: Any) -> Answer:
        tried: list[Upstream] = []
        may_reconnect = False
        while True:
            if self._is_closed:
                raise ConnectionFailed("this TransformProxy is closed: make a new one")
            upstream = choose(self._upstreams, tried, self._reactor.seconds())
            tried.append(upstream)
            has_other = len(self._upstreams) > 1 and len(set(tried)) < len(self._upstreams)
            try:
                return await ask(upstream, PATIENCE_S if has_other else None, *arguments)
            except TimeoutError:
                upstream.is_slow = may_reconnect = True
            except NotSent as not_sent:
                may_reconnect |= not_sent.may_reconnect
                if not (has_other or (may_reconnect and len(tried) <= len(self._upstreams))):
                    error = not_sent.error
                    raise error from error.__cause__

    def _within(self, timeout: float | None, work: Coroutine[Deferred[Any], Any, Answer]) -> Deferred[Answer]:
        if timeout is not None and not 0 < timeout < math.inf:
            work.close()
            return fail(ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}"))
        answer = Deferred.fromCoroutine(work)
        if timeout is not None and not answer.called:
            answer.addTimeout(timeout, self._reactor, onTimeoutCancel=self._expired)
        return answer

    async def _list(self) -> dict[str, Any]:
        _, answer = await self._try_servers(Upstream.send_control, "list")
        return decode_listing(answer)

    async def _ping(self) -> str:
        server, answer = await self._try_servers(Upstream.send_control, "ping")
        missing = one_line(answer.decode(errors="replace"))
        return f"{server}, {missing}" if missing else server

    async def _close(self) -> None:
        for upstream in self._upstreams:
            await upstream.close()

    def _expired(self, result: object, timeout: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError):
            names = " or ".join(dict.fromkeys(upstream.address for upstream in self._upstreams))
            raise TransformTimeout(f"no answer from {names} within {timeout:g} s")
        return result


def _to_bytes(poem: object) -> bytes:
    if isinstance(poem, bytes | bytearray | memoryview):
        return bytes(poem)
    if not isinstance(poem, str):
        raise TypeError(f"a poem must be str or bytes, not {type(poem).__name__}")
    try:
        return poem.encode()
    except UnicodeEncodeError:
        raise GibberishError("the poem contains a lone surrogate: it cannot be sent as UTF-8") from None


def _in_type_of(result: bytes, poem: Poem) -> Poem:
    if not isinstance(poem, str):
        return result
    try:
        return result.decode()
    except UnicodeDecodeError:
        message = "the result is not UTF-8: send the poem as bytes to get bytes"
        raise GibberishError(message, poem=poem) from None


def _with_poem(failure: Failure, poem: str | bytes) -> Failure:
    error = failure.value
    if isinstance(error, CancelledError) and not isinstance(error, XformError):
        failure = Failure(RequestCancelled("the request was cancelled"))
    if isinstance(failure.value, XformError):
        failure.value.poem = poem
    return failure
