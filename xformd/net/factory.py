"""DrainingFactory: counts a server's connections, refuses those over the limits, and closes all of them on shutdown.

Invariant: once ``drain`` has been called no connection is accepted, and soon after the grace period none is left. It is
called before the reactor shuts down, whatever listens with the factory and whoever stops the reactor.
"""

import itertools
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IHalfCloseableDescriptor, IReactorCore, ISSLTransport
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure

from xformd.limits import Limits
from xformd.net.connections import EVICTION_CANDIDATES, ConnectionLimitReached, Connections, RefusalLog
from xformd.net.deadline import cancel


class DrainableProtocol(Protocol):
    """A connection that a ``DrainingFactory`` can close; ``peer`` is the client's IP address, if it is known."""

    transport: Any

    def __init__(self, factory: "DrainingFactory[Any]", peer: str | None = None) -> None:
        self.factory: Any = factory
        self.peer = peer

    def connectionMade(self) -> None:
        """Have the factory count it."""
        self.factory.connections.add(self, self.peer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - Twisted's signature
        """Have the factory forget it."""
        self.factory.connection_ended(self)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, or for the rest of one."""
        return False

    def can_half_close(self) -> bool:
        """Return whether this side can be ended alone."""
        # Twisted's TLS claims to, but ends the TCP stream under the TLS records that are still to come.
        return IHalfCloseableDescriptor.providedBy(self.transport) and not ISSLTransport.providedBy(self.transport)

    def stop(self) -> None:
        """Finish what has been accepted, then close. A connection that does so anyway has nothing to do."""

    def abort(self) -> None:
        """Close now, whatever is unsent."""
        self.transport.abortConnection()


Connection = TypeVar("Connection", bound=DrainableProtocol)


class DrainingFactory(ServerFactory, Generic[Connection]):
    """Accepts connections within the limits until it is drained.

    A subclass names the ``protocol``. ``reactor`` may be a clock in its place; it is the global one if None.
    """

    noisy = False
    log = Logger()
    protocol: Any  # the class of its connections, made of the factory and the peer's IP address, None if it has none
    flush_timeout_s = 0.0  # that a connection has to send what is left, after the grace period
    drains_itself = True  # when the reactor stops, because nobody else sees to that
    will_stop = False  # whether it tells that it will stop soon, while it still accepts everything

    def __init__(self, limits: Limits, reactor: Any = None) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.limits = limits
        self.clock = reactor
        self.connections: Connections[Connection] = Connections(limits)
        self.refusals = RefusalLog(reactor)
        self._drained: Deferred[None] | None = None
        self._trigger: Any = None

    def set_limits(self, limits: Limits) -> None:
        """Hold to these limits from now on; connections that are open keep what they began with."""
        self.limits = limits
        self.connections.set_limits(limits)

    def make_room(self, refusal: ConnectionLimitReached, peer: str | None) -> bool:
        """Close a connection of the share with the most, an idle one if possible; return whether there is room now."""
        if refusal.kind != "total" or not (among := self.connections.to_evict(peer)):
            return False
        oldest = [*itertools.islice(among, EVICTION_CANDIDATES)]
        chosen = next((each for each in oldest if each.is_idle), oldest[0])
        reason = f"{chosen.peer} has {len(among)}, and others need room: max_connections, or ulimit -n, is reached"
        self.refusals.refused("share", reason, which="long-standing")
        self.connections.discard(chosen)
        chosen.abort()
        return True

    def refuse(self) -> Protocol | None:
        """Make the protocol of a connection that is refused; None closes it."""
        return None

    def cancel_requests(self) -> None:
        """Cancel what is in flight after the grace period; its connections then have ``flush_timeout_s``."""

    def startFactory(self) -> None:
        """See to it that the reactor drains it: what is open when the reactor ends is closed in order, half-sent."""
        if self.drains_itself and IReactorCore.providedBy(self.clock):
            self._trigger = self.clock.addSystemEventTrigger("before", "shutdown", self.drain)

    def stopFactory(self) -> None:
        """Forget the reactor once no connection is left either."""
        self._check_drained()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Accept a connection, unless there are too many or the server is stopping."""
        if self.is_stopping:
            return self.refuse()
        peer: str | None = getattr(addr, "host", None)
        if (refusal := self.connections.limit_reached(peer)) and not self.make_room(refusal, peer):
            self.refusals.refused(refusal.kind, refusal.reason)
            return self.refuse()
        accepted: Connection = self.protocol(self, peer)
        return accepted

    def identify(self, connection: Connection, peer: str | None) -> bool:
        """Count a connection under its real peer and return True, or abort it if that peer has too many."""
        self.connections.discard(connection)
        refusal = self.connections.limit_reached(peer)
        connection.peer = None if refusal else peer
        self.connections.add(connection, connection.peer)
        if refusal:
            self.refusals.refused(refusal.kind, refusal.reason)
            connection.abort()
        return not refusal

    @property
    def is_stopping(self) -> bool:
        """Whether it accepts nothing new."""
        return self._drained is not None

    def connection_ended(self, connection: Connection) -> None:
        """Note that a connection is lost."""
        self.connections.discard(connection)
        self._check_drained()

    def drain(self) -> Deferred[None]:
        """Accept nothing new, finish what has been accepted, and close every connection; fires when the last is gone.

        What is not finished after ``shutdown_grace_s`` is given up.
        """
        if self._drained is None:
            self._drained = Deferred[None]()
            for connection in self.connections:
                connection.stop()
            if self.connections:
                self._cut: IDelayedCall = self.clock.callLater(self.limits.shutdown_grace_s, self._end_grace)
                self._drained.addCallback(lambda _: cancel(self._cut))
            self._check_drained()
        done = Deferred[None]()
        self._drained.addCallback(done.callback)
        return done

    def _check_drained(self) -> None:
        if self.connections:
            return
        if self._drained is not None:
            if not self._drained.called:
                self._drained.callback(None)
        elif self._trigger is not None and not self.numPorts:
            self.clock.removeSystemEventTrigger(self._trigger)
            self._trigger = None

    def _end_grace(self) -> None:
        message = "connections still open after the grace period of {grace_s:g} s, closed now: {count}"
        self.log.warn(message, count=len(self.connections), grace_s=self.limits.shutdown_grace_s)
        self._cut = self.clock.callLater(self.flush_timeout_s, lambda: [each.abort() for each in self.connections])
        self.cancel_requests()  # may close the last connection, which cancels that timer


class RefusingFactory(WrappingFactory[Any]):
    """A factory around a server's own that passes on its refusals: Twisted's wraps None too, and fails."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Wrap the protocol of a connection; None, which closes it, stays None."""
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else self.protocol(self, wrapped)
