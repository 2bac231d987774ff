"""The figures to reach, and whether they are.

A ratio is taken within each round, where both its sides were measured within seconds of each other, and the median of
those counts.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from benchmarks.commands import IMPORT_REACTOR, SEND
from benchmarks.in_process import DECODER, RECEIVER, TRANSFORM_ALONE
from benchmarks.page import BROWSER
from benchmarks.pools import WORKERS
from benchmarks.proxies import ONE_WORKER, PROXY, TWO_WORKERS
from benchmarks.real_work import REAL_WORKS
from benchmarks.samples import Result, Row, row_key
from benchmarks.servers import BESIEGED, OTHER_CHECKOUT, OURS, OVER_HTTP, WITH_ACCESS, WITH_HTTP
from benchmarks.worker_costs import MODEL, STARTS

Rows = Mapping[str, Row]
Values = Callable[[Rows], Sequence[float]]


@attrs.frozen
class Target:
    """A figure to reach.

    Attributes:
        work: the key of the work that it comes from.
        text: what it is.
        values: takes it from that work's rows, once for each round; nothing where something was not measured.
        limit: what to reach.
        at_least: whether more is better.
    """

    work: str
    text: str
    values: Values
    limit: float
    at_least: bool = False


@attrs.frozen
class Outcome:
    """A target beside what was measured; without a value, what it takes was not."""

    target: Target
    value: float | None
    low: float | None
    high: float | None

    @property
    def is_reached(self) -> bool | None:
        """Whether it is reached; None where that is not known."""
        if self.value is None:
            return None
        return self.value >= self.target.limit if self.target.at_least else self.value <= self.target.limit


def _values(rows: Rows, name: str, key: str) -> list[float]:
    return rows[name].values(key) if name in rows else []


def ratio(key: str, ours: str, *theirs: str) -> Values:
    """Return what divides one row's figure by another's, or by the sum of several."""

    def per_round(rows: Rows) -> list[float]:
        sides = [_values(rows, name, key) for name in (ours, *theirs)]
        return [first / sum(others) for first, *others in zip(*sides, strict=False)]

    return per_round


def only(key: str, name: str) -> Values:
    """Return what takes a figure as it is."""
    return lambda rows: _values(rows, name, key)


def lowest(key: str, name: str) -> Values:
    """Return what takes the least of a figure's rounds."""
    return lambda rows: sorted(_values(rows, name, key))[:1]


def beside(server: str, work: str) -> Values:
    """Return what divides the CPU time of netstrings on a server with something besides by that on one without."""
    return ratio("cpu_us", row_key(server, work), row_key(OURS, work))


def spread(name: str) -> Values:
    """Return a calculation: the largest median of the row's figures, divided by the smallest."""

    def of_medians(rows: Rows) -> list[float]:
        if name not in rows or not rows[name].rounds or rows[name].error:
            return []
        medians = [rows[name].median(key) for key in rows[name].rounds[0]]
        return [max(medians) / min(medians)]

    return of_medians


def lead(key: str, ours: str, theirs: str) -> Values:
    """Return what subtracts one row's figure from another's: it may be 0."""
    return lambda rows: [
        mine - its for mine, its in zip(_values(rows, ours, key), _values(rows, theirs, key), strict=False)
    ]


def ahead_of(work: str, ours: str, peer: str) -> tuple[Target, ...]:
    """Return what it means that ours does real work better than a peer."""
    beside_hangs = f"{ours} - {peer}: good requests/s, 1 in 100 hangs"
    return (
        Target(work, f"{ours} / {peer}: requests/s", ratio("per_s", ours, peer), 1, at_least=True),
        Target(work, f"{ours} / {peer}: CPU time", ratio("cpu_us", ours, peer), 1),
        Target(work, f"{ours} / {peer}: p99", ratio("p99_us", ours, peer), 1),
        Target(work, beside_hangs, lead("hung_per_s", ours, peer), 0, at_least=True),
    )


TARGETS = (
    Target("a", "xformd / tutorial-style, kept open", ratio("cpu_us", "xformd", "tutorial"), 0.55),
    Target("a", "FastAPI's ping-pong / xformd", ratio("cpu_us", "fastapi", "xformd"), 50, at_least=True),
    Target("b", "xformd / uvloop by hand", ratio("cpu_us", "xformd", "uvloop"), 1.6),
    Target("b", "FastAPI / xformd", ratio("cpu_us", "fastapi", "xformd"), 6, at_least=True),
    Target("b", "gRPC / xformd", ratio("cpu_us", "grpc", "xformd"), 5, at_least=True),
    Target("c", "xformd / tutorial-style, kept open", ratio("cpu_us", "xformd", "tutorial"), 0.6),
    Target("d", "xformd / (transform + echo in C)", ratio("cpu_us", "xformd", TRANSFORM_ALONE, "echo-c"), 1.6),
    Target("e", "xformd / tutorial-style", ratio("cpu_us", "xformd-classic", "tutorial-classic"), 1.0),
    Target("f", "KiB for each idle session of xformd", only("kib_each", "xformd"), 12),
    Target("f", "KiB for each idle HTTP connection of xformd", only("kib_each", OVER_HTTP), 8),
    Target("g", "most / least of xformd's", spread("xformd"), 1.3),
    Target("h", f"wall time, xformd send / {IMPORT_REACTOR}", ratio("wall_ms", SEND, IMPORT_REACTOR), 1.6),
    Target("i", "µs of a call without its transform, 1 KB", only("overhead_us", row_key(WORKERS, "1 KB")), 84),
    Target("j", "calls/s, 1 KB", only("per_s", row_key(WORKERS, "1 KB")), 13_000, at_least=True),
    Target(
        "l",
        "a proxy's hits/s / answers/s of a server with 1 worker",
        ratio("per_s", PROXY, ONE_WORKER),
        50,
        at_least=True,
    ),
    Target(
        "l",
        "a proxy's hits/s / answers/s of a server with 2 workers",
        ratio("per_s", PROXY, TWO_WORKERS),
        50,
        at_least=True,
    ),
    Target("page", "ms to the first paint", only("paint_ms", BROWSER), 200),
    Target("page", "ms from a click to its result", only("click_ms", BROWSER), 50),
    Target("page", "ms from a click to its result from a worker", only("click_worker_ms", BROWSER), 50),
    Target("page", "KB of the page", only("page_kb", BROWSER), 100),
    Target("m", "xformd over HTTP / FastAPI", ratio("cpu_us", OVER_HTTP, "fastapi"), 0.35),
    Target("m", "xformd over HTTP / Twisted with httptools", ratio("cpu_us", OVER_HTTP, "twisted-httptools"), 1.6),
    *(Target("n", f"({work}) with HTTP and metrics / without", beside(WITH_HTTP, work), 1.05) for work in "abc"),
    *(Target("r", f"({work}) with an access file / without", beside(WITH_ACCESS, work), 1.05) for work in "ab"),
    Target("o", "share of good requests/s that slow ones leave", only("kept", BESIEGED), 0.95, at_least=True),
    Target("o", "the same, lowest round", lowest("kept", BESIEGED), 0.9, at_least=True),
    Target("o", "of 1,000 of them, to be sent again", only("lost", BESIEGED), 5),
    Target("q", "CPU ms of a worker's start", only("start_cpu_ms", STARTS), 20),
    Target("q", "copies of a model of 300 MB for 4 workers", only("copies", MODEL), 1.3),
    Target("p", "xformd's 304 / FastAPI's", ratio("cpu_us", OVER_HTTP, "fastapi"), 0.35),
    *(each for work in REAL_WORKS for peer in work.names[1:] for each in ahead_of(work.key, work.names[0], peer)),
    Target("decoding", f"{DECODER} / {RECEIVER}", ratio("cpu_ms", DECODER, RECEIVER), 1 / 3),
)


def compare_checkouts(results: Iterable[Result]) -> list[tuple[str, str, float, float, float]]:
    """Return for each of our rows that has a twin of another checkout what ours costs, divided by what the twin costs.

    Returns:
        The work's key, the row's name, and the median, the least and the most of the rounds' ratios of CPU time.
    """
    found = []
    for result in results:
        for name in result.rows:
            twin = twin_of(name)
            is_measured = twin in result.rows and all("cpu_us" in figures for figures in result.rows[name].rounds)
            values = ratio("cpu_us", name, twin)(result.rows) if is_measured else []
            if values:
                found.append((result.key, name, statistics.median(values), min(values), max(values)))
    return found


def twin_of(name: str) -> str:
    """Return the name of the row of another checkout beside a row of ours; a pool's name goes on with a size."""
    server, comma, size = name.partition(", ")
    return f"{server}{OTHER_CHECKOUT}{comma}{size}" if comma else name + OTHER_CHECKOUT


def compare(results: Mapping[str, Result]) -> list[Outcome]:
    """Put each target of the works that have run beside its figure."""
    return [_compare(target, results[target.work].rows) for target in TARGETS if target.work in results]


def _compare(target: Target, rows: Rows) -> Outcome:
    values = target.values(rows)
    if not values:
        return Outcome(target, None, None, None)
    return Outcome(target, statistics.median(values), min(values), max(values))
