"""A connection to a server on Twisted: a core, ``ClientSession`` or ``ClassicExchange``, decides what goes over it."""

import math
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import why_lost
from xformd.client.servers import Core, watch
from xformd.net.deadline import Deadline


class Session(Protocol):
    """One connection.

    ``opened`` fires once the server has said hello, and knows the token, or with the result of a classic exchange; it
    fails with ``SpeaksClassic`` or an ``XformError``. ``closed`` fires when the connection is lost.
    """

    renews_at = math.inf  # the clock's time at which another one should take its place
    host = ""
    transport: Any

    def __init__(self, core: Core, clock: IReactorTime) -> None:
        self.core: Any = core
        self.opened: Deferred[Any] = Deferred()
        core.opener = self.opened
        self.closed: Deferred[None] = Deferred()
        self._clock = clock
        self._silence = Deadline(clock, self._check)
        self._check_at = math.inf

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        is_open: bool = self.core.is_open(self._clock.seconds())
        return is_open

    async def ask(self, request: Any) -> bytes:
        """Send a request, and return its answer; raise ``NotSent`` if the server is known not to have run it.

        Cancelling this cancels the request at the server too.
        """
        answer: Deferred[bytes] = Deferred(lambda _: self._cancel(pending))
        pending = request.send(self.core, answer, self._clock.seconds())
        self._follow()
        return await answer

    def close(self) -> None:
        """Accept no new requests; ``closed`` fires when those in flight are answered."""
        self.core.close()
        self._follow()

    def abort(self) -> None:
        """Close now, and ignore what still arrives."""
        self.core.abort()
        self._follow()

    # Called by Twisted.

    def connectionMade(self) -> None:
        """Begin."""
        transport = self.transport
        if ITCPTransport.providedBy(transport):
            # Otherwise a request would wait until the server had acknowledged the one before.
            transport.setTcpNoDelay(True)
        self.host = str(getattr(transport.getPeer(), "host", ""))
        watch(self.core, transport)
        self.core.open()
        self._follow()

    def dataReceived(self, data: bytes) -> None:
        """Deliver each answer to its request."""
        self.core.receive(data, self._clock.seconds())
        self._follow()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail the requests in flight; those not written yet may go to another server."""
        self._silence.close()
        self.transport, self._check_at = None, math.inf
        self.core.lose(why_lost(reason), is_clean=bool(reason.check(ConnectionDone)))
        self._follow()
        if not self.closed.called:
            self.closed.callback(None)

    def _check(self) -> None:
        self._check_at = math.inf
        self.core.check(self._clock.seconds())
        self._follow()

    def _cancel(self, pending: Any) -> None:
        self.core.cancel(pending, self._clock.seconds())
        self._follow()

    def _follow(self) -> None:
        """Do what the core wants done after each call."""
        core, transport = self.core, self.transport
        if transport is not None and (data := core.data_to_send()):
            transport.write(data)
        if core.check_at != self._check_at:
            self._check_at = core.check_at
            self._silence.set(max(0.0, core.check_at - self._clock.seconds()))
        for waiter, value in core.outcomes():
            if not waiter.called:
                waiter.callback(Failure(value) if isinstance(value, Exception) else value)
        if self.transport is None:
            return
        if core.is_aborted:
            self.transport.abortConnection()
        elif core.is_finished:
            self.transport.loseConnection()
