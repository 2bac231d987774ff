"""What a server counts and measures, in plain numbers; ``exposition`` gives them the form that Prometheus reads.

The law: the number of labels is bounded, whatever clients send. A transform is named only if it is registered, and what
is not stands under one label of its kind. Nothing here knows a request, a clock or a connection.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import attrs

from xformd.errors import AmbiguousTransform, NoSuchTransform

Front = Literal["netstring", "classic", "session", "http"]
"""How a request came. ``netstring`` is a connection that ends before it has said which form it speaks."""

OK = "ok"
"""The code of what has succeeded; that of anything else is in the table of errors."""

SEVERAL = "(several)"
"""The transform of a request with several steps."""

UNKNOWN = "(unknown)"
"""The transform of a request for one that is not registered."""

NONE = "(none)"
"""The transform of a request that never reached the service: it cannot be read, say, or its front is stopping."""

OTHERS = "(others)"
"""The transform of what comes after ``MAX_TRANSFORMS``, which takes many a reload."""

MAX_TRANSFORMS = 1_000
"""How many transforms are told apart: what a reload takes away keeps its figures."""

FOLD_AT = 1_024
"""So many requests that were answered at once are worked into the histograms together, which costs a fraction."""

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The bounds of times, in seconds: from what a plain transform takes to the limit that there is by default."""

BYTES = tuple(16 * 4**power for power in range(11))
"""The bounds of sizes, in bytes: 16, 64, ... 16 MiB."""


_UNKNOWN_CODES = (NoSuchTransform.code, AmbiguousTransform.code)


class Histogram:
    """Counts values by size.

    Args:
        bounds: the greatest value of each bucket, ascending; one more bucket takes what is beyond.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def take_all(self, values: list[Any]) -> None:
        """Count many values, at a fraction of the price of one after the other, and leave the list empty."""
        values.sort()
        start = 0
        for bucket, bound in enumerate(self._bounds):
            end = bisect_right(values, bound, start)
            self._counts[bucket] += end - start
            start = end
        self._counts[-1] += len(values) - start
        self.sum += sum(values)
        values.clear()

    @property
    def cumulative(self) -> list[tuple[float, int]]:
        """For each bound, and then for infinity: how many values are not greater."""
        return list(zip((*self._bounds, float("inf")), accumulate(self._counts), strict=True))


@attrs.frozen
class ConnectionStats:
    """What has become of the connections of one front.

    Args:
        open: how many are open.
        refused: how many were closed as they came, by the limit that they met.
        cut_off: how many were ended because they took too long.
    """

    open: int
    refused: Mapping[str, int]
    cut_off: int


class BatchedCounts:
    """Takes down requests of one transform that are answered at once, with as little as possible for each.

    What is taken down is worked into the histograms now and then. Whoever takes down fills the two lists of sizes.

    Args:
        metrics: where it counts in the end.
        transform: a label.
        front: how the requests came.
    """

    def __init__(self, metrics: "Metrics", transform: str, front: Front) -> None:
        self._metrics = metrics
        self._key = (transform, front, OK)
        self._run_seconds = metrics.run_seconds_of(transform)
        self._times_s: list[float] = []
        self.poems_bytes: list[int] = []
        """The length of each poem that was given to the transform."""
        self.results_bytes: list[int] = []
        """The length of each result that was sent."""

    def ran(self, seconds: float) -> None:
        """Note how long those took together that were taken down since the last time: each has its share.

        Args:
            seconds: from the start of the first to the end of the last.
        """
        times_s = self._times_s
        count = len(self.poems_bytes) - len(times_s)
        if count == 1:
            times_s.append(seconds)
        elif count:
            times_s.extend((seconds / count,) * count)
        if len(times_s) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Work what was taken down into the histograms."""
        metrics = self._metrics
        if self.results_bytes:
            metrics.requests[self._key] += len(self.results_bytes)
        self._run_seconds.take_all(self._times_s)
        metrics.poem_bytes.take_all(self.poems_bytes)
        metrics.result_bytes.take_all(self.results_bytes)


class Metrics:
    """The figures of one server, from its start to its end.

    Attributes:
        requests: how many, by transform, front and code.
        queue_seconds: how long requests have waited for workers.
        poem_bytes: how long the poems were that reached the service.
        result_bytes: how long the results were.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.queue_seconds = Histogram(SECONDS)
        self.poem_bytes = Histogram(BYTES)
        self.result_bytes = Histogram(BYTES)
        self._transforms = {SEVERAL, UNKNOWN, NONE}
        self._run_seconds: dict[str, Histogram] = {}
        self._tallies: dict[tuple[str, Front], BatchedCounts] = {}

    def count(self, transform: str, front: Front, code: str) -> None:
        """Count a request that has its outcome.

        Args:
            transform: a registered one's name, or one of the labels of this module.
            front: how it came.
            code: ``ok``, or that of the error.
        """
        self.requests[self._bounded(transform), front, code] += 1

    def refused(self, front: Front, code: str) -> None:
        """Count a request that never reached the service.

        Args:
            front: how it came.
            code: that of the error.
        """
        self.requests[UNKNOWN if code in _UNKNOWN_CODES else NONE, front, code] += 1

    def run_seconds_of(self, transform: str) -> Histogram:
        """Give the histogram of a transform's run time, in seconds."""
        transform = self._bounded(transform)
        histogram = self._run_seconds.get(transform)
        if histogram is None:
            histogram = self._run_seconds[transform] = Histogram(SECONDS)
        return histogram

    def batched_counts(self, transform: str, front: Front) -> BatchedCounts:
        """Give what takes down requests that are answered at once; there is one for each transform and front."""
        key = (self._bounded(transform), front)
        if key not in self._tallies:
            self._tallies[key] = BatchedCounts(self, *key)
        return self._tallies[key]

    def fold(self) -> None:
        """Work in what was taken down; before anybody looks at the figures."""
        for batched_counts in self._tallies.values():
            batched_counts.fold()

    @property
    def run_seconds(self) -> Iterator[tuple[str, Histogram]]:
        """Each transform with its run times."""
        return iter(sorted(self._run_seconds.items()))

    def _bounded(self, transform: str) -> str:
        if transform in self._transforms or len(self._transforms) < MAX_TRANSFORMS:
            self._transforms.add(transform)
            return transform
        return OTHERS
