"""The servers of a client without Twisted: which one gets a request, when to connect again, what may be sent again.

Written once for asyncio and for plain sockets: coroutines over the few things that these do differently, the methods
of ``Client`` that raise ``NotImplementedError``. With plain sockets a coroutine never waits: what it awaits has blocked
its thread. Invariant: a request is sent again only if the server is known not to have run it.
"""

import contextlib
import functools
import math
import os
import random
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from xformd import spec as specs
from xformd.errors import (
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    GibberishError,
    InternalError,
    NoSuchTransform,
    RequestRefused,
    ShuttingDown,
    TransformTimeout,
    XformError,
    one_line,
)
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, with_host
from xformd.net.plain import (
    NO_ANSWER,
    PEER_TIMEOUT_S,
    Place,
    backoff_s,
    bytes_in_system,
    check_host,
    detect_loss,
    find_place,
    seems_gone,
)
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue, Spec
from xformd.wire.client import ClassicExchange, ClientSession, NotSent, Pending, SpeaksClassic
from xformd.wire.session import MIB, Control, decode_listing, read_traceparent

LONGEST_DELAY_S = 2.5
MAX_SESSION_AGE_S = 300.0
OPENING_TIMEOUT_S = 5.0
PATIENCE_S = 0.5  # how long a request waits for a connection to be made while there are other servers to try
CLASSIC_FOR_S = 60.0  # how long a server is believed to speak only the classic dialect: it may be upgraded meanwhile

_NO_TRANSFORM = Spec(())  # the spec of a control message

Text = TypeVar("Text", str, bytes)
Core = ClientSession | ClassicExchange
Send = Callable[[ClientSession, Any, float], Pending]
"""Sends a message on a session, for a waiter, at a time."""


class HandshakeFailed(Exception):
    """There is no TLS connection; ``__cause__`` is what the module ``ssl`` raised."""


class NoConnection(Exception):
    """There was no connection within ``PATIENCE_S``."""


MAX_REPEATS = 2  # of a request that may have run: it may be what its servers died of


class Attempts:
    """Which servers a request was sent to, and whether it may be sent once more."""

    slow: ClassVar[type[Exception]] = NoConnection
    """What is raised where connecting takes too long."""

    tries = repeats = 0
    may_reconnect = False

    def __init__(self, may_run_twice: bool | None, kind: Any = None, tried: list[Any] | None = None) -> None:
        self.may_run_twice, self.kind = may_run_twice, kind
        self.tried: list[Any] = [] if tried is None else tried

    def go_on_after(self, error: Exception, others: int, most: int) -> None:
        """Return if the request may be sent again; otherwise raise what its caller gets."""
        self.tries += 1
        if isinstance(error, self.slow):
            self.may_reconnect = True
        elif isinstance(error, NotSent):
            self.may_reconnect |= error.may_reconnect
            if not (others or (self.may_reconnect and self.tries <= most)):
                raise error.error from error.error.__cause__
        elif isinstance(error, NoSuchTransform) and others:
            pass
        elif isinstance(error, RequestRefused) or not isinstance(error, ConnectionLost | ShuttingDown | InternalError):
            raise error
        elif self.may_run_twice and self.repeats < MAX_REPEATS and (others or not isinstance(error, InternalError)):
            self.repeats += 1
        else:
            if isinstance(error, ConnectionLost):
                error.message = f"{error.message}; the request may have run: repeat it only if that is harmless"
                error.log_message = error.message
                error.args = (error.message,)
            raise error


class Server:
    """One server. It is not tried again before ``rests_until`` while it does not answer."""

    hosts: frozenset[str] = frozenset()  # what its name stood for last
    attempt: Any = None  # to connect
    openers = classic_requests = failures = 0
    classic_until = rests_until = 0.0
    is_slow = False  # it takes longer to connect to it than a request has waited
    node: Any = None  # what the choice among several knows of it

    def __init__(self, place: Place, address: str) -> None:
        self.place, self.address = place, address
        self.links: list[Any] = []  # also those that are ending; the last one was used last

    @property
    def load(self) -> int:
        """How many of our requests it has; an attempt to connect counts even if no request waits for it any more."""
        waiting = max(self.openers, self.attempt is not None)
        count: int = sum([link.core.load for link in self.links], self.classic_requests + waiting)
        return count

    def usable(self) -> list[Any]:
        """Return the connections that accept requests, and forget those that have ended."""
        self.links = [link for link in self.links if link.core.load or not link.core.is_ending]
        return [link for link in self.links if link.is_open]


class _Choice:
    """The choice among several servers, by the rule of ``TransformProxy``; none of them is asked what it offers."""

    def __init__(self, servers: Sequence[Server], clock: Callable[[], float]) -> None:
        # Here, since one server needs none of it, and it takes half as long to load as all the rest.
        from xformd.client import balancer

        class Node(balancer.Node):
            server: Server

            @property
            def load(self) -> int:
                """How many requests it has."""
                return self.server.load

        self.kind_of = balancer.kind_of
        self._balancer = balancer.Balancer(clock)
        for server in servers:
            server.node = node = Node()
            node.server, node.offers = server, balancer.ANYTHING
            self._balancer.nodes.append(node)

    def choose(self, servers: Sequence[Server], spec: Spec, tried: Sequence[Server]) -> Server:
        """Return the server for a request."""
        nodes = [server.node for server in servers]
        server: Server = self._balancer.choose(nodes, spec, [each.node for each in tried]).server
        return server

    def note(self, server: Server, kind: Any, seconds: float, error: Exception | None) -> None:
        """Learn from an answer."""
        self._balancer.note(server.node, kind, seconds, error.error if isinstance(error, NotSent) else error)


class Client:
    """What ``TransformClient`` is on asyncio and on plain sockets alike. It takes what ``TransformProxy`` takes.

    Args:
        servers: ``HOST``, ``HOST:PORT``, a port on 127.0.0.1, one of these after ``tls:``, ``unix:PATH``; or several.
        port: the host's port; only with a host.
        tls: True for TLS to servers on TCP, which verifies their names; or a ``ClientTls``.
        address: the server's name in messages; by default, as given in ``servers``.
        max_result_bytes: the longest result to accept.
        longest_delay_s: the longest time in seconds for which a server that does not answer is left out.
        max_session_age_s: replace a session after this many seconds, or up to half as many.
        token: shows each server who this is, where that has an access file.
    """

    def __init__(
        self,
        servers: str | int | Sequence[str | int] = f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        port: int | None = None,
        *,
        tls: ClientTls | bool = False,
        address: str | None = None,
        max_result_bytes: int = 10 * MIB,
        longest_delay_s: float = LONGEST_DELAY_S,
        max_session_age_s: float = MAX_SESSION_AGE_S,
        token: str | None = None,
    ) -> None:
        several: list[Any] = list(servers) if isinstance(servers, list | tuple) else [servers]
        check_port(servers, port)
        if port is not None:
            several = [f"[{servers}]:{port}" if ":" in str(servers) else f"{servers}:{port}"]
        self._servers = [Server(_place(each), address or with_host(each)) for each in several]
        self._tls = tls if isinstance(tls, ClientTls) else ClientTls()
        self._has_tls = bool(tls)
        self._max_result_bytes = max_result_bytes
        self._longest_delay_s, self._max_session_age_s = longest_delay_s, max_session_age_s
        self._token = token
        if any(self._name(server) for server in self._servers):
            self._tls.context()  # a bad file is found now
        self._is_closed = False
        self._choice = _Choice(self._servers, self._now) if len(self._servers) > 1 else None
        self._lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()  # of what the servers have

    # What asyncio and plain sockets do differently. ``_start`` runs a coroutine beside what runs; ``_wait_for`` waits
    # for it, or raises ``NoConnection``. ``_look_up`` is ``socket.getaddrinfo``. ``_talk`` runs a core on a connection,
    # over TLS to a server of that name if there is one, until its opener has an outcome: it returns the link, or the
    # result of a classic server, and raises ``HandshakeFailed``, or ``TimeoutError``. A link has its ``core``, ``host``
    # and ``renews_at``, and ``is_open``, ``ask`` and ``close``.
    _now: Callable[[], float]
    _start: Callable[[Coroutine[Any, Any, Any]], Any]
    _wait_for: Callable[[Any, float | None, float | None], Awaitable[Any]]
    _sleep: Callable[[float], Awaitable[None]]
    _look_up: Callable[[str, int], Awaitable[list[Any]]]
    _connect_socket: Callable[[socket.socket, Any], Awaitable[None]]
    _talk: Callable[[socket.socket, Core, Any, str, str | None, float | None], Awaitable[Any]]
    _in_thread: Callable[[Callable[[], str]], Awaitable[str]]
    _opener: Callable[[], Any]

    # Requests.

    async def _xform(
        self,
        transform: str,
        poem: str | bytes,
        timeout: float | None,
        traceparent: str | None,
        result: type[Any] | None,
        options: dict[str, OptionValue | None],
    ) -> Any:
        ends_at = self._end(timeout)
        try:
            spec, data = specs.build(transform, options), to_bytes(poem)
            trace = read_traceparent((traceparent or current_traceparent()).encode())

            def send(core: ClientSession, waiter: Any, now: float) -> Pending:
                return core.request(waiter, now, spec, data, ends_at, None, trace)

            kind = self._choice and self._choice.kind_of(spec, len(data))
            answer = await self._try_servers(
                Attempts(None, kind),
                spec,
                send,
                lambda server: self._classic(server, spec, data, ends_at),
                ends_at,
                timeout,
            )
            return in_type(answer, poem, result)
        except XformError as error:
            error.poem = poem
            raise

    async def _control(self, control: Control, timeout: float | None) -> tuple[str, bytes]:
        ends_at, server_name = self._end(timeout), ""

        def send(core: ClientSession, waiter: Any, now: float) -> Pending:
            nonlocal server_name
            server_name = core.hello.server if core.hello else ""
            return core.control(waiter, now, control)

        async def refuse(server: Server) -> bytes:
            only = f"{server.address} speaks only the classic dialect: it transforms poems and nothing else"
            raise RequestRefused(only)

        answer = await self._try_servers(Attempts(True), _NO_TRANSFORM, send, refuse, ends_at, timeout)
        return server_name, answer

    async def _list(self, timeout: float | None) -> dict[str, Any]:
        return decode_listing((await self._control("list", timeout))[1])

    async def _ping(self, timeout: float | None) -> str:
        server, answer = await self._control("ping", timeout)
        missing = one_line(answer.decode(errors="replace"))
        return f"{server}, {missing}" if missing else server

    def _end(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        return self._now() + timeout

    def _expired(self, timeout: float | None) -> TransformTimeout:
        names = " or ".join(dict.fromkeys(server.address for server in self._servers))
        return TransformTimeout(f"no answer from {names} within {timeout or 0:g} s")

    async def _try_servers(
        self,
        attempts: Attempts,
        spec: Spec,
        send: Send,
        send_classic: Callable[[Server], Awaitable[bytes]],
        ends_at: float | None,
        timeout: float | None,
    ) -> bytes:
        while True:
            server = self._choose(spec, attempts.tried)
            attempts.tried.append(server)
            others = len(self._servers) - len(set(attempts.tried))
            sent_at = self._now()
            try:
                link = await self._open(server, PATIENCE_S if others else None, ends_at)
                answer = await (link.ask(send, ends_at) if link else send_classic(server))
            except TimeoutError:
                raise self._expired(timeout) from None
            except (NoConnection, NotSent, XformError) as error:
                if isinstance(error, NoConnection):
                    if ends_at is not None and self._now() >= ends_at:
                        raise self._expired(timeout) from None
                    server.is_slow = True
                self._note(server, attempts.kind, sent_at, error)
                attempts.go_on_after(error, others, len(self._servers))
            else:
                self._note(server, attempts.kind, sent_at, None)
                return answer

    def _note(self, server: Server, kind: Any, sent_at: float, error: Exception | None) -> None:
        if self._choice is not None and kind is not None:
            with self._lock:
                self._choice.note(server, kind, self._now() - sent_at, error)

    def _choose(self, spec: Spec, tried: Sequence[Any]) -> Server:
        if self._is_closed:
            raise ConnectionFailed("this TransformClient is closed: make a new one")
        if self._choice is None:
            return self._servers[0]
        with self._lock:
            now = self._now()
            untried = [server for server in self._servers if server not in tried] or self._servers
            ready = [server for server in untried if server.rests_until <= now]
            if not ready:
                return min(untried, key=lambda server: server.rests_until)
            failing = [each for each in ready if (each.failures or each.is_slow) and not each.usable()]
            answering = [server for server in ready if server not in failing]
            for server in failing if answering else ():
                self._reach(server)  # without making a request wait: it may accept and never answer
            return self._choice.choose(answering or ready, spec, tried)

    # Connections.

    async def _open(self, server: Server, patience_s: float | None, ends_at: float | None) -> Any:
        """Return a connection to a server; None if it speaks only the classic dialect."""
        with self._lock:
            now, usable = self._now(), server.usable()
            if usable:
                least = min(usable, key=lambda link: link.core.load) if len(usable) > 1 else usable[0]
                if len(usable) < len(server.hosts) or least.renews_at <= now:
                    self._reach(server)  # the request need not wait for it
                return least
            if now < server.classic_until:
                return None
            attempt = self._reach(server)
            server.openers += 1
        try:
            return await self._wait_for(attempt, patience_s, ends_at)
        finally:
            with self._lock:
                server.openers -= 1

    def _reach(self, server: Server) -> Any:
        """Connect, unless an attempt is in flight; return the attempt."""
        if server.attempt is None:
            server.attempt = True
            server.attempt = self._start(self._connect(server))
        return server.attempt

    async def _connect(self, server: Server) -> Any:
        try:
            if (rest_s := server.rests_until - self._now()) > 0:
                await self._sleep(rest_s)
            opener = self._opener()
            core = ClientSession(server.address, self._max_result_bytes, self._token, opener=opener)
            link = await self._dial(server, core, opener, OPENING_TIMEOUT_S)
            with self._lock:
                self._add(server, link)
            return link
        except SpeaksClassic:
            server.classic_until = self._now() + CLASSIC_FOR_S
            server.failures = 0
            return None
        except TimeoutError as error:
            self._note_failure(server)
            silent = f"{server.address} accepted the connection and did not answer within {OPENING_TIMEOUT_S:g} s"
            raise NotSent(ConnectionFailed(silent)) from error
        except XformError as error:
            self._note_failure(server)
            raise NotSent(error) from error
        finally:
            with self._lock:
                server.attempt, server.is_slow = None, False

    def _add(self, server: Server, link: Any) -> None:
        server.failures = 0
        now = self._now()
        link.renews_at = now + self._max_session_age_s * (1 - random.random() / 2)
        usable = server.usable()
        oldest = min(usable, key=lambda each: each.renews_at, default=link)
        if oldest.renews_at <= now or len(usable) >= max(1, len(server.hosts)):
            oldest.close()
        server.links.append(link)
        if self._is_closed:
            link.close()

    def _note_failure(self, server: Server) -> None:
        server.failures += 1
        delay_s = backoff_s(server.failures, longest_s=self._longest_delay_s, jitter=random.random())
        server.rests_until = self._now() + delay_s

    async def _classic(self, server: Server, spec: Spec, poem: bytes, ends_at: float | None) -> bytes:
        opener = self._opener()
        exchange = ClassicExchange(server.address, spec, poem, self._max_result_bytes, opener=opener)
        with self._lock:
            server.classic_requests += 1
        try:
            within_s = None if ends_at is None else max(0.0, ends_at - self._now())
            result: bytes = await self._dial(server, exchange, opener, within_s)
            return result
        except ConnectionFailed as error:
            server.classic_until = 0.0  # the server that comes back may be a newer one
            self._note_failure(server)
            raise NotSent(error) from error
        finally:
            with self._lock:
                server.classic_requests -= 1

    async def _dial(self, server: Server, core: Core, opener: Any, within_s: float | None) -> Any:
        """Connect to one of the addresses of a server, preferably one that no other connection goes to."""
        found = await self._find(server)
        server.hosts = frozenset(host for _, _, host in found)
        in_use = {link.host for link in server.links}
        last = OSError(NO_ANSWER)
        for family, address, host in sorted(found, key=lambda each: (each[2] in in_use, random.random())):
            with contextlib.ExitStack() as undo:
                connection = undo.enter_context(socket.socket(family))
                connection.setblocking(False)
                try:
                    await self._connect_socket(connection, address)
                    if family != socket.AF_UNIX:
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        detect_loss(connection, PEER_TIMEOUT_S, also_unread=isinstance(core, ClassicExchange))
                except OSError as error:
                    last = error
                    continue
                try:
                    done = await self._talk(connection, core, opener, host, self._name(server), within_s)
                except HandshakeFailed as failed:
                    reason = await self._in_thread(functools.partial(self._explain, failed, server, family, address))
                    raise ConnectionFailed(f"cannot connect to {server.address}: {reason}") from failed.__cause__
                undo.pop_all()
                return done
        raise connection_failed(server.address, os.strerror(last.errno) if last.errno else NO_ANSWER, last) from last

    async def _find(self, server: Server) -> list[tuple[int, Any, str]]:
        if path := server.place.path:
            return [(socket.AF_UNIX, path, path)]
        host, port = server.place.host, server.place.port
        try:
            infos = await self._look_up(host, port)
        except OSError as error:
            reason = f"DNS lookup failed: no results for hostname lookup: {host}"
            raise connection_failed(server.address, reason, error) from error
        return [(family, address, address[0]) for family, _, _, _, address in infos]

    def _name(self, server: Server) -> str | None:
        """Return the name to verify over TLS; None for plain TCP."""
        place = server.place
        return place.host if place.has_tls or (self._has_tls and not place.path) else None

    def _explain(self, failed: HandshakeFailed, server: Server, family: int, address: Any) -> str:
        return why_lost(failed.__cause__, self._tls, lambda: (family, address, server.place.host))


def watch(core: Core, connection: socket.socket) -> None:
    """Let a core ask the system about its connection."""
    if isinstance(core, ClientSession):
        core.seems_gone = functools.partial(seems_gone, connection)
        core.bytes_in_system = functools.partial(bytes_in_system, connection)


def why_lost(
    error: BaseException | None, tls: ClientTls, where: Callable[[], tuple[Any, ...]] = lambda: (0, None, "")
) -> str:
    """Return why there is no TLS connection, or none any more; nothing if TLS is not the reason."""
    if where()[2] or "SSL" in type(error).__name__:
        try:
            from xformd.net.tls.words import explain
        except ImportError:  # without the extra
            return f"TLS failed: {error}"
        return explain(error, *where(), tls.certificate)  # type: ignore[arg-type,call-arg]
    return ""


def connection_failed(address: str, reason: str, cause: BaseException) -> ConnectionFailed:
    """Return the error for a connection that could not be made."""
    error = ConnectionFailed(f"cannot connect to {address}: {reason}; is 'xformd serve' running there?")
    error.__cause__ = cause
    return error


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what a client is made of that is given nothing, as ``xformd send`` takes it from the environment."""
    files = [environ.get(f"XFORMD_TLS_{name}") for name in ("CA", "CLIENT_CERTIFICATE", "CLIENT_KEY")]
    has_tls = environ.get("XFORMD_CLIENT_TLS", "").lower() in ("1", "true", "t", "yes", "y", "on")
    return {
        "servers": environ.get("XFORMD_SERVER", "").split() or f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        "token": environ.get("XFORMD_TOKEN") or None,
        "tls": (has_tls or any(files)) and ClientTls(*files),
    }


def check_port(servers: object, port: object) -> None:
    """Reject what is a second address, not a port; raise ``ConfigError``."""
    if isinstance(port, str) and not port.isdecimal():
        raise ConfigError(f"port {port!r} is no number; several servers are a list: [{servers!r}, {port!r}]")


def _place(address: str | int) -> Place:
    place = find_place(str(address).removeprefix("tcp:") if str(address).count(":") > 1 else address)
    if place is None:
        raise ConfigError(f"server address {address!r}: write HOST:PORT, tls:HOST:PORT or unix:/run/xformd.sock")
    if place.host:
        check_host(place.host)
    return place


def current_traceparent() -> str:
    """Return that of the current span, if this program uses OpenTelemetry and there is one."""
    if (trace := sys.modules.get("opentelemetry.trace")) is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def to_bytes(poem: object) -> bytes:
    """Return a poem as it is sent."""
    if isinstance(poem, bytes | bytearray | memoryview):
        return bytes(poem)
    if not isinstance(poem, str):
        raise TypeError(f"a poem must be str or bytes, not {type(poem).__name__}")
    try:
        return poem.encode()
    except UnicodeEncodeError:
        raise GibberishError("the poem contains a lone surrogate: it cannot be sent as UTF-8") from None


def in_type(answer: bytes, poem: Any, result: type[Any] | None = None) -> Any:
    """Return a result as ``str`` or ``bytes``: of the type that is asked for, or else of the poem's."""
    if not issubclass(result or type(poem), str):
        return answer
    try:
        return answer.decode()
    except UnicodeDecodeError:
        raise GibberishError("the result is not UTF-8: send the poem as bytes to get bytes", poem=poem) from None
