"""The servers of a client: the sessions to their addresses, how to open one, when to try again.

Written once for Twisted, asyncio and plain sockets: coroutines over the few things that these do differently, which
``Servers`` lists. With plain sockets a coroutine never waits: what it awaits has blocked its thread. Invariant: at most
one attempt to connect to a server is in flight, and after a failure the next one waits longer. A host name is looked up
for each attempt, and gets a session for each of its addresses.
"""

import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from typing import Any

from xformd.client.balancer import Balancer, Node, Offers
from xformd.errors import ConnectionFailed, TransformTimeout, XformError
from xformd.net.plain import backoff_s, bytes_in_system, seems_gone
from xformd.wire.client import ClassicExchange, ClientSession, NotSent, SpeaksClassic

LONGEST_DELAY_S = 2.5  # a server that is back is used within 5 s, though an attempt to connect hangs for 2 s more
MAX_SESSION_AGE_S = 300.0
OPENING_TIMEOUT_S = 5.0
CLASSIC_FOR_S = 60.0  # how long a server is believed to speak only the classic dialect: it may be upgraded meanwhile

Core = ClientSession | ClassicExchange


class NotInTime(Exception):
    """What was waited for has not come within the time given."""


class Address(Node):
    """One address of a server, and the session to it."""

    asked_at: float | None = None  # what it offers, on this session

    def __init__(self, server: "Server", link: Any) -> None:
        super().__init__()
        self.server, self.host = server, link.host
        self.link = link
        self.links = [link]  # also those that are ending

    @property
    def load(self) -> int:
        """See ``Node``. A session that is ending still has its requests."""
        load: int = self.link.core.load
        return load if len(self.links) == 1 else sum(link.core.load for link in self.links)

    @property
    def is_gone(self) -> bool:
        """Whether its sessions have ended."""
        return all(link.core.is_ending and not link.core.load for link in self.links)

    def use(self, link: Any) -> None:
        """Send requests on a new session from now on."""
        self.link.close()
        self.links = [*(each for each in self.links if each.core.load), link]
        self.link, self.asked_at = link, None


class Server(Node):
    """One server. It is not tried again before ``rests_until`` while it does not answer.

    It is a node itself while there is no session to any of its addresses. ``place`` is where it is, for ``_dial``.
    """

    hosts: Collection[str] = ()  # the addresses that its name stood for last
    told: Offers | None = None  # what it offers, from somebody else who keeps asking
    failures = repetitions = 0
    classic_until = rests_until = 0.0
    spreads_at = 0.0  # an address without a session is tried then
    is_slow = False  # it takes longer to connect to it than a request has waited

    def __init__(self, address: str, place: Any) -> None:
        super().__init__()
        self.server, self.address, self.place = self, address, place
        self.forget()

    def forget(self) -> None:
        """Forget all connections."""
        self.addresses: list[Address] = []
        self.attempt: Any = None  # to connect
        self.openers: list[Any] = []  # who wait for it
        self.classic_requests = 0

    @property
    def load(self) -> int:
        """How many of our requests it has; an attempt to connect counts even if no request waits for it any more."""
        waiting = max(len(self.openers), self.attempt is not None)
        return sum([address.load for address in self.addresses], self.classic_requests + waiting)

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to connect failed, or is slow."""
        return self.failures > 0 or self.is_slow


class Servers:
    """Sessions to some servers, on any runtime."""

    # What the runtimes do differently. ``_start`` runs a coroutine beside what runs, and returns what has ``cancel``.
    # ``_wait`` waits for a waiter until ``_settle`` has given it a value, and raises that if it is an exception; or
    # ``NotInTime``, after so many seconds. ``_within`` runs a coroutine for so many seconds at most, and raises
    # ``TransformTimeout``, which carries the poem if there is one. ``_dial`` runs a core on a new connection,
    # preferably not to an address in use, and returns the link, which has its ``core``, ``host``, ``renews_at``,
    # ``closed`` (a waiter) and ``is_open``; ``opening``, which waits for what the core's opener gets; ``ask`` and
    # ``close``.
    _now: Callable[[], float]
    _start: Callable[[Coroutine[Any, Any, Any]], Any]
    _waiter: Callable[[], Any]
    _settle: Callable[[Any, Any], None]
    _wait: Callable[[Any, float | None], Awaitable[Any]]
    _within: Callable[..., Awaitable[Any]]
    _dial: Callable[[Server, Core, Collection[str]], Awaitable[Any]]

    _lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()  # of all that threads share
    _is_closed = _is_cut_off = False  # for new requests, and for all

    def __init__(
        self,
        servers: Sequence[Server],
        max_result_bytes: int,
        longest_delay_s: float,
        max_session_age_s: float,
        token: str | None,
    ) -> None:
        self._servers = servers
        self._max_result_bytes = max_result_bytes
        self._longest_delay_s, self._max_session_age_s = longest_delay_s, max_session_age_s
        self._token = token
        self._balancer = Balancer(lambda: self._now())

    def _nodes(self) -> Iterator[Address | Server]:
        """Yield where requests can be sent."""
        for server in self._servers:
            yield from self._nodes_of(server)

    def _nodes_of(self, server: Server) -> Sequence[Address | Server]:
        """Return the addresses with a session for new requests; the server itself, if it needs none."""
        now = self._now()
        usable: list[Address | Server] = []
        is_due = False
        for address in server.addresses:
            link = address.link
            if link.is_open:
                usable.append(address)
                is_due |= link.renews_at <= now
        if not usable:
            return [server] if now < server.classic_until else usable
        if is_due or (len(usable) < len(server.hosts) and server.spreads_at <= now):
            self._reach(server)  # no request needs to wait for it
        return usable

    async def _open(self, server: Server, patience_s: float | None) -> Any:
        """Return an address with a session; the server itself, if it speaks only the classic dialect.

        Raises ``NotInTime`` if there is no connection within ``patience_s``, or ``NotSent``.
        """
        with self._lock:
            if nodes := self._nodes_of(server):
                return nodes[0]
            opened = self._waiter()
            server.openers.append(opened)
            self._reach(server)
        try:
            return await self._wait(opened, patience_s)
        finally:
            with self._lock:
                if opened in server.openers:
                    server.openers.remove(opened)

    def _reach(self, server: Server) -> None:
        """Open a session, unless an attempt is in flight."""
        if server.attempt is None:
            server.attempt = True
            connecting = self._connect(server)
            try:
                attempt = self._start(connecting)
            except RuntimeError:  # the system has no more threads
                connecting.close()
                server.attempt = None
                raise
            if server.attempt is True:  # it is not over yet
                server.attempt = attempt

    async def _connect(self, server: Server) -> None:
        outcome: Any = NotSent(self._closed())
        try:
            outcome = await self._open_session(server)
        except SpeaksClassic:
            server.classic_until = self._now() + CLASSIC_FOR_S
            server.failures = 0
            outcome = server
        except NotInTime:
            self._note_failure(server)
            silent = f"{server.address} accepted the connection and did not answer within {OPENING_TIMEOUT_S:g} s"
            outcome = NotSent(ConnectionFailed(silent))
        except XformError as error:
            self._note_failure(server)
            outcome = NotSent(error)
        except Exception as error:  # a defect: those who wait are told
            outcome = error
        except GeneratorExit:  # the program ends: who waits may be ending too
            server.openers = []
            raise
        finally:
            with self._lock:
                server.attempt, server.is_slow = None, False
                openers, server.openers = server.openers, []
            for opener in openers:
                self._settle(opener, outcome)

    async def _open_session(self, server: Server) -> Address:
        if (rest_s := server.rests_until - self._now()) > 0:
            await self._sleep(rest_s)
        core = ClientSession(server.address, self._max_result_bytes, self._token)
        with self._lock:
            now = self._now()
            links = [address.link for address in server.addresses]
            in_use = {link.host for link in links if link.is_open and link.renews_at > now}
        link = await self._dial(server, core, in_use)
        await link.opening(OPENING_TIMEOUT_S)
        with self._lock:
            if self._is_cut_off:
                link.close()
            return self._adopt(server, link)

    def _adopt(self, server: Server, link: Any) -> Address:
        """Use a session that is open."""
        server.failures = 0
        now = self._now()
        link.renews_at = now + self._max_session_age_s * (1 - random.random() / 2)
        same = next((address for address in server.addresses if address.host == link.host), None)
        if same is not None and same.link.is_open and same.link.renews_at > now:
            link.close()  # the other addresses do not answer
            server.repetitions += 1
            server.spreads_at = now + backoff_s(server.repetitions, longest_s=self._longest_delay_s)
            return same
        server.repetitions = 0
        if same is not None:
            same.use(link)
        else:
            usable = [address.link for address in server.addresses if address.link.is_open]
            oldest = min(usable, key=lambda each: each.renews_at, default=link)
            if usable and (oldest.renews_at <= now or len(usable) >= max(1, len(server.hosts))):
                oldest.close()
            same = Address(server, link)
            server.addresses.append(same)
            self._balancer.nodes.append(same)
        for gone in [each for each in server.addresses if each.is_gone and each.host not in server.hosts]:
            server.addresses.remove(gone)
            self._balancer.nodes.remove(gone)
        return same

    def _note_failure(self, server: Server) -> None:
        server.failures += 1
        delay_s = backoff_s(server.failures, longest_s=self._longest_delay_s, jitter=random.random())
        server.rests_until = self._now() + delay_s

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(NotInTime):
            await self._wait(self._waiter(), seconds)

    def _forget_connections(self) -> None:
        """Forget them without a word to the servers: they belong to another loop, or to another process."""
        self._balancer.nodes.clear()
        for server in self._servers:
            server.forget()

    def _cut_off(self) -> list[Any]:
        """Close each connection, once what is in flight on it is done; return them."""
        with self._lock:
            self._is_cut_off = True
            for server in self._servers:
                if server.attempt is not None:
                    server.attempt.cancel()
            links = [link for server in self._servers for each in server.addresses for link in each.links]
            for link in links:
                link.close()
        return links

    def _closed(self) -> ConnectionFailed:
        return ConnectionFailed(f"this {type(self).__name__} is closed: make a new one")

    def _expired(self, timeout: float | None, poem: str | bytes | None) -> TransformTimeout:
        names = " or ".join(dict.fromkeys(server.address for server in self._servers))
        return TransformTimeout(f"no answer from {names} within {timeout or 0:g} s", poem=poem)


def watch(core: Core, connection: Any) -> None:
    """Let a core ask the system about its connection, a socket or a transport."""
    if isinstance(core, ClientSession):
        core.seems_gone = lambda: seems_gone(connection)
        core.bytes_in_system = lambda: bytes_in_system(connection)
