"""HAProxy's agent-check: a port that says in one line whether a server should get requests, how many, and then closes.

Invariant: a server that should get none says so before it fails anybody, and never that what it runs should be cut off.
"""

from collections.abc import Callable
from typing import Any

from xformd.limits import Limits
from xformd.net.factory import DrainableProtocol, DrainingFactory


def format_report(*, workers: int, busy: int, waiting: int, max_connections: int) -> bytes:
    """Return the line of a server that can take requests, of whose ``workers`` some are busy while more jobs wait.

    Its weight is 100 % without work, about half of that with every worker busy, and less the longer the queue is.
    Servers with the same load have the same, so that what is a second old does not send everything to one of them.
    """
    weight = max(1, 100 * workers // (workers + busy + waiting)) if workers else 100
    return b"ready up %d%% maxconn:%d\n" % (weight, max_connections)


DRAIN = b"drain\n"
"""What a server says that should get no new requests; not ``down``, which may cut off what it runs."""


class _Report(DrainableProtocol):
    """One connection of HAProxy."""

    def connectionMade(self) -> None:
        """Send the report, and close."""
        super().connectionMade()
        self.transport.write(self.factory.report())
        self.transport.loseConnection()


class AgentFactory(DrainingFactory[_Report]):
    """Answers each connection with what ``report`` returns then."""

    protocol = _Report

    def __init__(self, report: Callable[[], bytes], limits: Limits, reactor: Any) -> None:
        super().__init__(limits, reactor)
        self.report = report
