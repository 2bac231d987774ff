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


@attrs.frozen(kw_only=True)
class Policy:
    """How long answers are kept: while they are fresh, and then while one may replace what could not be fetched."""

    ttl_s: float = math.inf
    stale_s: float = 0.0

    @property
    def lifetime_s(self) -> float:
        """How many seconds an answer is kept."""
        return self.ttl_s + self.stale_s


@attrs.frozen
class CachedValue(Generic[Value]):
    """A cached answer: when it was stored, by the clock, and what it counts for in the cache."""

    value: Value
    stored_at: float
    size_bytes: int


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


class BoundedCache(Generic[Key, Value]):
    """Keeps the most recently used answers, within a number of bytes, and as long as the policy says."""

    def __init__(self, max_bytes: int, policy: Policy, clock: IReactorTime) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._values: TLRUCache[Key, CachedValue[Value]] = TLRUCache(
            max_bytes,
            ttu=lambda _key, _value, now: now + policy.lifetime_s,
            timer=clock.seconds,
            getsizeof=lambda cached: cached.size_bytes,
        )

    @property
    def size_bytes(self) -> int:
        """The size of all cached answers."""
        return int(self._values.currsize)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> CachedValue[Value] | None:
        """Return the cached answer, or None."""
        return self._values.get(key)

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """Cache an answer, and evict others for it; one that is larger than the whole cache is not kept."""
        if size_bytes <= self._max_bytes:
            self._values[key] = CachedValue(value, self._clock.seconds(), size_bytes)
        else:
            self._values.pop(key, None)


class ReadThrough(Generic[Key, Value]):
    """Answers from a cache, and fetches what is missing; ``hits`` and ``misses`` count the requests.

    Args:
        cache: the cache.
        policy: how long an answer may be used.
        clock: a reactor, or a clock in its place.
        size_of: returns the number of bytes that an answer counts for.
        fell_back: is called once for each failed call that a stale answer replaces, with the key, the failure, and
            the answer's age in seconds.
    """

    def __init__(
        self,
        cache: BoundedCache[Key, Value],
        policy: Policy,
        clock: IReactorTime,
        *,
        size_of: Callable[[Value], int],
        fell_back: Callable[[Key, Failure, float], None],
    ) -> None:
        self._cache = cache
        self._policy = policy
        self._clock = clock
        self._size_of = size_of
        self._fell_back = fell_back
        self._flights: SingleFlight[tuple[Key, str], Value] = SingleFlight()
        self.hits = self.misses = 0

    def get(self, key: Key, fetch: Callable[[], Deferred[Value]], share: str = "") -> Value | Deferred[Value]:
        """Return a fresh answer, or a Deferred of one (``SingleFlight.join``): calls are shared within a share."""
        if (value := self.fresh(key)) is not None:
            return value
        self.misses += 1
        return self._flights.join((key, share), lambda: self._refresh(key, fetch))

    def fresh(self, key: Key) -> Value | None:
        """Return a fresh answer from the cache, or None."""
        cached = self._look_up(key)
        if cached is None or self._age_s(cached) >= self._policy.ttl_s:
            return None
        self.hits += 1
        return cached.value

    def _refresh(self, key: Key, fetch: Callable[[], Deferred[Value]]) -> Deferred[Value]:
        call: Deferred[Value] = maybeDeferred(fetch)
        return call.addCallbacks(self._keep, self._fall_back, callbackArgs=(key,), errbackArgs=(key,))

    def _keep(self, value: Value, key: Key) -> Value:
        try:
            self._cache.put(key, value, self._size_of(value))
        except Exception:
            log.failure("an answer could not be cached")
        return value

    def _fall_back(self, failure: Failure, key: Key) -> Value | Failure:
        if failure.check(CancelledError):
            return failure  # nobody waits any more, which says nothing about the upstream
        cached = self._look_up(key)
        if cached is None:
            return failure
        self._fell_back(key, failure, self._age_s(cached))
        return cached.value

    def _look_up(self, key: Key) -> CachedValue[Value] | None:
        try:
            return self._cache.get(key)
        except Exception:
            log.failure("the cache could not be read")
            return None

    def _age_s(self, cached: CachedValue[Value]) -> float:
        return self._clock.seconds() - cached.stored_at
