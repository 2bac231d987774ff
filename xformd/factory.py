"""Makes the connections of a server, counts them, and ends them in good order when it stops."""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from xformd.counting import Accounts
from xformd.dialects.interfaces import Connection, ConnectionHandler, Service
from xformd.limits import Limits
from xformd.net.connections import ConnectionLimitReached, Connections
from xformd.net.disconnects import DisconnectWatcher
from xformd.protocol import LAST_WORD_S, TransformProtocol
from xformd.telemetry.metrics import ConnectionStats
from xformd.telemetry.rate_limited import RateLimitedLog


class TransformFactory(ServerFactory):
    """Makes the connections of one server, counts them, and ends them.

    Args:
        service: what answers the requests.
        limits: what a connection may cost.
        clock: a reactor, or a clock in its place.
        accounts: the same service, counted for each form; None where nobody counts.
        make_handler: says how a connection is spoken on; without it that is for its first netstring to say.

    Attributes:
        cut_off: how many connections it has ended because they took too long.
    """

    noisy = False
    log = Logger()

    def __init__(
        self,
        service: Service,
        limits: Limits,
        clock: IReactorTime,
        accounts: Accounts | None = None,
        make_handler: Callable[[Connection], ConnectionHandler] | None = None,
    ) -> None:
        self.make_handler = make_handler
        self.service = service
        self.accounts = accounts
        self.cut_off = 0
        self.limits = limits
        self.clock = clock
        self.connections: Connections[TransformProtocol] = Connections(limits)
        self.refusals = RateLimitedLog(clock)
        self.disconnects = DisconnectWatcher(clock)
        self._drained: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> TransformProtocol | None:  # type: ignore[override]
        """Take a connection, unless there are too many or the server is stopping."""
        if self._drained is not None:
            return None
        peer: str | None = getattr(addr, "host", None)
        if (refusal := self.connections.refusal(peer)) and not self.make_room(refusal):
            self.refusals.refused(refusal.kind, refusal.reason)
            return None
        return TransformProtocol(self, peer)

    def make_room(self, refusal: ConnectionLimitReached) -> bool:
        """End a connection for the sake of a new one.

        Args:
            refusal: why there is no room.

        Returns:
            Whether there is room now; here there never is, for every connection may be of use.
        """
        del refusal
        return False

    @property
    def connection_stats(self) -> ConnectionStats:
        """What has become of its connections."""
        return ConnectionStats(len(self.connections), self.refusals.counts, self.cut_off)

    @property
    def is_stopping(self) -> bool:
        """Whether it takes nothing new."""
        return self._drained is not None

    def connection_ended(self, connection: TransformProtocol) -> None:
        """Note that a connection is gone."""
        self.connections.discard(connection)
        if self._drained is not None and not self.connections and not self._drained.called:
            self._drained.callback(None)

    def drain(self) -> Deferred[None]:
        """Answer what has been accepted, take nothing new, and close.

        Returns:
            Fires when the last connection is gone. What is not answered after ``shutdown_grace_s`` is given up.
        """
        drained: Deferred[None] = Deferred()
        self._drained = drained
        for connection in self.connections:
            connection.stop()
        if self.connections:
            self._cut = self.clock.callLater(self.limits.shutdown_grace_s, self._give_up)
            drained.addCallback(lambda _: self._cut.cancel() if self._cut.active() else None)
        elif not drained.called:  # the last one may have gone while it was told
            drained.callback(None)
        return drained

    def _give_up(self) -> None:
        self.log.warn("gave up {count} connections after the grace period", count=len(self.connections))
        self._cut = self.clock.callLater(LAST_WORD_S, self._abort_all)
        self.service.stop()  # which answers what is in flight

    def _abort_all(self) -> None:
        for connection in self.connections:
            connection.abort()
