"""TransformProxy: transform servers, as a Twisted program sees them.

Invariant: a Deferred fails only with an ``XformError`` that carries the poem, or for a mistake of its caller.
"""

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, overload

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.balancer import offers_of, workers_of
from xformd.client.errors import RequestCancelled, connection_failed, why_lost
from xformd.client.link import Link
from xformd.client.requests import Client, Request, Text, addresses_of
from xformd.client.servers import LONGEST_DELAY_S, MAX_SESSION_AGE_S, Core, NotInTime, Server, watch
from xformd.errors import XformError
from xformd.limits import Limits
from xformd.net import endpoints
from xformd.net.endpoints import connect, named_client
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue, Spec
from xformd.wire.client import ClassicExchange


class TransformProxy(Client):
    """One or several transform servers. Use it as an async context manager, or ``close()`` it.

    It opens a session to each server, for a host name to each of its addresses, and sends all requests on these; a
    server that speaks only the classic dialect gets a connection for each request. A request goes to the server with
    the fewest requests of this proxy in flight. A server that does not answer, or answers with trouble of its own more
    often than the others, is left out for a while, and while another one answers, no request waits for it.

    Args:
        servers: a host; or ``HOST:PORT``, or a port on 127.0.0.1, or any Twisted client endpoint, such as one for a
            Unix socket; or several of these.
        port: the host's port; only with a host.
        tls: True for TLS to servers on TCP, which verifies their names; or a ``ClientTls`` that says whom to trust, and
            with which certificate. An address ``tls:HOST:PORT`` asks for it too.
        reactor: the reactor; the global one if None.
        address: the server's name in messages; by default, as given in ``servers``.
        max_result_bytes: the longest result to accept.
        longest_delay_s: the longest time in seconds for which a server that does not answer is left out.
        max_session_age_s: replace a session after this many seconds, or up to half as many, so that connections spread
            over servers that came later. What is in flight on the old one is still answered.
        token: shows each server who this is, where that has an access file. One that speaks only the classic dialect
            does not get it.
        hedge: whether a request whose transforms are deterministic, and which takes longer than 95 in 100 like it, is
            sent to a second server too. The first answer counts, and the other server stops.
    """

    def __init__(
        self,
        servers: endpoints.Server | Sequence[endpoints.Server],
        port: int | None = None,
        *,
        tls: ClientTls | bool = False,
        reactor: Any = None,
        address: str | None = None,
        max_result_bytes: int = Limits().max_result_bytes,
        longest_delay_s: float = LONGEST_DELAY_S,
        max_session_age_s: float = MAX_SESSION_AGE_S,
        token: str | None = None,
        hedge: bool = False,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._now = reactor.seconds
        self._call_at = lambda when, act: reactor.callLater(max(0.0, when - reactor.seconds()), act)
        secured = (ClientTls() if tls is True else tls) or None
        several = addresses_of(servers, port)
        named = [named_client(reactor, each, address, unnamed="the server", tls=secured) for each in several]
        made = [Server(name, endpoint) for endpoint, name in named]
        super().__init__(made, max_result_bytes, longest_delay_s, max_session_age_s, token, hedge=hedge)

    @overload
    def xform(
        self, transform: str, poem: str | bytes, /, *, result: type[Text], **options: OptionValue | None
    ) -> Deferred[Text]: ...

    @overload
    def xform(self, transform: str, poem: Text, /, **options: OptionValue | None) -> Deferred[Text]: ...

    def xform(
        self,
        transform: str,
        poem: str | bytes,
        /,
        *,
        result: Any = None,
        timeout: Any = None,
        traceparent: Any = None,
        hedge: Any = None,
        **options: OptionValue | None,
    ) -> Deferred[Any]:
        """Send a poem to be transformed.

        Args:
            transform: a transform's name, or a whole spec such as ``wrap:width=40+upper``.
            poem: ``str``, sent as UTF-8, or ``bytes``.
            result: ``str`` or ``bytes``; by default, the poem's type.
            timeout: give up after this many seconds; the server gives up too.
            traceparent: the trace that the request belongs to, as W3C has it; by default, that of OpenTelemetry's
                current span. A malformed one is not sent.
            hedge: whether a second server may be asked too; by default, as ``TransformProxy`` was told.
            options: the transform's options; with a spec of several steps, write them into the spec.

        Returns:
            A Deferred of the result. Cancelling it cancels the request at the server.
            It fails with the server's error, or with ``ConnectionFailed``, ``ConnectionLost``, ``RequestRefused``
            (a server that speaks the classic dialect closed without an answer), ``BadFrame``, ``TooLarge``,
            ``TransformTimeout``, ``Cancelled``, ``BadRequest`` or ``GibberishError``; each carries the poem. It fails
            with ``ValueError`` if the timeout is not a number of seconds above 0.
        """
        work = self._xform(transform, poem, timeout, traceparent, result, hedge, options)
        return self._within(timeout, work, poem)

    def forward(
        self,
        spec: Spec,
        poem: bytes,
        client: str | None,
        *,
        timeout: float | None = None,
        traceparent: str | None = None,
        on_version: Callable[[str | None], None] | None = None,
        may_run_twice: bool | None = None,
    ) -> Deferred[bytes]:
        """Send a poem for somebody else, as a proxy does; otherwise as ``xform``.

        Args:
            spec: the transforms and their options.
            poem: the poem.
            client: for whom it is, of up to 100 characters, such as an IP address. A server that trusts this program
                lets each client have a share of its own.
            timeout: see ``xform``.
            traceparent: see ``xform``; by default, there is none.
            on_version: is told before the result which versions made it (``wrap/0.1.0``); None if the server does not.
            may_run_twice: whether the transforms are deterministic; by default, as the servers have said.
        """

        async def send() -> bytes:
            request = Request(spec, poem, self._end(timeout), client, traceparent, on_version)
            return await self._send(request, may_run_twice, None)

        return self._within(timeout, send(), poem)

    def list_transforms(self, *, timeout: float | None = None) -> Deferred[dict[str, Any]]:
        """Fire with what ``xformd list-transforms --json`` prints for a server; fail as ``xform`` does."""
        return self._within(timeout, self._list(timeout))

    def tell(self, listings: Iterable[Mapping[str, Any] | None]) -> None:
        """Take what each server lists, None for one of which that is not known, from who keeps asking them all."""
        for server, listing in zip(self._servers, listings, strict=True):
            # Not what one of several addresses lists.
            is_known = listing is not None and len(server.hosts) < 2
            server.told = server.offers = offers_of(listing or {}) if is_known else None
            server.workers = workers_of(listing or {})

    def ping(self, *, timeout: float | None = None) -> Deferred[str]:
        """Check that a server answers: fire with its name and version, and with what it still misses."""
        return self._within(timeout, self._ping(timeout))

    def close(self) -> Deferred[None]:
        """Accept no new requests; fires when those in flight are done and every connection is closed."""
        return Deferred.fromCoroutine(self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # What ``Client`` needs.

    _waiter = Deferred

    def _start(self, work: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(work).addErrback(lambda _: None)  # those who wait are told

    def _settle(self, waiter: Deferred[Any], value: Any) -> None:
        if not waiter.called:
            waiter.callback(value)  # also an exception: a waiter never fails

    def _wait(self, waiter: Deferred[Any], seconds: float | None) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()  # which may be cancelled without the waiter

        def pass_on(outcome: Any) -> Any:
            if not waiting.called:
                waiting.callback(Failure(outcome) if isinstance(outcome, Exception) else outcome)
            return None if isinstance(outcome, Failure) else outcome

        waiter.addBoth(pass_on)
        if seconds is not None and not waiting.called:
            waiting.addTimeout(seconds, self._reactor, onTimeoutCancel=_not_in_time)
        return waiting

    def _within(
        self, timeout: float | None, work: Coroutine[Deferred[Any], Any, Any], poem: str | bytes | None = None
    ) -> Deferred[Any]:
        answer = Deferred.fromCoroutine(work)
        if timeout is not None and not answer.called:

            def expire(*_: object) -> None:
                raise self._expired(timeout, poem)

            answer.addTimeout(timeout, self._reactor, onTimeoutCancel=expire)
        return answer.addErrback(_explain, poem)

    async def _dial(self, server: Server, core: Core, in_use: Collection[str]) -> "_Session":
        session, endpoint = _Session(self, core), server.place
        endpoint.in_use = in_use
        # A classic exchange cannot ask whether the server is there.
        connecting = connect(endpoint, session, also_unread=isinstance(core, ClassicExchange))
        try:
            await self._wait(connecting, None)
        except CancelledError:
            connecting.cancel()
            raise
        except Exception:
            error = connection_failed(server.address, Failure())
            raise error from error.__cause__
        finally:
            server.hosts = frozenset(getattr(each, "host", "") for each in endpoint.addresses)
        return session


class _Session(Link, Protocol):
    follow_soon = Link.follow  # a transport writes later
    dataReceived = Link.receive

    def connectionMade(self) -> None:
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            # Otherwise a request would wait until the server had acknowledged the one before.
            transport.setTcpNoDelay(True)
        self.host = str(getattr(transport.getPeer(), "host", ""))
        watch(self.core, transport)
        self.begin(transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lose(why_lost(reason), is_clean=bool(reason.check(ConnectionDone)))

    def break_off(self) -> None:
        self.transport.abortConnection()

    def hang_up(self) -> None:
        self.transport.loseConnection()


def _not_in_time(*_: object) -> None:
    raise NotInTime


def _explain(failure: Failure, poem: str | bytes | None) -> Failure:
    """Let a Deferred that is cancelled fail with one of our errors, too; and each error carry the poem."""
    error = failure.value
    if isinstance(error, CancelledError):
        return Failure(RequestCancelled("the request was cancelled", poem=poem))
    if isinstance(error, XformError):
        error.poem = poem
    return failure
