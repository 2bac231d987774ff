"""One server, as a client sees it: its session, how to open one, when to try again; and the choice among several.

Invariant: at most one attempt to connect is in flight, and after a failure the next one waits longer. A host name is
looked up for each attempt, and gets a session for each of its addresses.
"""

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError  # noqa: A004
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from xformd.client import classic
from xformd.client.errors import ConnectionFailed, NotSent, connection_failed
from xformd.client.session import Session, SpeaksClassic
from xformd.errors import RequestRefused, XformError
from xformd.net.deadline import backoff_s
from xformd.net.endpoints import ClientEndpoint, connect
from xformd.spec import Spec
from xformd.wire.session import Control

LONGEST_DELAY_S = 30.0
MAX_SESSION_AGE_S = 300.0
OPENING_TIMEOUT_S = 5.0
PATIENCE_S = 0.5
"""How long a request waits for a connection to be made while there are other servers to try."""

CLASSIC_FOR_S = 60.0
"""How long a server is believed to speak only the classic dialect: it may be upgraded meanwhile."""


class Upstream:
    """One server. It is not tried again before ``rests_until``, by the clock, while it does not answer."""

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        address: str,
        clock: IReactorTime,
        max_result_bytes: int,
        longest_delay_s: float,
        max_session_age_s: float,
    ) -> None:
        self.address = address
        self._endpoint = endpoint if isinstance(endpoint, ClientEndpoint) else ClientEndpoint(clock, endpoint)
        self._clock = clock
        self._max_result_bytes = max_result_bytes
        self._longest_delay_s = longest_delay_s
        self._max_session_age_s = max_session_age_s
        self._sessions: list[Session] = []  # also those that are ending; the last one was used last
        self._openers: list[Deferred[Session | None]] = []
        self._connecting: Deferred[Any] | None = None
        self._classic_requests = 0
        self._classic_until = 0.0
        self._failures = 0
        self.rests_until = 0.0
        self.is_slow = False  # it takes longer to connect to it than a request has waited

    @property
    def load(self) -> int:
        """How many of our requests it has; an attempt to connect counts even if no request waits for it any more."""
        waiting = max(len(self._openers), self._connecting is not None)
        return sum(session.load for session in self._sessions) + self._classic_requests + waiting

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to connect failed, or is slow, and there is no other session."""
        return (self._failures > 0 or self.is_slow) and not self._usable

    def reach(self) -> None:
        """Open a session, unless an attempt is in flight."""
        if self._connecting is None:
            self._connecting = Deferred.fromCoroutine(self._connect())
            self._connecting.addBoth(self._tell_openers)

    async def send_request(
        self, patience_s: float | None, spec: Spec, poem: bytes, ends_at: float | None, client: str | None = None
    ) -> bytes:
        """Send a poem in the dialect that the server speaks.

        Raises:
            TimeoutError: there is no connection within ``patience_s``.
            NotSent: the server is known not to have run it.
            XformError: anything else went wrong.
        """
        session = await self._open(patience_s)
        if session is not None:
            return await session.send_request(spec, poem, ends_at, client)
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

    async def send_control(self, patience_s: float | None, control: Control) -> tuple[str, bytes]:
        """Return the server's name and version, and its answer to a control message; raise as ``send_request``."""
        session = await self._open(patience_s)
        if session is None or session.hello is None:
            only = f"{self.address} speaks only the classic dialect: it transforms poems and nothing else"
            raise RequestRefused(only)
        return session.hello.server, await session.control(control)

    async def close(self) -> None:
        """Wait for what is in flight, and close."""
        if self._connecting is not None and not self._openers:
            self._connecting.cancel()
        for session in [*self._sessions]:
            await session.close()

    def _open(self, patience_s: float | None) -> "Deferred[Session | None]":
        opened: Deferred[Session | None] = Deferred(self._forget_opener)
        if usable := self._usable:
            least = usable[0]
            if len(usable) > 1:
                least = min(usable, key=lambda each: each.load)
                self._sessions.remove(least)
                self._sessions.append(least)
            if len(usable) < len(self._endpoint.addresses) or least.renews_at <= self._clock.seconds():
                self.reach()  # the request need not wait for it
            opened.callback(least)
        elif self._clock.seconds() < self._classic_until:
            opened.callback(None)
        else:
            self._openers.append(opened)
            self.reach()
            if patience_s is not None:
                opened.addTimeout(patience_s, self._clock)
        return opened

    @property
    def _usable(self) -> list[Session]:
        return [session for session in self._sessions if session.is_open]

    def _forget_opener(self, opened: "Deferred[Session | None]") -> None:
        if opened in self._openers:
            self._openers.remove(opened)

    async def _connect(self) -> Session | None:
        session = Session(self.address, self._clock, self._max_result_bytes)
        try:
            if (rest_s := self.rests_until - self._clock.seconds()) > 0:
                await deferLater(self._clock, rest_s)
            self._endpoint.connections = [each for each in self._usable if each.renews_at > self._clock.seconds()]
            await connect(self._endpoint, session)
        except Exception:
            self._note_failure()
            raise NotSent(connection_failed(self.address, Failure())) from None
        try:
            await session.opened.addTimeout(OPENING_TIMEOUT_S, self._clock)
        except SpeaksClassic:
            self._classic_until = self._clock.seconds() + CLASSIC_FOR_S
            self._failures = 0
            return None
        except TimeoutError as error:
            self._note_failure()
            silent = f"{self.address} accepted the connection and did not answer within {OPENING_TIMEOUT_S:g} s"
            raise NotSent(ConnectionFailed(silent)) from error
        except XformError as error:
            self._note_failure()
            raise NotSent(error) from error
        self._failures = 0
        now = self._clock.seconds()
        session.renews_at = now + self._max_session_age_s * (1 - random.random() / 2)
        oldest = min(self._usable, key=lambda each: each.renews_at, default=session)
        if oldest.renews_at <= now or len(self._usable) >= max(1, len(self._endpoint.addresses)):
            oldest.close()
        self._sessions.append(session)
        session.closed.addCallback(lambda _: self._sessions.remove(session))
        return session

    def _note_failure(self) -> None:
        self._failures += 1
        delay_s = backoff_s(self._failures, longest_s=self._longest_delay_s, jitter=random.random())
        self.rests_until = self._clock.seconds() + delay_s

    def _tell_openers(self, outcome: Session | Failure | None) -> None:
        self._connecting, self.is_slow = None, False
        openers, self._openers = self._openers, []
        for opener in openers:
            opener.callback(outcome)


def choose(upstreams: Sequence[Upstream], tried: Sequence[Upstream], now: float) -> Upstream:
    """Return the server for a request: of those that answer, preferably untried, the one with the fewest of ours."""
    untried = [upstream for upstream in upstreams if upstream not in tried] or upstreams
    ready = [upstream for upstream in untried if upstream.rests_until <= now]
    if not ready:
        return min(untried, key=lambda upstream: upstream.rests_until)
    answering = [upstream for upstream in ready if not upstream.is_failing]
    for upstream in ready if answering else ():
        if upstream.is_failing:
            upstream.reach()  # without making a request wait: it may accept and never answer
    return min(answering or ready, key=lambda upstream: upstream.load)
