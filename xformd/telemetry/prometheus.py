"""Export a server's metrics to Prometheus; ``docs/monitoring.md`` shows what each says of itself.

Invariant: only xformd's own metrics appear here, never what a plugin registers: the registry is not the global one. All
figures are collected at the time of the request, unless that takes long.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf

import attrs
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from xformd import __version__
from xformd.errors import printable
from xformd.telemetry.metrics import ConnectionStats, Histogram, Metrics
from xformd.telemetry.reloads import ReloadHistory
from xformd.telemetry.status import ServerStatus

Family = type[GaugeMetricFamily] | type[CounterMetricFamily]

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
    reloads: Callable[[], ReloadHistory] = ReloadHistory
    jobs: Callable[[], Mapping[str, int]] = dict  # how many there are, by state


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
        yield from _status(sources.status(), names_shares=self._names_shares)
        yield from _connections(sources.connection_stats())
        text = "Lines of the access log that were not written."
        yield CounterMetricFamily("xformd_access_log_dropped", text, value=sources.access_log_dropped())
        by_state = [([state], count) for state, count in sources.jobs().items()]
        yield _gauges("xformd_jobs", "Jobs over HTTP that are kept, by their state.", "state", by_state)
        yield from _reloads(sources.reloads())
        yield from _facts(sources.plugins())


def _requests(metrics: Metrics) -> Iterator[Metric]:
    text = "Requests that are done, by their outcome."
    yield _counters("xformd_requests", text, "transform front code", sorted(metrics.requests.items()))
    run_s = HistogramMetricFamily("xformd_run_seconds", "How long transforms ran, wherever.", labels=["transform"])
    for transform, histogram in metrics.run_seconds:
        run_s.add_metric([transform], _buckets(histogram), histogram.sum)
    yield run_s
    for name, text, histogram in (
        ("xformd_queue_seconds", "How long requests waited for a worker, if at all.", metrics.queue_seconds),
        ("xformd_poem_bytes", "How long the poems were that reached the service.", metrics.poem_bytes),
        ("xformd_result_bytes", "How long the results were.", metrics.result_bytes),
    ):
        yield HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.sum)


def _status(status: ServerStatus, *, names_shares: bool) -> Iterator[Metric]:
    yield _gauge("xformd_in_flight", "Requests that wait for their outcome.", status.in_flight)
    yield _gauge("xformd_queue_length", "Jobs that wait for a worker.", status.queue_length)
    yield _gauge("xformd_queue_limit", "How many jobs may wait: max_queue.", status.max_queue)
    by_state = [([state], count) for state, count in status.workers.items()]
    yield _gauges("xformd_workers", "Worker processes, by what they do.", "state", by_state)
    yield _gauge("xformd_workers_needed", "1 if there are transforms that run in workers.", status.needs_workers)
    yield _gauge("xformd_workers_proven", "Workers that have passed their self-test.", status.proven_workers)
    text = "Resident memory; what workers share with their fork server is in the figure of each."
    memory = [([process, str(number)], used_bytes) for process, number, used_bytes in status.memory_bytes]
    yield _gauges("xformd_process_memory_bytes", text, "process number", memory)
    text = "1: what tells the transforms of this server from those of another."
    yield _gauges("xformd_transforms_info", text, "fingerprint", [([status.fingerprint], 1)])
    history = status.history
    for name, text, count in (
        ("xformd_worker_starts", "Worker processes that were started, also to replace others.", history.starts),
        ("xformd_worker_failed_starts", "Starts that failed, which delays the next.", history.failed_starts),
        ("xformd_worker_deaths", "Workers that crashed, ran out of memory or were killed.", history.deaths),
    ):
        yield CounterMetricFamily(name, text, value=count)
    quarantined = [([name, "all"], 1) for name in sorted(status.quarantined)]
    if names_shares:
        quarantined += [([name, "part"], 1) for name in sorted(status.quarantined_in_part)]
    yield _gauges("xformd_quarantined", "1 for each transform in quarantine.", "transform scope", quarantined)
    cpu_s = history.cpu_s if names_shares else {"(all)": sum(history.cpu_s.values())}
    by_share = [([share], used_s) for share, used_s in sorted(cpu_s.items())]
    text = "CPU time of jobs, without the processes that they start."
    yield _counters("xformd_worker_cpu_seconds", text, "share", by_share)


def _connections(connection_stats: Mapping[str, ConnectionStats]) -> Iterator[Metric]:
    found = connection_stats.items()
    yield _gauges("xformd_connections", "Open connections.", "front", [([front], stats.open) for front, stats in found])
    refused = [([front, limit], count) for front, stats in found for limit, count in sorted(stats.refused.items())]
    yield _counters("xformd_connections_refused", "Connections closed for a limit.", "front limit", refused)
    cut_off = [([front], stats.cut_off) for front, stats in found]
    text = "Connections that were aborted because the client was too slow to send or to read."
    yield _counters("xformd_connections_cut_off", text, "front", cut_off)


def _reloads(history: ReloadHistory) -> Iterator[Metric]:
    ended = [(["ok"], history.succeeded), (["failed"], history.failed)]
    yield _counters("xformd_reloads", "Reloads that have ended.", "outcome", ended)
    text = "When the settings and plugins that are in use were read, in seconds since 1970."
    yield _gauge("xformd_last_reload_success_timestamp_seconds", text, history.last_success_at)


def _facts(found: Iterable[tuple[str, str, str, str]]) -> Iterator[Metric]:
    # Without duplicates: Prometheus rejects the whole page for one. Printable: a file's name may not be UTF-8.
    plugins = [(each, 1) for each in sorted({tuple(map(printable, each)) for each in found})]
    yield _gauges("xformd_plugin_info", "1 for each plugin.", "plugin distribution version state", plugins)
    yield _gauges("xformd_build_info", "1: the version that runs.", "version", [([__version__], 1)])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(kind: Family, name: str, text: str, labels: str, rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = kind(name, text, labels=labels.split())
    for values, value in rows:
        family.add_metric(values, value)
    return family


_gauges = partial(_labelled, GaugeMetricFamily)
_counters = partial(_labelled, CounterMetricFamily)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    return [("+Inf" if bound == inf else str(float(bound)), count) for bound, count in histogram.cumulative]
