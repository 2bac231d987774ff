"""Deadlines: for a Deferred whose work may ignore it, and for a connection, which moves it with every read."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.logs import Log
from xformd import Cancelled, TransformTimeout
from xformd.net.deadline import Deadline, within
from xformd.net.plain import backoff_s


class Work:
    """Work with a deadline, which notes that it was cancelled."""

    def __init__(
        self, clock: Clock, seconds: float = 5, canceller: Callable[[Deferred[Any]], None] | None = None
    ) -> None:
        self.cancelled = 0
        self.deferred: Deferred[bytes] = Deferred(canceller or self._cancel)
        self.outcome = within(clock, seconds, "upper", self.deferred, lambda: TransformTimeout("too late"))

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


def test_an_outcome_in_time_is_passed_on(clock: Clock) -> None:
    done, failed = Work(clock), Work(clock)
    done.deferred.callback(b"x")
    failed.deferred.errback(ValueError("x"))
    done.outcome.cancel()  # too late to change anything
    assert result_of(done.outcome) == b"x"
    error_of(failed.outcome, ValueError)
    assert result_of(within(clock, 5, "upper", succeed(b"x"), lambda: TransformTimeout("too late"))) == b"x"
    assert clock.getDelayedCalls() == []


def test_late_work_is_cancelled(clock: Clock) -> None:
    work, past = Work(clock), Work(clock, seconds=-3)
    clock.advance(4.9)
    error_of(past.outcome, TransformTimeout)
    assert not has_fired(work.outcome)
    clock.advance(0.1)
    assert error_of(work.outcome, TransformTimeout).message == "too late"
    assert work.cancelled == 1


def test_cancelling_the_outcome_cancels_the_work_and_the_reverse(clock: Clock) -> None:
    given_up, failed = Work(clock), Work(clock)
    given_up.outcome.cancel()
    assert error_of(given_up.outcome, Cancelled).message == "upper was given up"
    assert given_up.cancelled == 1
    failed.deferred.cancel()
    error_of(failed.outcome, CancelledError)
    assert clock.getDelayedCalls() == []


def test_a_result_from_cancelling_is_ignored(clock: Clock) -> None:
    work = Work(clock, canceller=lambda deferred: deferred.callback(b"after all"))
    clock.advance(5)
    error_of(work.outcome, TransformTimeout)


def test_a_canceller_that_raises_is_logged(clock: Clock, log: Log) -> None:
    def explode(_: object) -> None:
        raise RuntimeError("boom")

    work = Work(clock, canceller=explode)
    clock.advance(5)
    error_of(work.outcome, TransformTimeout)
    assert log.lines == ["transform upper failed to be cancelled"]


def test_the_work_may_be_cancelled_while_the_outcome_fails(clock: Clock) -> None:
    work = Work(clock)
    work.outcome.addErrback(lambda _: work.deferred.cancel())
    clock.advance(5)
    assert has_fired(work.outcome)
    assert clock.getDelayedCalls() == []


@pytest.fixture
def expired() -> list[float]:
    return []


@pytest.fixture
def deadline(clock: Clock, expired: list[float]) -> Deadline:
    return Deadline(clock, lambda: expired.append(clock.seconds()))


def test_a_deadline_moves_later_without_another_timer(clock: Clock, deadline: Deadline, expired: list[float]) -> None:
    assert not deadline.is_set
    deadline.set(5)
    clock.advance(3)
    deadline.set(5)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(4)
    assert expired == []
    clock.advance(1)
    assert expired == [8]
    assert not deadline.is_set


def test_a_deadline_can_move_nearer(clock: Clock, deadline: Deadline, expired: list[float]) -> None:
    deadline.set(50)
    deadline.set(5)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(5)
    assert expired == [5]


def test_a_cleared_or_closed_deadline_never_expires(clock: Clock, deadline: Deadline, expired: list[float]) -> None:
    deadline.set(5)
    deadline.clear()
    clock.advance(10)
    deadline.set(5)
    deadline.close()
    deadline.close()
    clock.advance(10)
    assert expired == []
    assert clock.getDelayedCalls() == []


def test_backoff_doubles_up_to_a_limit_less_jitter() -> None:
    assert [backoff_s(failures, longest_s=10) for failures in (1, 2, 7, 8, 10_000)] == [0.1, 0.2, 6.4, 10, 10]
    assert [backoff_s(failures, longest_s=10, jitter=1) for failures in (1, 10_000)] == [0.05, 5]
