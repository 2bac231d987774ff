"""What the log says of connections that are refused, by a clock that only the test moves."""

from twisted.internet.task import Clock

from support.logs import Log
from xformd.telemetry.rate_limited import RateLimitedLog


def test_a_flood_is_one_line_a_second(clock: Clock, log: Log) -> None:
    refusals = RateLimitedLog(clock)
    for number in range(1_000):
        refusals.refused("total", f"reason {number}")
    assert log.lines == ["closed a new connection: reason 0"]
    clock.advance(1)
    assert log.lines[1:] == ["closed 999 new connections in the last second: reason 999"]
    refusals.refused("total", "again")
    assert len(log.lines) == 2
    clock.advance(1)
    assert log.lines[2:] == ["closed 1 new connections in the last second: again"]


def test_after_a_quiet_second_it_begins_anew_and_keeps_nothing(clock: Clock, log: Log) -> None:
    refusals = RateLimitedLog(clock)
    refusals.refused("total", "one")
    clock.advance(1)
    assert clock.getDelayedCalls() == []
    refusals.refused("total", "two")
    assert log.lines == ["closed a new connection: one", "closed a new connection: two"]


def test_each_kind_has_its_own_line(clock: Clock, log: Log) -> None:
    refusals = RateLimitedLog(clock)
    for kind in ("total", "peer", "total", "peer"):
        refusals.refused(kind, kind)
    assert log.lines == ["closed a new connection: total", "closed a new connection: peer"]
