"""What HAProxy's agent check is told."""

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from xformd.limits import Limits
from xformd.server.app import AgentFactory, format_report


@pytest.mark.parametrize(
    ("workers", "busy", "waiting", "weight"),
    [(4, 0, 0, 100), (4, 1, 0, 80), (4, 4, 0, 50), (4, 4, 8, 25), (4, 4, 1_000, 1), (0, 0, 0, 100)],
)
def test_the_weight_says_what_the_workers_have_free(workers: int, busy: int, waiting: int, weight: int) -> None:
    line = format_report(workers=workers, busy=busy, waiting=waiting, max_connections=12)
    assert line == b"ready up %d%% maxconn:12\n" % weight


def test_each_connection_gets_one_line_as_it_is_then() -> None:
    lines = iter((b"drain\n", b"ready up 100% maxconn:1\n"))
    clock = Clock()
    factory = AgentFactory(lambda: next(lines), Limits(), clock)
    for expected in (b"drain\n", b"ready up 100% maxconn:1\n"):
        protocol, wire = factory.buildProtocol(None), StringTransport()
        assert protocol is not None
        protocol.makeConnection(wire)
        assert (wire.value(), wire.disconnecting) == (expected, True)
        drained = factory.drain()
        assert not drained.called or expected != b"drain\n"
        protocol.connectionLost(Failure(ConnectionDone()))
        assert drained.called
        factory = AgentFactory(factory.report, Limits(), clock)
    assert clock.getDelayedCalls() == []
