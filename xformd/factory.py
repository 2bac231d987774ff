"""Makes the connections of a server, counts them, and ends them in good order when it stops."""

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from xformd.counting import Accounts
from xformd.dialects.interfaces import Connection, ConnectionHandler, Service
from xformd.limits import Limits
from xformd.net.disconnects import DisconnectWatcher
from xformd.net.factory import DrainingFactory
from xformd.protocol import LAST_WORD_S, TransformProtocol
from xformd.telemetry.metrics import ConnectionStats


class TransformFactory(DrainingFactory[TransformProtocol]):
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

    flush_timeout_s = LAST_WORD_S

    def __init__(
        self,
        service: Service,
        limits: Limits,
        clock: IReactorTime,
        accounts: Accounts | None = None,
        make_handler: Callable[[Connection], ConnectionHandler] | None = None,
    ) -> None:
        super().__init__(limits, clock)
        self.make_handler = make_handler
        self.service = service
        self.accounts = accounts
        self.cut_off = 0
        self.disconnects = DisconnectWatcher(clock)

    def make_protocol(self, peer: str | None) -> TransformProtocol:
        """Make the protocol of a connection that has been accepted."""
        return TransformProtocol(self, peer)

    @property
    def connection_stats(self) -> ConnectionStats:
        """What has become of its connections."""
        return ConnectionStats(len(self.connections), self.refusals.counts, self.cut_off)

    def cancel_requests(self) -> None:
        """Cancel what is in flight; each request is answered with ``ShuttingDown``."""
        self.service.stop()
