"""Count and measure what a server does, in plain numbers; ``prometheus`` exports them.

Invariant: the number of labels is bounded, whatever clients send. Only registered transforms have labels of their own.

These are not prometheus-client's histograms because its ``observe`` takes a lock for each value. Without sockets a
session's request costs 3.4 us; ``BatchedCounts`` add 0.6 us to that, prometheus-client 5.0 us. With 64 requests in each
read it is 1.5 us, and 0.1 or 2.5 us more. ``python -m benchmarks.histograms`` prints these figures.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import attrs

from xformd.errors import AmbiguousTransform, NoSuchTransform

Front = Literal["netstring", "classic", "session", "http"]
"""How a request came. ``netstring`` is a connection that ended before its first netstring named its dialect."""

OK = "ok"  # the code of success; all other codes are in the table of errors
SEVERAL = "(several)"  # the transform of a request with several steps
UNKNOWN = "(unknown)"  # the transform of a request for an unregistered one

NONE = "(none)"
"""The transform of a request that never reached the service: it was malformed, say, or the server is stopping."""

OTHERS = "(others)"  # the transform of requests for any after ``MAX_TRANSFORMS``, which takes many reloads

MAX_TRANSFORMS = 1_000
"""How many transforms have their own label. One that a reload removes keeps its label and figures."""

FOLD_AT = 1_024  # requests to collect before they are added to the histograms together, at a fraction of the cost

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds of times, in seconds: from what a simple transform takes to the default limit."""

BYTES = tuple(16 * 4**power for power in range(11))  # bounds of sizes, in bytes: 16, 64, ... 16 MiB

_UNKNOWN_CODES = (NoSuchTransform.code, AmbiguousTransform.code)


class Histogram:
    """Counts values in buckets up to ascending bounds, and in one more for the values beyond."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, or as many that are the same."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.sum += value * count

    def add_lowest(self, count: int, total: float) -> None:
        """Count values of the lowest bucket."""
        self._counts[0] += count
        self.sum += total

    def take_all(self, values: list[Any]) -> None:
        """Count many values at once, which is much cheaper than one by one, and empty the list."""
        if not values:
            return
        values.sort()
        bounds, start = self._bounds, 0
        for bucket in range(bisect_left(bounds, values[0]), len(bounds)):
            end = bisect_right(values, bounds[bucket], start)
            self._counts[bucket] += end - start
            start = end
            if start == len(values):
                break
        self._counts[-1] += len(values) - start
        self.sum += sum(values)
        values.clear()

    @property
    def cumulative(self) -> list[tuple[float, int]]:
        """Each bound, and then infinity, with the number of values up to it."""
        return list(zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True))


@attrs.frozen
class ConnectionStats:
    """The connections of one front: open now, refused so far by limit, and closed because they took too long."""

    open: int
    refused: Mapping[str, int]
    cut_off: int


class BatchedCounts:
    """Collects the requests of one transform that succeed at once, and adds them to the metrics in batches.

    The caller appends to the two lists of sizes itself: a method call for each would double the cost.
    """

    def __init__(self, metrics: "Metrics", transform: str, front: Front) -> None:
        self._metrics = metrics
        self._key = (transform, front, OK)
        self._run_seconds = metrics.run_seconds_of(transform)
        self._timed = 0  # of the poems, those whose run time is known
        self._quick = 0  # of these, those in the lowest bucket
        self._quick_s = 0.0
        self.poems_bytes: list[int] = []
        """The length of each poem that the transform got."""
        self.results_bytes: list[int] = []
        """The length of each result that was sent."""

    def ran(self, seconds: float) -> None:
        """Record the run time of all requests since the last call, as an equal share for each."""
        timed = len(self.poems_bytes)
        count = timed - self._timed
        if not count:
            return
        self._timed = timed
        if seconds <= SECONDS[0] * count:  # as nearly all do: a histogram is asked once for many
            self._quick += count
            self._quick_s += seconds
        else:
            self._run_seconds.observe(seconds / count, count)
        if timed >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Add the collected requests to the metrics."""
        metrics = self._metrics
        if self.results_bytes:
            metrics.requests[self._key] += len(self.results_bytes)
        self._run_seconds.add_lowest(self._quick, self._quick_s)
        self._timed = self._quick = 0
        self._quick_s = 0.0
        metrics.poem_bytes.take_all(self.poems_bytes)
        metrics.result_bytes.take_all(self.results_bytes)


class Metrics:
    """The figures of one server since its start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()  # by transform, front and code
        self.queue_seconds = Histogram(SECONDS)
        self.poem_bytes = Histogram(BYTES)
        self.result_bytes = Histogram(BYTES)
        self._transforms = {SEVERAL, UNKNOWN, NONE}
        self._run_seconds: dict[str, Histogram] = {}
        self._batched_counts: dict[tuple[str, Front], BatchedCounts] = {}

    def count(self, transform: str, front: Front, code: str) -> None:
        """Count a request that is done; its transform is a registered one's name or a label of this module."""
        self.requests[self._bounded(transform), front, code] += 1

    def refused(self, front: Front, code: str) -> None:
        """Count a request that never reached the service, by the code of its error."""
        self.requests[UNKNOWN if code in _UNKNOWN_CODES else NONE, front, code] += 1

    def run_seconds_of(self, transform: str) -> Histogram:
        """Return the histogram of a transform's run times."""
        transform = self._bounded(transform)
        histogram = self._run_seconds.get(transform)
        if histogram is None:
            histogram = self._run_seconds[transform] = Histogram(SECONDS)
        return histogram

    def batched_counts(self, transform: str, front: Front) -> BatchedCounts:
        """Return the batched counts of a transform and a front."""
        key = (self._bounded(transform), front)
        if key not in self._batched_counts:
            self._batched_counts[key] = BatchedCounts(self, *key)
        return self._batched_counts[key]

    def fold(self) -> None:
        """Add what the batched counts have collected; call it before reading any figure."""
        for batched_counts in self._batched_counts.values():
            batched_counts.fold()

    @property
    def run_seconds(self) -> Iterator[tuple[str, Histogram]]:
        """Each transform's label and run times."""
        return iter(sorted(self._run_seconds.items()))

    def _bounded(self, transform: str) -> str:
        if transform in self._transforms or len(self._transforms) < MAX_TRANSFORMS:
            self._transforms.add(transform)
            return transform
        return OTHERS
