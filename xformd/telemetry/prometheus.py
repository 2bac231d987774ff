"""Export a server's metrics to Prometheus; ``docs/metrics.md`` describes each of them.

Invariant: only xformd's own metrics appear here, never what a plugin registers: the registry is not the global one. All
figures are collected at the time of the request, unless that takes long.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from xformd import __version__
from xformd.errors import printable
from xformd.telemetry.metrics import ConnectionStats, Histogram, Metrics
from xformd.telemetry.status import ServerStatus, WorkerHistory

LONG_S = 0.02
"""A page that takes longer is kept for a while: of 300 transforms it takes 90 ms, and anybody may ask for it."""


@attrs.frozen
class Sources:
    """Where the figures come from; a plugin is its name, distribution, version and state."""

    metrics: Metrics
    status: Callable[[], ServerStatus]
    plugins: Callable[[], Iterable[tuple[str, str, str, str]]]
    connection_stats: Callable[[], Mapping[str, ConnectionStats]]
    access_log_dropped: Callable[[], int] = lambda: 0


class PrometheusExporter(Collector):
    """Renders the figures of one server."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._names_shares = False
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._page, self._next_s = b"", -inf

    def render(self, *, names_shares: bool = False) -> bytes:
        """Return all figures as text; a page that is slow to make takes at most 5 % of the time, however many ask.

        Those of each share are the operator's, as they name other clients.
        """
        now_s, started_s = time.monotonic(), time.thread_time()
        if now_s >= self._next_s or names_shares != self._names_shares:
            self._names_shares = names_shares
            self._page = generate_latest(self._registry)
            took_s = time.thread_time() - started_s
            self._next_s = now_s + 20 * took_s if took_s > LONG_S else -inf
        return self._page

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        sources = self._sources
        sources.metrics.fold()
        yield from _requests(sources.metrics)
        status = sources.status()
        yield from _status(status, names_shares=self._names_shares)
        yield _worker_cpu(status.history, names_shares=self._names_shares)
        yield from _connections(sources.connection_stats())
        text = "Lines of the access log that were not written."
        yield CounterMetricFamily("xformd_access_log_dropped", text, value=sources.access_log_dropped())
        yield from _facts(sources.plugins())


def _requests(metrics: Metrics) -> Iterator[Metric]:
    requests = CounterMetricFamily("xformd_requests", "Requests that are done.", labels=["transform", "front", "code"])
    for labels, count in sorted(metrics.requests.items()):
        requests.add_metric(labels, count)
    yield requests
    run_s = HistogramMetricFamily("xformd_run_seconds", "How long transforms ran.", labels=["transform"])
    for transform, histogram in metrics.run_seconds:
        run_s.add_metric([transform], _buckets(histogram), histogram.sum)
    yield run_s
    for name, text, histogram in (
        ("xformd_queue_seconds", "How long requests waited for a worker.", metrics.queue_seconds),
        ("xformd_poem_bytes", "How long the poems were.", metrics.poem_bytes),
        ("xformd_result_bytes", "How long the results were.", metrics.result_bytes),
    ):
        yield HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum)


def _status(status: ServerStatus, *, names_shares: bool) -> Iterator[Metric]:
    yield _gauge("xformd_in_flight", "Requests that wait for their outcome.", status.in_flight)
    yield _gauge("xformd_queue_length", "Jobs that wait for a worker.", status.queue_length)
    yield _gauge("xformd_queue_limit", "How many jobs may wait.", status.max_queue)
    workers = GaugeMetricFamily("xformd_workers", "Worker processes, by what they do.", labels=["state"])
    for state, count in status.workers.items():
        workers.add_metric([state], count)
    yield workers
    yield _gauge("xformd_workers_needed", "1 if there are transforms that run in workers.", status.needs_workers)
    yield _gauge("xformd_workers_proven", "Workers that have passed their self-test.", status.proven_workers)
    memory = GaugeMetricFamily(
        "xformd_process_memory_bytes", "Resident memory, shared memory included.", labels=["process", "number"]
    )
    for process, number, used_bytes in status.memory_bytes:
        memory.add_metric([process, str(number)], used_bytes)
    yield memory
    history = status.history
    for name, text, count in (
        ("xformd_worker_starts", "Worker processes that were started.", history.starts),
        ("xformd_worker_failed_starts", "Starts of workers that failed.", history.failed_starts),
        ("xformd_worker_deaths", "Workers that ended unexpectedly.", history.deaths),
    ):
        yield CounterMetricFamily(name, text, value=count)
    quarantined = GaugeMetricFamily(
        "xformd_quarantined", "1 for each transform in quarantine.", labels=["transform", "scope"]
    )
    for name in sorted(status.quarantined):
        quarantined.add_metric([name, "all"], 1)
    for name in sorted(status.quarantined_in_part) if names_shares else ():
        quarantined.add_metric([name, "part"], 1)
    yield quarantined


def _worker_cpu(history: WorkerHistory, *, names_shares: bool) -> Metric:
    used = CounterMetricFamily("xformd_worker_cpu_seconds", "CPU time of jobs.", labels=["share"])
    for share, seconds in sorted(history.cpu_s.items()) if names_shares else ():
        used.add_metric([share], seconds)
    if not names_shares:
        used.add_metric(["(all)"], sum(history.cpu_s.values()))
    return used


def _connections(connection_stats: Mapping[str, ConnectionStats]) -> Iterator[Metric]:
    are_open = GaugeMetricFamily("xformd_connections", "Open connections.", labels=["front"])
    refused = CounterMetricFamily(
        "xformd_connections_refused", "Connections that were refused.", labels=["front", "limit"]
    )
    cut_off = CounterMetricFamily(
        "xformd_connections_cut_off", "Connections that were closed because they took too long.", labels=["front"]
    )
    for front, stats in connection_stats.items():
        are_open.add_metric([front], stats.open)
        for limit, count in sorted(stats.refused.items()):
            refused.add_metric([front, limit], count)
        cut_off.add_metric([front], stats.cut_off)
    yield from (are_open, refused, cut_off)


def _facts(found: Iterable[tuple[str, str, str, str]]) -> Iterator[Metric]:
    plugins = GaugeMetricFamily(
        "xformd_plugin_info", "1 for each plugin.", labels=["plugin", "distribution", "version", "state"]
    )
    # Without duplicates: Prometheus rejects the whole page for one. Printable: a file's name may not be UTF-8.
    for labels in sorted({tuple(map(printable, each)) for each in found}):
        plugins.add_metric(labels, 1)
    yield plugins
    build = GaugeMetricFamily("xformd_build_info", "1: the version that runs.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [("+Inf" if bound == inf else str(float(bound)), count) for bound, count in histogram.cumulative]
