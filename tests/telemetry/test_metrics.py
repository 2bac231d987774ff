"""Counts and histograms are exact and bounded, whether values come one by one or in batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.telemetry.metrics import (
    BYTES,
    FOLD_AT,
    MAX_TRANSFORMS,
    NONE,
    OTHERS,
    SECONDS,
    UNKNOWN,
    BatchedCounts,
    Histogram,
    Metrics,
)

INF = float("inf")


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 1.5, 10, 11):
        histogram.observe(value)
    assert histogram.cumulative == [(1, 2), (10, 4), (INF, 5)]
    assert histogram.sum == 24


@given(st.lists(st.one_of(st.integers(0, 2**25), st.sampled_from(BYTES))))
def test_a_batch_counts_like_its_values(values: list[int]) -> None:
    one_by_one, at_once = Histogram(BYTES), Histogram(BYTES)
    for value in values:
        one_by_one.observe(value)
    at_once.take_all(values)
    assert values == []
    assert (at_once.cumulative, at_once.sum) == (one_by_one.cumulative, one_by_one.sum)


def test_the_bounds_reach_the_default_limits() -> None:
    for bounds in (SECONDS, BYTES):
        assert list(bounds) == sorted(set(bounds))
    assert SECONDS[-1] >= 30
    assert BYTES[-1] >= 10 * 1024 * 1024


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def batched_counts(metrics: Metrics) -> BatchedCounts:
    return metrics.batched_counts("upper", "session")


def ran(metrics: Metrics, transform: str) -> list[tuple[float, int]]:
    metrics.fold()
    return [pair for pair in dict(metrics.run_seconds)[transform].cumulative if pair[1]]


def test_batched_requests_share_their_time(metrics: Metrics, batched_counts: BatchedCounts) -> None:
    batched_counts.poems_bytes += (3, 4, 5)
    batched_counts.results_bytes += (30, 40, 50)
    batched_counts.ran(0.3)
    batched_counts.poems_bytes.append(6)  # a failure, which is counted elsewhere
    batched_counts.ran(7.0)
    assert ran(metrics, "upper")[0] == (0.1, 3)
    assert ran(metrics, "upper")[-1] == (INF, 4)
    assert dict(metrics.run_seconds)["upper"].sum == 0.3 + 7.0
    assert metrics.requests == {("upper", "session", "ok"): 3}
    assert (metrics.poem_bytes.sum, metrics.result_bytes.sum) == (18, 120)


def test_large_batches_fold_themselves_and_lose_nothing(metrics: Metrics, batched_counts: BatchedCounts) -> None:
    for _ in range(2 * FOLD_AT + 3):
        batched_counts.poems_bytes.append(1)
        batched_counts.results_bytes.append(1)
        batched_counts.ran(0.001)
        assert max(len(batched_counts.poems_bytes), len(batched_counts.results_bytes)) < FOLD_AT
    metrics.fold()
    metrics.fold()
    batched_counts.ran(5.0)  # nothing has run since
    assert metrics.requests["upper", "session", "ok"] == 2 * FOLD_AT + 3
    assert ran(metrics, "upper")[-1] == (INF, 2 * FOLD_AT + 3)


def test_the_number_of_labels_is_bounded(metrics: Metrics) -> None:
    for number in range(MAX_TRANSFORMS + 50):
        metrics.count(f"t{number}", "session", "ok")
        metrics.run_seconds_of(f"t{number}").observe(1)
        metrics.batched_counts(f"t{number}", "session")
    metrics.refused("session", "bad-request")
    labels = {transform for transform, _, _ in metrics.requests}
    assert len(labels) == MAX_TRANSFORMS - 3 + len({OTHERS, NONE}), "three labels of the module's own are among them"
    assert len([*metrics.run_seconds]) == MAX_TRANSFORMS - 3 + len({OTHERS})
    assert {OTHERS, NONE} <= labels
    assert sum(metrics.requests.values()) == MAX_TRANSFORMS + 51


def test_unregistered_names_share_a_label(metrics: Metrics) -> None:
    for code in ("no-such-transform", "ambiguous-transform", "bad-request"):
        metrics.refused("http", code)
    assert metrics.requests == {
        (UNKNOWN, "http", "no-such-transform"): 1,
        (UNKNOWN, "http", "ambiguous-transform"): 1,
        (NONE, "http", "bad-request"): 1,
    }


def test_a_transform_without_requests_has_no_count(metrics: Metrics, batched_counts: BatchedCounts) -> None:
    metrics.fold()
    assert not [*metrics.requests]
