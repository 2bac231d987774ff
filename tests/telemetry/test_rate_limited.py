"""Events in floods are one line in each period, on a clock that only the test moves."""

import pytest
from twisted.internet.task import Clock

from xformd.telemetry.rate_limited import RateLimitedLog


class Lines(list[tuple[str, int]]):
    """What is logged: each event's text, and how many events it stands for."""

    def __init__(self, clock: Clock, period_s: float = 1.0) -> None:
        self.limited = RateLimitedLog(clock, period_s)

    def add(self, kind: str, text: str) -> None:
        self.limited.add(kind, self.write, text, number=7)

    def write(self, message: str, *, count: int, log_others: str, number: int) -> None:
        assert (number, message.endswith("{log_others}"), f"of {count} within" in log_others) == (7, True, count > 1)
        self.append((message.removesuffix("{log_others}"), count))


@pytest.mark.parametrize("period_s", [1.0, 60.0])
def test_a_flood_is_one_line_in_each_period(clock: Clock, period_s: float) -> None:
    lines = Lines(clock, period_s)
    for number in range(1_000):
        lines.add("total", f"reason {number}")
    assert lines == [("reason 0", 1)]
    clock.advance(period_s)
    assert lines[1:] == [("reason 999", 999)]
    lines.add("total", "again")
    assert len(lines) == 2
    clock.advance(period_s)
    assert lines[2:] == [("again", 1)]
    assert lines.limited.counts == {"total": 1_001}


def test_after_a_quiet_period_an_event_is_logged_at_once(clock: Clock) -> None:
    lines = Lines(clock)
    lines.add("total", "one")
    clock.advance(1)
    assert clock.getDelayedCalls() == []
    lines.add("total", "two")
    assert lines == [("one", 1), ("two", 1)]


def test_many_kinds_share_a_line(clock: Clock) -> None:
    lines = Lines(clock)
    for number in range(1_000):
        lines.add(f"kind {number % 100}", f"text {number}")
    assert len(lines) == 11
    for _ in range(3):
        clock.advance(1)
    assert (len(lines), sum(count for _, count in lines), lines[-1][0]) == (22, 1_000, "text 999")
    assert clock.getDelayedCalls() == []
    assert sum(lines.limited.counts.values()) == 1_000


def test_each_kind_has_its_own_line(clock: Clock) -> None:
    lines = Lines(clock)
    for kind in ("total", "peer", "total", "peer"):
        lines.add(kind, kind)
    assert lines == [("total", 1), ("peer", 1)]
