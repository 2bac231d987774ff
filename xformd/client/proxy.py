"""TransformProxy: transform servers, as a program sees them. Converts poems and results, and tries servers in turn.

Invariant: a request is sent again only if the server is known not to have run it, or if it may run twice because its
transforms are deterministic.
"""

import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar, cast, overload

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail  # noqa: A004
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from xformd import spec
from xformd.client.balancer import Balancer, Kind, kind_of
from xformd.client.errors import ConnectionFailed, NotSent, RequestCancelled
from xformd.client.servers import Attempts, Text, check_port, current_traceparent, in_type, to_bytes
from xformd.client.upstream import LONGEST_DELAY_S, MAX_SESSION_AGE_S, PATIENCE_S, Address, Upstream
from xformd.errors import (
    NoSuchTransform,
    TransformTimeout,
    XformError,
    one_line,
)
from xformd.limits import Limits
from xformd.net import endpoints as addresses
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue, Spec
from xformd.wire.session import decode_listing, read_traceparent

Answer = TypeVar("Answer")

LOOK_AGAIN_S = 0.25  # whether a server has room: one that has confirmed that a request is cancelled does not say so
_NO_TRANSFORM = Spec(())  # the spec of a control message


class TransformProxy:
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
        servers: addresses.Server | Sequence[addresses.Server],
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
        secured = (ClientTls() if tls is True else tls) or None
        named: list[tuple[addresses.ClientEndpoint, str]]
        check_port(servers, port)
        if isinstance(servers, str) and port is not None:
            named = [(addresses.tcp_client(reactor, servers, port, tls=secured), address or f"{servers}:{port}")]
        else:
            several = list(servers) if isinstance(servers, list | tuple) else [cast(addresses.Server, servers)]
            shared: Any = {"unnamed": "the server", "tls": secured}
            named = [addresses.named_client(reactor, each, address, **shared) for each in several]
        more = max_result_bytes, longest_delay_s, max_session_age_s, token
        self._balancer = Balancer(reactor.seconds)
        self._upstreams = [Upstream(endpoint, name, reactor, self._balancer, *more) for endpoint, name in named]
        self._hedge = hedge
        self._waiting: dict[str | None, dict[Deferred[None], None]] = {}  # until a server has room, by client
        self._is_closed = self._is_cut_off = False

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
        ends_at = None if timeout is None else self._reactor.seconds() + timeout
        trace = read_traceparent((traceparent or current_traceparent()).encode())
        hedge = self._hedge if hedge is None else hedge
        answer = self._within(timeout, self._xform(transform, poem, ends_at, trace, options, hedge=hedge))
        return answer.addCallback(in_type, poem, result).addErrback(_with_poem, poem)

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
        ends_at = None if timeout is None else self._reactor.seconds() + timeout
        request = spec, poem, ends_at, client, traceparent, on_version
        answer = self._within(timeout, self._send(request, may_run_twice, hedge=self._hedge))
        return answer.addErrback(_with_poem, poem)

    def list_transforms(self, *, timeout: float | None = None) -> Deferred[dict[str, Any]]:
        """Fire with what ``xformd list-transforms --json`` prints for a server; fail as ``xform`` does."""
        return self._within(timeout, self._list())

    def tell(self, listings: Iterable[Mapping[str, Any] | None]) -> None:
        """Take what each server lists, None for one of which that is not known, from who keeps asking them all."""
        for upstream, listing in zip(self._upstreams, listings, strict=True):
            upstream.tell(listing)

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
        self,
        transform: str,
        poem: str | bytes,
        ends_at: float | None,
        traceparent: str | None,
        options: dict[str, OptionValue | None],
        *,
        hedge: bool,
    ) -> bytes:
        request = spec.build(transform, options), to_bytes(poem), ends_at, None, traceparent
        return await self._send(request, hedge=hedge)

    async def _send(self, request: tuple[Any, ...], may_run_twice: bool | None = None, *, hedge: bool) -> bytes:
        if len(self._balancer.nodes) <= 1:
            answer: bytes = await self._try_servers(_Attempts(may_run_twice), request[0], "send_request", *request)
            return answer
        spec, poem = request[:2]
        kind = kind_of(spec, len(poem))
        tried: list[Any] = []

        def send() -> Coroutine[Deferred[Any], Any, bytes]:
            return self._try_servers(_Attempts(may_run_twice, kind, tried), spec, "send_request", *request)

        def may_hedge() -> bool:
            return any(node not in tried for node in self._nodes()) and self._balancer.may_hedge()

        if hedge and may_run_twice is None:
            may_run_twice = self._balancer.may_run_twice(spec)
        after_s = self._balancer.hedge_after_s(kind) if hedge and may_run_twice else None
        return await (send() if after_s is None else _Hedge(send, may_hedge, after_s, self._reactor).answer)

    async def _try_servers(
        self,
        attempts: "_Attempts",
        spec: Spec,
        ask: Literal["send_request", "send_control"],
        *arguments: Any,
    ) -> Any:
        if self._is_closed:
            raise _closed()
        while True:
            if attempts.kind is not None:
                await self._wait_for_room(spec, attempts.kind, arguments[3])
            node, others = self._choose(spec, attempts.tried)
            attempts.tried += node, node.upstream
            sent_at = self._reactor.seconds()
            try:
                if isinstance(node, Upstream):
                    node = await node.open(PATIENCE_S if others else None)
                    attempts.tried.append(node)
                answer = await getattr(node, ask)(*arguments)
            except Exception as error:
                self._note(node, attempts.kind, sent_at, error)
                self._go_on_after(error, attempts, spec, node, others)
            else:
                if attempts.kind is not None:
                    self._note(node, attempts.kind, sent_at, None)
                return answer

    def _go_on_after(self, error: Exception, attempts: "_Attempts", spec: Spec, node: Any, others: int) -> None:
        """Return if the request may be sent again; otherwise raise what its caller gets."""
        if isinstance(error, TimeoutError):
            node.upstream.is_slow = True
        elif isinstance(error, NoSuchTransform):
            others = self._others_may_have(spec, attempts.tried) if others else 0
        if attempts.may_run_twice is None:
            attempts.may_run_twice = self._balancer.may_run_twice(spec)
        attempts.go_on_after(error, others, max(len(self._upstreams), len(self._balancer.nodes)))

    def _choose(self, spec: Spec, tried: Sequence[Any]) -> tuple[Any, int]:
        """Return the server for a request, and how many others are left to be tried: addresses, or whole servers."""
        if self._is_cut_off:
            raise _closed()
        if len(self._upstreams) == 1 and len(nodes := (only := self._upstreams[0]).nodes()) <= 1:
            return (nodes[0] if nodes else only), 0
        return self._choose_among(spec, tried)

    def _choose_among(self, spec: Spec, tried: Sequence[Any]) -> tuple[Any, int]:
        ready: list[Any] = []
        closed: list[Upstream] = []
        for upstream in self._upstreams:
            ready += (found := upstream.nodes())
            if not found:
                closed.append(upstream)
        doors = [upstream for upstream in closed if upstream.rests_until <= self._reactor.seconds()]
        untried = [node for node in ([*ready, *doors] if ready else closed) if node not in tried]
        others = max(0, len(untried) - 1)
        if len(ready) > 1:
            for node in ready:
                node.ask_what_it_offers(self._reactor)
        if ready and (not untried or any(node in ready for node in untried)):
            for upstream in doors:
                upstream.reach()  # without making a request wait: it may accept and never answer
            return self._balancer.choose(ready, spec, tried), others
        return self._choose_closed(untried or closed, doors, spec), others

    def _choose_closed(self, closed: Sequence[Upstream], doors: Sequence[Upstream], spec: Spec) -> Upstream:
        """Return the server to open a session to, of those that no request has one to."""
        pool = [upstream for upstream in closed if upstream in doors]
        if not pool:
            return min(closed, key=lambda upstream: upstream.rests_until)
        hopeful = [upstream for upstream in pool if not upstream.is_failing]
        for upstream in pool if hopeful else ():
            if upstream.is_failing:
                upstream.reach()
        return self._balancer.choose(hopeful or pool, spec)

    def _others_may_have(self, spec: Spec, tried: Sequence[Any]) -> bool:
        """Whether the server that does not have a transform is not the only one; all are asked anew what they have."""
        nodes: list[Any] = [node for upstream in self._upstreams for node in upstream.nodes() or [upstream]]
        for node in nodes:
            node.ask_what_it_offers(self._reactor, anew=True)
        return any(node not in tried and not node.lacks(spec) for node in nodes)

    async def _wait_for_room(self, spec: Spec, kind: Kind, client: str | None) -> None:
        """Wait until a server could begin with the request. The clients take turns."""
        while not self._balancer.has_room(self._nodes(), spec, kind):
            turn: Deferred[None] = Deferred(lambda turn: self._leave(client, turn))
            self._waiting.setdefault(client, {})[turn] = None
            with contextlib.suppress(TimeoutError):
                await turn.addTimeout(LOOK_AGAIN_S, self._reactor)

    def _leave(self, client: str | None, turn: Deferred[None]) -> None:
        turns = self._waiting[client]
        del turns[turn]
        if not turns:
            del self._waiting[client]

    def _let_one_in(self) -> None:
        if self._waiting:
            client = next(iter(self._waiting))
            turns = self._waiting.pop(client)
            turn = next(iter(turns))
            del turns[turn]
            if turns:
                self._waiting[client] = turns  # behind the others
            turn.callback(None)

    def _nodes(self) -> "Iterator[Address | Upstream]":
        """Yield where requests can be sent."""
        for upstream in self._upstreams:
            yield from upstream.nodes()

    def _note(self, node: Any, kind: Kind | None, sent_at: float, error: Exception | None) -> None:
        if kind is not None and isinstance(node, Address):
            error = error.error if isinstance(error, NotSent) else error
            self._balancer.note(node, kind, self._reactor.seconds() - sent_at, error)
        self._let_one_in()

    def _within(self, timeout: float | None, work: Coroutine[Deferred[Any], Any, Answer]) -> Deferred[Answer]:
        if timeout is not None and not 0 < timeout < math.inf:
            work.close()
            return fail(ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}"))
        answer = Deferred.fromCoroutine(work)
        if timeout is not None and not answer.called:
            answer.addTimeout(timeout, self._reactor, onTimeoutCancel=self._expired)
        return answer

    async def _list(self) -> dict[str, Any]:
        _, answer = await self._try_servers(_Attempts(True), _NO_TRANSFORM, "send_control", "list")
        return decode_listing(answer)

    async def _ping(self) -> str:
        server, answer = await self._try_servers(_Attempts(True), _NO_TRANSFORM, "send_control", "ping")
        missing = one_line(answer.decode(errors="replace"))
        return f"{server}, {missing}" if missing else server

    async def _close(self) -> None:
        while self._waiting:
            await deferLater(self._reactor, LOOK_AGAIN_S / 10)
        self._is_cut_off = True
        for upstream in self._upstreams:
            await upstream.close()

    def _expired(self, result: object, timeout: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError):
            names = " or ".join(dict.fromkeys(upstream.address for upstream in self._upstreams))
            raise TransformTimeout(f"no answer from {names} within {timeout:g} s")
        return result


def _closed() -> ConnectionFailed:
    return ConnectionFailed("this TransformProxy is closed: make a new one")


class _Hedge:
    """A request that is sent once more if there is no answer after some time. The first answer counts."""

    def __init__(
        self, send: Callable[[], Coroutine[Any, Any, bytes]], may_hedge: Callable[[], bool], after_s: float, clock: Any
    ) -> None:
        self.answer: Deferred[bytes] = Deferred(self._stop)
        self._send = send
        self._calls: list[Deferred[Any]] = []
        self._may_hedge = may_hedge
        self._timer = clock.callLater(after_s, self._start_again)
        self._start()

    def _start(self) -> None:
        call: Deferred[Any] = Deferred.fromCoroutine(self._send())
        self._calls.append(call)
        call.addBoth(self._end, call)

    def _start_again(self) -> None:
        if self._may_hedge():
            self._start()

    def _end(self, outcome: bytes | Failure, call: Deferred[Any]) -> None:
        self._calls.remove(call)
        if not self.answer.called and not (self._calls and isinstance(outcome, Failure)):
            self.answer.callback(outcome)
            self._stop()

    def _stop(self, _: object = None) -> None:
        if self._timer.active():
            self._timer.cancel()
        for call in [*self._calls]:
            call.cancel()


class _Attempts(Attempts):
    slow = TimeoutError


def _with_poem(failure: Failure, poem: str | bytes) -> Failure:
    error = failure.value
    if isinstance(error, CancelledError) and not isinstance(error, XformError):
        failure = Failure(RequestCancelled("the request was cancelled"))
    if isinstance(failure.value, XformError):
        failure.value.poem = poem
    return failure
