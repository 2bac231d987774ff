"""What one measurement gives, and what a work makes of many of them."""

import statistics
from collections.abc import Sequence

import attrs

MICROSECONDS = 1e6

Figures = dict[str, float]
"""One measurement: a figure for each column of a work's table."""


@attrs.frozen
class Load:
    """What a generator saw.

    Attributes:
        requests: how many were answered, all of them checked.
        wall_s: from the first request to the last answer.
        generator_cpu_s: what the generator itself cost.
        latencies_s: some requests' times, from just before they were sent until their answer had been read.
    """

    requests: int
    wall_s: float
    generator_cpu_s: float
    latencies_s: Sequence[float]

    def figures(self, server_cpu_s: float) -> Figures:
        """Put it beside what it cost the server."""
        ordered = sorted(self.latencies_s)
        return {
            "cpu_us": MICROSECONDS * server_cpu_s / self.requests,
            "per_s": self.requests / self.wall_s,
            "p50_us": MICROSECONDS * percentile(ordered, 0.50),
            "p99_us": MICROSECONDS * percentile(ordered, 0.99),
            "busy": server_cpu_s / self.wall_s,
            "generator_us": MICROSECONDS * self.generator_cpu_s / self.requests,
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of some ordered values that no less than this share of them stay within."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row_key(name: str, part: str) -> str:
    """Return the key of a row of a work that has several parts: a server is in one row for each."""
    return f"{name}, {part}"


@attrs.define
class Row:
    """One server's line in a work's table.

    Attributes:
        name: the server's.
        shape: how it was loaded, where that is not the same for all.
        rounds: a measurement for each round.
        error: why there is no figure.
        is_wrong: whether that is because of a wrong answer.
    """

    name: str
    shape: str = ""
    rounds: list[Figures] = attrs.field(factory=list)
    error: str = ""
    is_wrong: bool = False

    def values(self, key: str) -> list[float]:
        """Return a figure's value in each round."""
        return [figures[key] for figures in self.rounds] if not self.error else []

    def median(self, key: str) -> float:
        """Return the middle one of a figure's values."""
        return statistics.median(self.values(key))


@attrs.frozen
class Column:
    """One figure of a work: its key, its heading, and how it is written (a format specification)."""

    key: str
    heading: str
    format: str = ".1f"
    has_range: bool = False


@attrs.frozen
class Result:
    """What one work gave."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: dict[str, Row]


STEADY_COLUMNS = (
    Column("cpu_us", "server CPU µs/request", has_range=True),
    Column("per_s", "requests/s", ",.0f"),
    Column("p50_us", "p50 µs", ",.0f"),
    Column("p99_us", "p99 µs", ",.0f"),
    Column("busy", "server busy", ".0%"),
    Column("generator_us", "generator CPU µs"),
)
"""For works that keep a server busy."""
