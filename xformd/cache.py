"""What a caching proxy decides: how fresh an answer is, who waits for whom, and what is kept. No network in here.

The law: any number of simultaneous misses make one call; who leaves, leaves alone, and the last one to leave cancels
the call; an error is never kept; and a cache that fails never fails a request.
"""

import enum
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


class Freshness(enum.Enum):
    """What an answer is good for."""

    FRESH = "fresh"
    """For every request."""
    STALE = "stale"
    """For a request that got no fresh one."""
    GONE = "gone"
    """For nothing."""


@attrs.frozen(kw_only=True)
class Policy:
    """How long answers are kept.

    Args:
        ttl_s: for how many seconds an answer is fresh; without end where none are given.
        stale_s: for how many seconds after that it may stand in for one that did not come.
    """

    ttl_s: float = math.inf
    stale_s: float = 0.0

    @property
    def lifetime_s(self) -> float:
        """How many seconds an answer is good for anything."""
        return self.ttl_s + self.stale_s

    def judge(self, age_s: float) -> Freshness:
        """Say what an answer of this age is good for."""
        if age_s < self.ttl_s:
            return Freshness.FRESH
        return Freshness.STALE if age_s < self.lifetime_s else Freshness.GONE


@attrs.frozen
class Entry(Generic[Value]):
    """An answer that is kept.

    Args:
        value: the answer.
        stored_at: by the clock, in seconds.
        size_bytes: what it counts for.
    """

    value: Value
    stored_at: float
    size_bytes: int


@attrs.define(eq=False)
class _Flight(Generic[Value]):
    """A call that is under way, and the Deferreds of those who wait for it, in the order in which they came."""

    waiting: dict[Deferred[Value], None] = attrs.field(factory=dict)
    call: Deferred[Any] | None = None


class SingleFlight(Generic[Key, Value]):
    """Makes one call for all who want the same thing at the same time."""

    def __init__(self) -> None:
        self._flights: dict[Key, _Flight[Value]] = {}

    def join(self, key: Key, start: Callable[[], Deferred[Value]]) -> Deferred[Value]:
        """Wait for the call that is under way, or start one.

        Args:
            key: what is wanted.
            start: makes the call; it is called only if none is under way.

        Returns:
            A Deferred of the caller's own, with the outcome of the call. Cancelling it ends this wait alone; when the
            last who waits has left, the call is cancelled.
        """
        waiter: Deferred[Value] = Deferred(lambda left: self._leave(key, flight, left))
        flight = self._flights.get(key) or _Flight()
        flight.waiting[waiter] = None
        if self._flights.setdefault(key, flight) is flight and flight.call is None:
            flight.call = maybeDeferred(start)
            flight.call.addBoth(self._land, key, flight)
        return waiter

    def _leave(self, key: Key, flight: _Flight[Value], waiter: Deferred[Value]) -> None:
        flight.waiting.pop(waiter, None)
        if flight.waiting or self._flights.get(key) is not flight or flight.call is None:
            return
        del self._flights[key]  # first: who comes now must not wait for a call that is given up
        flight.call.cancel()

    def _land(self, outcome: Any, key: Key, flight: _Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        waiting, flight.waiting = flight.waiting, {}
        for waiter in waiting:
            if not waiter.called:  # it was cancelled by what another one does with the answer
                waiter.callback(outcome)


class BoundedCache(Generic[Key, Value]):
    """Keeps the answers that were used last, within a number of bytes.

    Args:
        max_bytes: of all answers together.
        policy: how long one is kept.
        clock: a reactor, or a clock in its place.
    """

    def __init__(self, max_bytes: int, policy: Policy, clock: IReactorTime) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: TLRUCache[Key, Entry[Value]] = TLRUCache(
            max_bytes,
            ttu=lambda _key, _entry, now: now + policy.lifetime_s,
            timer=clock.seconds,
            getsizeof=lambda entry: entry.size_bytes,
        )

    @property
    def size_bytes(self) -> int:
        """How many bytes it keeps."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Entry[Value] | None:
        """Give what is kept; None if nothing is."""
        return self._entries.get(key)

    def put(self, key: Key, value: Value, size_bytes: int) -> None:
        """Keep an answer, and drop others for it; one that is larger than the whole cache is not kept."""
        if size_bytes <= self._max_bytes:
            self._entries[key] = Entry(value, self._clock.seconds(), size_bytes)
        else:
            self._entries.pop(key, None)


class ReadThrough(Generic[Key, Value]):
    """Answers from a cache where it can, and asks where it must.

    Args:
        cache: what is kept.
        policy: how long it is good for.
        clock: a reactor, or a clock in its place.
        size_of: gives the number of bytes that an answer counts for.
        fell_back: is told, once for each call that failed, that an old answer is given: the key, why the call
            failed, and the old answer's age in seconds.

    Attributes:
        hits: how many were answered from the cache.
        misses: how many were not.
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
        self._flights: SingleFlight[Key, Value] = SingleFlight()
        self.hits = self.misses = 0

    def get(self, key: Key, fetch: Callable[[], Deferred[Value]]) -> Value | Deferred[Value]:
        """Give an answer.

        Args:
            key: of what is wanted.
            fetch: asks for it.

        Returns:
            The answer itself if it is there and fresh, else a Deferred of it, of the caller's own (``SingleFlight``).
        """
        entry = self._look_up(key)
        if entry is not None and self._policy.judge(self._age_s(entry)) is Freshness.FRESH:
            self.hits += 1
            return entry.value
        self.misses += 1
        return self._flights.join(key, lambda: self._refresh(key, fetch))

    def _refresh(self, key: Key, fetch: Callable[[], Deferred[Value]]) -> Deferred[Value]:
        call: Deferred[Value] = maybeDeferred(fetch)
        return call.addCallbacks(self._keep, self._fall_back, callbackArgs=(key,), errbackArgs=(key,))

    def _keep(self, value: Value, key: Key) -> Value:
        try:
            self._cache.put(key, value, self._size_of(value))
        except Exception:
            log.failure("an answer could not be kept")
        return value

    def _fall_back(self, failure: Failure, key: Key) -> Value | Failure:
        if failure.check(CancelledError):
            return failure  # who waited has left, which says nothing of what was asked
        entry = self._look_up(key)
        if entry is None or self._policy.judge(self._age_s(entry)) is Freshness.GONE:
            return failure
        self._fell_back(key, failure, self._age_s(entry))
        return entry.value

    def _look_up(self, key: Key) -> Entry[Value] | None:
        try:
            return self._cache.get(key)
        except Exception:
            log.failure("the cache could not be read")
            return None

    def _age_s(self, entry: Entry[Value]) -> float:
        return self._clock.seconds() - entry.stored_at
