"""What Prometheus reads parses, says what was counted, and cannot be broken by the name of a plugin."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from support.metrics import PLUGIN, exported
from xformd.telemetry import prometheus
from xformd.telemetry.metrics import ConnectionStats, Metrics


def read(
    metrics: Metrics | None = None,
    plugins: Sequence[tuple[str, str, str, str]] = (PLUGIN,),
    **connection_stats: ConnectionStats,
) -> dict[Any, float]:
    """Return each sample by its name and labels; a duplicate fails here as it would fail a scrape."""
    samples: dict[Any, float] = {}
    for family in exported(metrics or Metrics(), connection_stats, [*plugins]):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def test_the_status_the_build_and_the_process_are_exported() -> None:
    samples = read()
    names = ("in_flight", "queue_length", "queue_limit", "workers_needed", "workers_proven")
    assert [samples[f"xformd_{name}",] for name in names] == [7, 3, 100, 1, 6]
    assert [samples[f"xformd_worker_{name}_total",] for name in ("starts", "failed_starts", "deaths")] == [9, 1, 2]
    assert samples["xformd_workers", ("state", "busy")] == 4
    assert samples["xformd_process_memory_bytes", ("number", "2"), ("process", "worker")] == 1_000
    assert samples["xformd_quarantined", ("scope", "all"), ("transform", "crash")] == 1
    assert samples["xformd_transforms_info", ("fingerprint", "3f9c")] == 1
    assert [key for key in samples if key[0] == "xformd_build_info"]
    assert samples["process_open_fds",] > 0


def test_the_cpu_time_of_each_share_is_named_for_the_operator_alone() -> None:
    def used(**options: bool) -> dict[str, float]:
        families = exported(Metrics(), {}, [PLUGIN], **options)
        samples = [sample for family in families for sample in family.samples]
        return {each.labels["share"]: each.value for each in samples if each.name == "xformd_worker_cpu_seconds_total"}

    def scopes(**options: bool) -> set[str]:
        families = exported(Metrics(), {}, [PLUGIN], **options)
        samples = [sample for family in families for sample in family.samples]
        return {each.labels["scope"] for each in samples if each.name == "xformd_quarantined"}

    assert (scopes(), scopes(names_shares=True)) == ({"all"}, {"all", "part"})
    assert used() == {"(all)": 5}
    assert used(names_shares=True) == {"192.0.2.1": 3.5, "2001:db8::/64": 1.5}


def test_a_page_that_takes_long_is_made_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clock = Mock(side_effect=range(100)), Mock()
    monkeypatch.setattr(prometheus, "generate_latest", made)
    monkeypatch.setattr(prometheus, "time", clock)
    exporter = prometheus.PrometheusExporter(Mock())

    def render(now_s: float, took_s: float) -> Any:
        clock.monotonic.return_value, clock.thread_time.side_effect = now_s, [0, took_s]
        return exporter.render()

    found = [render(now_s, 0.1) for now_s in (0.0, 1.9, 2.1, 3.9)]
    assert (found, render(5, 0.01), render(5, 0.01), made.call_count) == ([0, 0, 1, 1], 2, 3, 4)


def test_requests_are_exported_also_those_not_yet_folded() -> None:
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


def test_connections_are_exported_by_front() -> None:
    samples = read(netstring=ConnectionStats(3, {"peer": 2}, 1), http=ConnectionStats(1, {}, 0))
    assert samples["xformd_connections", ("front", "netstring")] == 3
    assert samples["xformd_connections", ("front", "http")] == 1
    assert samples["xformd_connections_refused_total", ("front", "netstring"), ("limit", "peer")] == 2
    assert samples["xformd_connections_cut_off_total", ("front", "netstring")] == 1


def test_hostile_names_add_no_line_and_no_label() -> None:
    names = ('x"} 1\nxformd_evil{a="\\', "no-utf-8-\udcff", "twice", "twice")
    samples = read(plugins=[(name, f"{name}.py", "1", "failed") for name in names])
    exported_names = [dict(key[1:])["plugin"] for key in samples if key[0] == "xformd_plugin_info"]
    assert len(exported_names) == 3
    assert not [key for key in samples if "evil" in key[0]]
