"""The poem servers as an operator gets them: with room for clients, and a word where there is not enough."""

from pathlib import Path

import pytest
from twisted.internet.error import ConnectionRefusedError  # noqa: A004
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

import xformd
from support.deferreds import error_of
from support.logs import Log
from xformd.net import run
from xformd.poems import app


@pytest.mark.parametrize(("limit", "lines"), [(100, 1), (1_000_000, 0)])
def test_a_limit_on_descriptors_that_is_too_low_is_said(
    tmp_path: Path, clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch, limit: int, lines: int
) -> None:
    monkeypatch.setattr(run, "raise_limit", lambda wanted: limit)
    (tmp_path / "owl.txt").write_text("The Owl")
    app.make_poem_server(tmp_path / "owl.txt", ("tcp:0",), clock)
    assert [line.partition(" and has room")[0] for line in log.lines] == ["ulimit -n is 100"] * lines


def test_while_the_transform_server_is_down_no_poem_waits_long_for_its_original() -> None:
    reactor = MemoryReactorClock()
    wanted = app.Wanted(addresses=(), spec="upper", via=("127.0.0.1:1",), timeout_s=60, max_bytes=1, ordered=False)
    transform = app.make_transform("upper", wanted, reactor)
    for attempts in range(1, 11):
        answer = transform(b"x")
        reactor.advance(app.LONGEST_DELAY_S)
        assert len(reactor.tcpClients) == attempts
        factory = reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        error_of(answer, xformd.ConnectionFailed)
