"""The cache: freshness, single flight, bounds, and what replaces an answer that cannot be fetched."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from support.deferreds import error_of, has_fired, result_of
from support.logs import Log
from xformd.cache import ReadThrough, SingleFlight


class Upstream:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Deferred[bytes]] = []
        self.cancelled = 0
        self.flights: SingleFlight[str, bytes] = SingleFlight()

    def wait(self, times: int) -> list[Deferred[bytes]]:
        return [self.flights.join("owl", self) for _ in range(times)]

    def __call__(self) -> Deferred[bytes]:
        self.calls.append(Deferred(self._cancel))
        return self.calls[-1]

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


def test_a_hundred_simultaneous_misses_make_one_call(upstream: Upstream) -> None:
    waiting = upstream.wait(100)
    assert len(upstream.calls) == 1
    upstream.calls[0].callback(b"poem")
    assert [result_of(waiter) for waiter in waiting] == [b"poem"] * 100
    assert len(set(map(id, waiting))) == 100


def test_cancelling_a_wait_ends_that_wait_alone(upstream: Upstream) -> None:
    first, *others = upstream.wait(3)
    first.cancel()
    error_of(first, CancelledError)
    assert upstream.cancelled == 0
    upstream.calls[0].callback(b"poem")
    assert [result_of(waiter) for waiter in others] == [b"poem"] * 2


def test_cancelling_the_last_wait_cancels_the_call(upstream: Upstream) -> None:
    for waiter in upstream.wait(3):
        assert upstream.cancelled == 0
        waiter.cancel()
        error_of(waiter, CancelledError)
    assert upstream.cancelled == 1
    (late,) = upstream.wait(1)
    assert not has_fired(late)
    upstream.calls[1].callback(b"poem")
    assert result_of(late) == b"poem"


def test_a_request_during_the_cancellation_starts_a_new_call(upstream: Upstream) -> None:
    late: list[Deferred[bytes]] = []

    def join_again(_: object) -> None:
        late.append(upstream.flights.join("owl", lambda: succeed(b"another")))

    waiter = upstream.flights.join("owl", lambda: Deferred(join_again))
    waiter.cancel()
    error_of(waiter, CancelledError)
    assert result_of(late[0]) == b"another"


def test_a_callback_may_fail_or_cancel_another_wait(upstream: Upstream) -> None:
    first, second, third = upstream.wait(3)
    first.addCallback(lambda _: second.cancel()).addCallback(lambda _: 1 / 0)
    upstream.calls[0].callback(b"poem")
    error_of(first, ZeroDivisionError)
    error_of(second, CancelledError)
    assert result_of(third) == b"poem"


def test_each_key_has_its_own_call(upstream: Upstream) -> None:
    owl, cat = upstream.flights.join("owl", upstream), upstream.flights.join("cat", upstream)
    upstream.calls[1].callback(b"cat")
    assert not has_fired(owl)
    assert result_of(cat) == b"cat"


def test_a_call_that_cannot_start_fails_its_wait_and_is_forgotten(upstream: Upstream) -> None:
    error_of(upstream.flights.join("owl", lambda: 1 / 0), ZeroDivisionError)  # type: ignore[arg-type, return-value]
    assert result_of(upstream.flights.join("owl", lambda: succeed(b"poem"))) == b"poem"


class Reading:
    """A ``ReadThrough`` of 10 bytes, and what it said of its key."""

    def __init__(self, clock: Clock, **times_s: float) -> None:
        self.said: list[tuple[str, float]] = []
        self.through: ReadThrough[str, bytes] = ReadThrough(
            10, clock, size_of=len, fell_back=self._fell_back, **times_s
        )

    def read(self, fetch: Any) -> bytes | Deferred[bytes]:
        return self.through.get("owl", fetch)

    def miss(self, fetch: Any) -> Deferred[bytes]:
        answer = self.read(fetch)
        assert isinstance(answer, Deferred)
        return answer

    def _fell_back(self, failure: Failure, age_s: float) -> None:
        self.said.append((failure.getErrorMessage(), age_s))


@pytest.fixture
def stale(clock: Clock) -> Reading:
    """A cache whose answer has been stale for 4 s of 5."""
    reading = Reading(clock, ttl_s=10, stale_s=5)
    reading.read(lambda: succeed(b"old"))
    clock.advance(14)
    return reading


def test_a_hit_is_the_value_itself_and_a_miss_a_deferred(clock: Clock, upstream: Upstream) -> None:
    reading = Reading(clock, ttl_s=10)
    miss = reading.miss(upstream)
    upstream.calls[0].callback(b"poem")
    assert result_of(miss) == reading.read(upstream) == b"poem"
    assert (reading.through.hits, reading.through.misses) == (1, 1)
    clock.advance(10)
    reading.miss(upstream)
    assert len(upstream.calls) == 2


def test_errors_are_not_cached(clock: Clock, upstream: Upstream) -> None:
    reading = Reading(clock)
    failed = reading.miss(upstream)
    upstream.calls[0].errback(ZeroDivisionError())
    error_of(failed, ZeroDivisionError)
    reading.miss(upstream)
    assert (len(upstream.calls), reading.said) == (2, [])


def test_a_stale_answer_replaces_one_that_fails_until_it_is_gone(
    clock: Clock, stale: Reading, upstream: Upstream
) -> None:
    waiting = [stale.miss(upstream) for _ in range(3)]
    upstream.calls[0].errback(ZeroDivisionError("down"))
    assert [result_of(waiter) for waiter in waiting] == [b"old"] * 3
    assert stale.said == [("down", 14)]
    clock.advance(1)
    failed = stale.miss(upstream)
    upstream.calls[1].errback(ZeroDivisionError())
    error_of(failed, ZeroDivisionError)


def test_a_cancelled_wait_is_no_sign_that_the_upstream_is_down(stale: Reading, upstream: Upstream) -> None:
    leaving = stale.miss(upstream)
    leaving.cancel()
    error_of(leaving, CancelledError)
    assert stale.said == []


def test_an_answer_that_expires_during_the_call_is_not_returned(
    clock: Clock, stale: Reading, upstream: Upstream
) -> None:
    failed = stale.miss(upstream)
    clock.advance(2)
    upstream.calls[0].errback(ZeroDivisionError())
    error_of(failed, ZeroDivisionError)


def test_the_least_recently_used_answer_is_evicted_first(clock: Clock) -> None:
    through = Reading(clock).through
    for name in ("owl", "cat"):
        through.get(name, lambda: succeed(b"12345"))
    assert through.fresh("owl") == b"12345"
    through.get("pig", lambda: succeed(b"1"))
    assert (through.size_bytes, through.fresh("cat"), through.fresh("pig")) == (6, None, b"1")


def test_an_answer_that_is_larger_than_all_may_be_is_not_kept_and_replaces_an_older_one(clock: Clock) -> None:
    reading = Reading(clock, ttl_s=1, stale_s=5)
    reading.read(lambda: succeed(b"12345"))
    clock.advance(1)
    assert result_of(reading.miss(lambda: succeed(b"larger than all"))) == b"larger than all"
    assert reading.through.size_bytes == 0


def test_an_expired_answer_takes_no_room(clock: Clock) -> None:
    reading = Reading(clock, ttl_s=5, stale_s=5)
    reading.read(lambda: succeed(b"12345"))
    clock.advance(9)
    assert reading.through.size_bytes == 5
    clock.advance(1)
    assert reading.through.size_bytes == 0


class BrokenCache:
    maxsize = 10

    def get(self, *_: object) -> None:
        raise OSError("the cache is on fire")

    __setitem__ = get


def test_a_cache_that_fails_never_fails_a_request(clock: Clock, log: Log) -> None:
    reading = Reading(clock)
    reading.through.answers = BrokenCache()  # type: ignore[assignment]
    assert result_of(reading.miss(lambda: succeed(b"poem"))) == b"poem"
    assert log.lines == ["the cache could not be read", "an answer could not be cached"]
