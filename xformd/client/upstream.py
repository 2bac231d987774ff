"""One server, as a client sees it: the sessions to its addresses, how to open one, when to try again.

Invariant: at most one attempt to connect is in flight, and after a failure the next one waits longer. A host name is
looked up for each attempt, and gets a session for each of its addresses.
"""

import math
import random
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs
from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from xformd.client import classic
from xformd.client.balancer import ANYTHING, Balancer, Node, Offers, offers_of, workers_of
from xformd.client.errors import ConnectionFailed, NotSent, connection_failed
from xformd.client.session import Session, SpeaksClassic
from xformd.errors import RequestRefused, XformError
from xformd.net.endpoints import ClientEndpoint, connect
from xformd.net.plain import backoff_s
from xformd.spec import Spec
from xformd.wire.session import Control, decode_listing

LONGEST_DELAY_S = 2.5  # a server that is back is used within 5 s, though an attempt to connect hangs for 2 s more
MAX_SESSION_AGE_S = 300.0
OPENING_TIMEOUT_S = 5.0
LIST_TIMEOUT_S, LIST_GAP_S = 5.0, 1.0
PATIENCE_S = 0.5  # how long a request waits for a connection to be made while there are other servers to try
CLASSIC_FOR_S = 60.0  # how long a server is believed to speak only the classic dialect: it may be upgraded meanwhile


@attrs.define(eq=False, slots=False)
class Address(Node):
    """One address of a server, and the session to it."""

    upstream: "Upstream"
    host: str
    session: Session

    def __attrs_post_init__(self) -> None:
        self._ending: list[Session] = []
        self._asked_at = -math.inf

    @property
    def load(self) -> int:
        """See ``Node``. A session that is ending still has its requests."""
        load = self.session.load
        return load + sum(session.load for session in self._ending) if self._ending else load

    def use(self, session: Session) -> None:
        """Send requests on a new session from now on."""
        if not self.session.closed.called:
            ending = self.session
            self._ending.append(ending)
            ending.closed.addCallback(lambda _: self._ending.remove(ending))
            ending.close()
        self.session, self._asked_at = session, -math.inf

    def send_request(self, spec: Spec, *more: Any) -> Deferred[bytes]:
        """Send a poem; see ``Session.send_request``."""
        return self.session.send_request(spec, *more)

    async def send_control(self, control: Control) -> tuple[str, bytes]:
        """Return the server's name and version, and its answer to a control message."""
        assert self.session.hello is not None
        return self.session.hello.server, await self.session.control(control)

    def ask_what_it_offers(self, clock: IReactorTime, *, anew: bool = False) -> None:
        """Ask for its list of transforms, once on each session, or ``anew`` if the last answer may be out of date."""
        if self.upstream.told is not None:
            self.offers, self.workers = self.upstream.told, self.upstream.workers
            return
        now = clock.seconds()
        if not self.session.is_open or self._asked_at + (LIST_GAP_S if anew else math.inf) > now:
            return
        self._asked_at, session = now, self.session

        def learn(answer: bytes) -> None:
            listing = decode_listing(answer)
            self.offers, self.workers = offers_of(listing), workers_of(listing)

        def give_up(_: Failure) -> None:
            if session.is_open:
                self.offers = ANYTHING

        session.control("list").addTimeout(LIST_TIMEOUT_S, clock).addCallback(learn).addErrback(give_up)


@attrs.define(eq=False, slots=False)
class Upstream(Node):
    """One server. It is not tried again before ``rests_until``, by the clock, while it does not answer.

    It is a node itself while there is no session to any of its addresses.
    """

    _endpoint: ClientEndpoint
    address: str
    _clock: IReactorTime
    _balancer: Balancer
    _max_result_bytes: int
    _longest_delay_s: float
    _max_session_age_s: float
    _token: str | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        self.upstream = self
        self._sessions: list[Session] = []  # also those that are ending
        self._addresses: list[Address] = []
        self._openers: list[Deferred[Address | Upstream]] = []
        self._connecting: Deferred[Any] | None = None
        self._classic_requests = 0
        self._classic_until = 0.0
        self._failures = self._repetitions = 0
        self._spreads_at = 0.0  # an address without a session is tried then
        self.told: Offers | None = None  # what it offers, from somebody else who keeps asking
        self.rests_until = 0.0
        self.is_slow = False  # it takes longer to connect to it than a request has waited

    @property
    def load(self) -> int:
        """How many of our requests it has; an attempt to connect counts even if no request waits for it any more."""
        waiting = max(len(self._openers), self._connecting is not None)
        return sum(session.load for session in self._sessions) + self._classic_requests + waiting

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to connect failed, or is slow."""
        return self._failures > 0 or self.is_slow

    def nodes(self) -> "list[Address | Upstream]":
        """Return the addresses with a session for new requests; itself, if it needs none."""
        now = self._clock.seconds()
        usable: list[Address | Upstream] = []
        is_due = False
        for address in self._addresses:
            session = address.session
            if session.is_open:
                usable.append(address)
                is_due |= session.renews_at <= now
        if not usable:
            return [self] if now < self._classic_until else usable
        if is_due or (len(usable) < len(self._endpoint.addresses) and self._spreads_at <= now):
            self.reach()  # no request needs to wait for it
        return usable

    def tell(self, listing: Mapping[str, Any] | None) -> None:
        """Take what it lists, so that it need not be asked; only if that is all, and not one of several addresses."""
        has_one_address = len(self._endpoint.addresses) < 2
        self.told = self.offers = offers_of(listing) if listing is not None and has_one_address else None
        self.workers = workers_of(listing or {})

    def reach(self) -> None:
        """Open a session, unless an attempt is in flight."""
        if self._connecting is None:
            self._connecting = Deferred.fromCoroutine(self._connect())
            self._connecting.addBoth(self._tell_openers)

    async def send_request(self, spec: Spec, poem: bytes, *_: Any) -> bytes:
        """Send a poem in the classic dialect; raise ``NotSent`` if the server is known not to have run it."""
        self._classic_requests += 1
        try:
            return await classic.send_request(
                self._endpoint, self.address, spec, poem, max_result_bytes=self._max_result_bytes
            )
        except ConnectionFailed as error:
            self._classic_until = 0.0  # the server that comes back may be a newer one
            self._note_failure()
            raise NotSent(error) from error
        finally:
            self._classic_requests -= 1

    async def send_control(self, _: Control) -> NoReturn:
        """Raise ``RequestRefused``."""
        raise RequestRefused(f"{self.address} speaks only the classic dialect: it transforms poems and nothing else")

    def ask_what_it_offers(self, *_: Any, **__: Any) -> None:
        """Expect anything: a classic server does not say."""
        self.offers = ANYTHING

    async def close(self) -> None:
        """Wait for what is in flight, and close."""
        if self._connecting is not None and not self._openers:
            self._connecting.cancel()
        for session in [*self._sessions]:
            await session.close()

    def open(self, patience_s: float | None) -> "Deferred[Address | Upstream]":
        """Return an address with a session; itself, if the server speaks only the classic dialect.

        The Deferred fails with ``TimeoutError`` if there is no connection within ``patience_s``, or with ``NotSent``.
        """
        opened: Deferred[Address | Upstream] = Deferred(self._forget_opener)
        if self._clock.seconds() < self._classic_until:
            opened.callback(self)
        else:
            self._openers.append(opened)
            self.reach()
            if patience_s is not None:
                opened.addTimeout(patience_s, self._clock)
        return opened

    def _forget_opener(self, opened: "Deferred[Address | Upstream]") -> None:
        if opened in self._openers:
            self._openers.remove(opened)

    async def _connect(self) -> "Address | Upstream":
        session = Session(self.address, self._clock, self._max_result_bytes, self._token)
        usable = [each for each in self._sessions if each.is_open]
        try:
            if (rest_s := self.rests_until - self._clock.seconds()) > 0:
                await deferLater(self._clock, rest_s)
            self._endpoint.connections = [each for each in usable if each.renews_at > self._clock.seconds()]
            await connect(self._endpoint, session)
        except Exception:
            self._note_failure()
            raise NotSent(connection_failed(self.address, Failure())) from None
        try:
            await session.opened.addTimeout(OPENING_TIMEOUT_S, self._clock)
        except SpeaksClassic:
            self._classic_until = self._clock.seconds() + CLASSIC_FOR_S
            self._failures = 0
            return self
        except TimeoutError as error:
            self._note_failure()
            silent = f"{self.address} accepted the connection and did not answer within {OPENING_TIMEOUT_S:g} s"
            raise NotSent(ConnectionFailed(silent)) from error
        except XformError as error:
            self._note_failure()
            raise NotSent(error) from error
        self._failures = 0
        return self._adopt(session)

    def _adopt(self, session: Session) -> Address:
        """Use a session that is open."""
        assert session.transport is not None
        now = self._clock.seconds()
        session.renews_at = now + self._max_session_age_s * (1 - random.random() / 2)
        host = str(getattr(session.transport.getPeer(), "host", ""))
        same = next((address for address in self._addresses if address.host == host), None)
        if same is not None and same.session.is_open and same.session.renews_at > now:
            session.close()  # the other addresses do not answer
            self._repetitions += 1
            self._spreads_at = now + backoff_s(self._repetitions, longest_s=self._longest_delay_s)
            return same
        self._repetitions = 0
        usable = [each for each in self._sessions if each.is_open]
        self._sessions.append(session)
        if same is None:
            same = Address(self, host, session)
            self._addresses.append(same)
            self._balancer.nodes.append(same)
            oldest = min(usable, key=lambda each: each.renews_at, default=session)
            if oldest.renews_at <= now or len(usable) >= max(1, len(self._endpoint.addresses)):
                oldest.close()
        else:
            same.use(session)
        session.closed.addCallback(lambda _: self._sessions.remove(session))
        known = [getattr(each, "host", "") for each in self._endpoint.addresses]
        for gone in [each for each in self._addresses if each.session.closed.called and each.host not in known]:
            self._addresses.remove(gone)
            self._balancer.nodes.remove(gone)
        return same

    def _note_failure(self) -> None:
        self._failures += 1
        delay_s = backoff_s(self._failures, longest_s=self._longest_delay_s, jitter=random.random())
        self.rests_until = self._clock.seconds() + delay_s

    def _tell_openers(self, outcome: "Address | Upstream | Failure") -> None:
        self._connecting, self.is_slow = None, False
        openers, self._openers = self._openers, []
        for opener in openers:
            opener.callback(outcome)
