"""A session on Twisted: the connection of one ``ClientSession``, which decides what goes over it."""

import math
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import RequestCancelled, why_lost
from xformd.net.deadline import Deadline
from xformd.net.plain import bytes_in_system, seems_gone
from xformd.spec import Spec
from xformd.wire.client import ClientSession, Pending
from xformd.wire.client import SpeaksClassic as SpeaksClassic
from xformd.wire.session import Control, Hello


class Session(Protocol):
    """One connection.

    ``opened`` fires with this session once the server has said hello, and knows the token; it fails with
    ``SpeaksClassic`` or an ``XformError``. ``closed`` fires when the connection is lost.
    """

    def __init__(self, address: str, clock: IReactorTime, max_result_bytes: int, token: str | None = None) -> None:
        self.opened: Deferred[Session] = Deferred(lambda _: self.abort())
        self.closed: Deferred[None] = Deferred()
        self.renews_at = math.inf  # the clock's time at which another one should take its place
        self._address = address
        self._clock = clock
        self._core = ClientSession(
            address,
            max_result_bytes,
            token,
            opener=self.opened,
            seems_gone=lambda: seems_gone(self.transport),
            bytes_in_system=lambda: bytes_in_system(self.transport),
        )
        self._silence = Deadline(clock, self._check)
        self._check_at = math.inf

    @property
    def hello(self) -> Hello | None:
        """The server's name, version and limits."""
        return self._core.hello

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        return self._core.is_open(self._clock.seconds())

    @property
    def load(self) -> int:
        """How many requests have no answer yet; a cancelled one counts until the server confirms it."""
        return self._core.load

    def send_request(
        self,
        spec: Spec,
        poem: bytes,
        ends_at: float | None = None,
        client: str | None = None,
        traceparent: str | None = None,
        on_version: Callable[[str | None], None] | None = None,
    ) -> Deferred[bytes]:
        """Send a poem, for a ``client`` of this program; its caller stops waiting at ``ends_at``, by the clock.

        The Deferred fails with ``NotSent`` if the server is known not to have run the request. Cancelling it cancels
        the request at the server too.
        """
        answer: Deferred[bytes] = Deferred(lambda _: self._cancel(pending))
        pending = self._core.request(
            answer, self._clock.seconds(), spec, poem, ends_at, client, traceparent, on_version
        )
        self._follow()
        return answer

    def control(self, control: Control) -> Deferred[bytes]:
        """Send a control message, and return a Deferred of the answer."""
        answer: Deferred[bytes] = Deferred(lambda _: self._cancel(pending))
        pending = self._core.control(answer, self._clock.seconds(), control)
        self._follow()
        return answer

    def close(self) -> Deferred[None]:
        """Accept no new requests; fires when those in flight are answered and the connection is closed."""
        self._core.close()
        self._follow()
        return self.closed

    def abort(self) -> None:
        """Close now, and ignore what still arrives."""
        self._core.abort()
        self._follow()

    # Called by Twisted.

    def connectionMade(self) -> None:
        """Open the session."""
        assert self.transport is not None
        if ITCPTransport.providedBy(self.transport):
            # Otherwise a request would wait until the server had acknowledged the one before.
            self.transport.setTcpNoDelay(True)
        self._core.open()
        self._follow()

    def dataReceived(self, data: bytes) -> None:
        """Deliver each answer to its request."""
        self._core.receive(data, self._clock.seconds())
        self._follow()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail the requests in flight; those not written yet may go to another server."""
        self._silence.close()
        self._core.lose(why_lost(reason), is_clean=bool(reason.check(ConnectionDone)))
        self._deliver()
        if not self.closed.called:
            self.closed.callback(None)

    def _check(self) -> None:
        self._check_at = math.inf
        self._core.check(self._clock.seconds())
        self._follow()

    def _cancel(self, pending: Pending) -> None:
        self._core.cancel(pending, self._clock.seconds())
        self._follow()
        pending.waiter.errback(RequestCancelled(f"the request to {self._address} was cancelled"))

    def _follow(self) -> None:
        """Do what the core wants done after each call."""
        core, transport = self._core, self.transport
        if transport is not None and (data := core.data_to_send()):
            transport.write(data)
        if core.check_at != self._check_at:
            self._check_at = core.check_at
            self._silence.set(max(0.0, core.check_at - self._clock.seconds()))
        self._deliver()
        if transport is None:
            return
        if core.is_aborted:
            transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it
        elif core.is_finished:
            transport.loseConnection()

    def _deliver(self) -> None:
        for waiter, value in self._core.outcomes():
            if isinstance(value, Exception):
                if not waiter.called:
                    waiter.errback(value)
            elif waiter is not self.opened:
                waiter.callback(value)
            elif not self.opened.called:
                self.opened.callback(self)
