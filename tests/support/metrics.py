"""What a Prometheus exporter gets from a server, and what it renders."""

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from xformd.telemetry.metrics import ConnectionStats, Metrics
from xformd.telemetry.prometheus import PrometheusExporter, Sources
from xformd.telemetry.status import ServerStatus, WorkerHistory

STATUS = ServerStatus(
    queue_length=3,
    max_queue=100,
    workers={"starting": 1, "idle": 2, "busy": 4, "ending": 0},
    proven_workers=6,
    needs_workers=True,
    history=WorkerHistory(starts=9, failed_starts=1, deaths=2, cpu_s=Counter({"192.0.2.1": 3.5, "2001:db8::/64": 1.5})),
    quarantined=frozenset({"crash"}),
    quarantined_in_part=frozenset({"bomb"}),
    in_flight=7,
    fingerprint="3f9c",
    memory_bytes=(("server", 1, 9_000), ("fork-server", 1, 2_000), ("worker", 1, 1_000), ("worker", 2, 1_000)),
)

PLUGIN = ("xformd-owl", "owl", "1", "active")


def exported(
    metrics: Metrics,
    connection_stats: Mapping[str, ConnectionStats],
    plugins: list[tuple[str, str, str, str]],
    **options: bool,
) -> Iterable[Metric]:
    """Render a server's metrics, and parse them as Prometheus does."""
    sources = Sources(metrics, lambda: STATUS, lambda: plugins, lambda: connection_stats)
    return text_string_to_metric_families(PrometheusExporter(sources).render(**options).decode())


def example(**options: bool) -> dict[str, tuple[str, set[str], str, set[str]]]:
    """Return each metric that a server exports with its type, its labels, its meaning and its samples' names."""
    metrics = Metrics()
    metrics.count("upper", "session", "ok")
    metrics.run_seconds_of("upper").observe(1)
    found = {}
    for family in exported(metrics, {"netstring": ConnectionStats(1, {"total": 1}, 1)}, [PLUGIN], **options):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels, family.documentation, {sample.name for sample in family.samples})
    return found
