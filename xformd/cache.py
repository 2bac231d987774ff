"""What a caching proxy decides: whether an answer is fresh, which requests share a call, and what is kept. No network.

Invariant: simultaneous misses of one key make one call; cancelling a wait ends that wait alone, and cancelling the last
one cancels the call; an error is never cached; a cache that fails never fails a request.
"""

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
from cachetools import TLRUCache
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

Key = TypeVar("Key")
Value = TypeVar("Value")

log = Logger()


@attrs.define(eq=False)
class _Flight(Generic[Value]):
    """A call in flight, and the Deferreds that wait for it, in the order in which they came."""

    waiting: dict[Deferred[Value], None] = attrs.field(factory=dict)
    call: Deferred[Any] | None = None


class SingleFlight(Generic[Key, Value]):
    """Makes one call for all requests for the same key at the same time."""

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Value]] = {}

    def join(self, key: Key, start: Callable[[], Deferred[Value]]) -> Deferred[Value]:
        """Return a new Deferred of the outcome of the call that is in flight, or of one that is started.

        Cancelling it ends this wait alone; cancelling the last one cancels the call.
        """
        waiter: Deferred[Value] = Deferred(lambda waiter: self._cancel_wait(key, flight, waiter))
        flight = self._flights.get(key) or _Flight()
        flight.waiting[waiter] = None
        if self._flights.setdefault(key, flight) is flight and flight.call is None:
            flight.call = maybeDeferred(start)
            flight.call.addBoth(self._land, key, flight)
        return waiter

    def _cancel_wait(self, key: Key, flight: _Flight[Value], waiter: Deferred[Value]) -> None:
        flight.waiting.pop(waiter, None)
        if flight.waiting or self._flights.get(key) is not flight or flight.call is None:
            return
        del self._flights[key]  # first: a request that comes now must not wait for a cancelled call
        flight.call.cancel()

    def _land(self, outcome: Any, key: Key, flight: _Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        waiting, flight.waiting = flight.waiting, {}
        for waiter in waiting:
            if not waiter.called:  # a callback of an earlier waiter may have cancelled it
                waiter.callback(outcome)


class ReadThrough(Generic[Key, Value]):
    """Answers with the most recently used answers, and fetches what is missing; ``hits`` and ``misses`` count requests.

    Args:
        max_bytes: how much all answers may count for; one that counts for more is not kept.
        clock: a reactor, or a clock in its place.
        size_of: returns the number of bytes that an answer counts for.
        ttl_s: how many seconds an answer is fresh.
        stale_s: how many seconds after that it may replace one that cannot be fetched.
        fell_back: is called once for each failed call that a stale answer replaces, with the failure and its age in s.
    """

    def __init__(
        self,
        max_bytes: int,
        clock: IReactorTime,
        *,
        size_of: Callable[[Value], int],
        ttl_s: float = math.inf,
        stale_s: float = 0.0,
        fell_back: Callable[[Failure, float], None] = lambda _failure, _age_s: None,
    ) -> None:
        self._clock, self._size_of, self._ttl_s, self._fell_back = clock, size_of, ttl_s, fell_back
        self.answers: TLRUCache[Key, tuple[Value, float]] = TLRUCache(  # with the time at which each was stored
            max_bytes,
            ttu=lambda _key, _answer, now: now + ttl_s + stale_s,
            timer=clock.seconds,
            getsizeof=lambda answer: size_of(answer[0]),
        )
        self._flights: SingleFlight[tuple[Key, str], Value] = SingleFlight()
        self.hits = self.misses = 0

    @property
    def size_bytes(self) -> int:
        """What all answers count for."""
        return int(self.answers.currsize)

    def get(
        self,
        key: Key,
        fetch: Callable[[], Deferred[Value]],
        share: str = "",
        may_keep: Callable[[], bool] = lambda: True,  # asked once there is an answer
    ) -> Value | Deferred[Value]:
        """Return a fresh answer, or a Deferred of one (``SingleFlight.join``): calls are shared within a share."""
        if (value := self.fresh(key)) is not None:
            return value
        self.misses += 1
        return self._flights.join((key, share), lambda: self._refresh(key, fetch, may_keep))

    def fresh(self, key: Key) -> Value | None:
        """Return a fresh answer, or None."""
        answer = self._look_up(key)
        if answer is None or self._clock.seconds() - answer[1] >= self._ttl_s:
            return None
        self.hits += 1
        return answer[0]

    def _refresh(self, key: Key, fetch: Callable[[], Deferred[Value]], may_keep: Callable[[], bool]) -> Deferred[Value]:
        call: Deferred[Value] = maybeDeferred(fetch)
        return call.addCallbacks(self._keep, self._fall_back, callbackArgs=(key, may_keep), errbackArgs=(key,))

    def _keep(self, value: Value, key: Key, may_keep: Callable[[], bool]) -> Value:
        try:
            if may_keep() and self._size_of(value) <= self.answers.maxsize:
                self.answers[key] = value, self._clock.seconds()
            else:
                self.answers.pop(key, None)
        except Exception:
            log.failure("an answer could not be cached")
        return value

    def _fall_back(self, failure: Failure, key: Key) -> Value | Failure:
        if failure.check(CancelledError):
            return failure  # nobody waits any more, which says nothing about the upstream
        if (answer := self._look_up(key)) is None:
            return failure
        value, stored_at = answer
        self._fell_back(failure, self._clock.seconds() - stored_at)
        return value

    def _look_up(self, key: Key) -> tuple[Value, float] | None:
        try:
            return self.answers.get(key)
        except Exception:
            log.failure("the cache could not be read")
            return None
