"""What Prometheus reads: it parses, it says what was counted, and no name that a client or a file chose harms it."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from support.registries import registry_of
from xformd import transform
from xformd.plugins.registry import Plugin, Registry
from xformd.telemetry.metrics import ConnectionStats, Metrics
from xformd.telemetry.prometheus import PrometheusExporter, Sources
from xformd.telemetry.status import ServerStatus, WorkerHistory


@transform
def upper(poem: str) -> str:
    return poem.upper()


VITALS = ServerStatus(
    queue_length=3,
    max_queue=100,
    workers={"starting": 1, "idle": 2, "busy": 4, "ending": 0},
    proven_workers=6,
    needs_workers=True,
    history=WorkerHistory(starts=9, failed_starts=1, deaths=2),
    quarantined=frozenset({"crash"}),
    in_flight=7,
)


def read(
    metrics: Metrics | None = None, registry: Registry | None = None, **connection_stats: ConnectionStats
) -> dict[Any, float]:
    """Give each sample by its name and labels; a sample that is there twice fails, as it would fail a scrape."""
    sources = Sources(
        metrics or Metrics(),
        lambda: VITALS,
        lambda: [(p.name, p.distribution, p.version, p.state) for p in (registry or registry_of(upper)).plugins],
        lambda: connection_stats,
    )
    samples: dict[Any, float] = {}
    for family in text_string_to_metric_families(PrometheusExporter(sources).render().decode()):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def test_vitals_are_told() -> None:
    samples = read()
    assert samples["xformd_in_flight",] == 7
    assert samples["xformd_queue_length",] == 3
    assert samples["xformd_queue_limit",] == 100
    assert samples["xformd_workers", ("state", "busy")] == 4
    assert samples["xformd_workers_needed",] == 1
    assert samples["xformd_workers_proven",] == 6
    assert samples["xformd_worker_starts_total",] == 9
    assert samples["xformd_worker_failed_starts_total",] == 1
    assert samples["xformd_worker_deaths_total",] == 2
    assert samples["xformd_quarantined", ("transform", "crash")] == 1


def test_what_was_counted_is_told_also_what_was_only_taken_down() -> None:
    metrics = Metrics()
    metrics.refused("http", "too-large")
    batched_counts = metrics.batched_counts("upper", "session")
    batched_counts.poems_bytes.append(20)
    batched_counts.results_bytes.append(70)
    batched_counts.ran(0.002)
    samples = read(metrics)
    assert samples["xformd_requests_total", ("code", "ok"), ("front", "session"), ("transform", "upper")] == 1
    assert samples["xformd_requests_total", ("code", "too-large"), ("front", "http"), ("transform", "(none)")] == 1
    assert samples["xformd_run_seconds_bucket", ("le", "0.001"), ("transform", "upper")] == 0
    assert samples["xformd_run_seconds_bucket", ("le", "0.0025"), ("transform", "upper")] == 1
    assert samples["xformd_run_seconds_bucket", ("le", "+Inf"), ("transform", "upper")] == 1
    assert samples["xformd_run_seconds_sum", ("transform", "upper")] == 0.002
    assert samples["xformd_poem_bytes_bucket", ("le", "64.0")] == 1
    assert samples["xformd_result_bytes_sum",] == 70


def test_connections_are_told_by_front() -> None:
    samples = read(netstring=ConnectionStats(3, {"peer": 2}, 1), http=ConnectionStats(1, {}, 0))
    assert samples["xformd_connections", ("front", "netstring")] == 3
    assert samples["xformd_connections", ("front", "http")] == 1
    assert samples["xformd_connections_refused_total", ("front", "netstring"), ("limit", "peer")] == 2
    assert samples["xformd_connections_cut_off_total", ("front", "netstring")] == 1


def plugin(name: str, version: str = "1") -> Plugin:
    return Plugin(name=name, distribution=f"{name}.py", version=version, source=name, state="failed", reason="broken")


def test_hostile_names_add_no_line_and_no_label() -> None:
    hostile = 'x"} 1\nxformd_evil{a="\\'
    samples = read(
        registry=Registry({}, (plugin(hostile), plugin("no-utf-8-\udcff"), plugin("twice"), plugin("twice")))
    )
    told = [dict(key[1:])["plugin"] for key in samples if key[0] == "xformd_plugin_info"]
    assert len(told) == 3
    assert not [key for key in samples if "evil" in key[0]]


def test_it_says_of_itself_what_it_is() -> None:
    samples = read()
    assert [key for key in samples if key[0] == "xformd_build_info"]
    assert samples["process_open_fds",] > 0
