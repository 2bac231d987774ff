"""Counts and histograms: exact, bounded, and the same whether values come one by one or many at a time."""

from hypothesis import given
from hypothesis import strategies as st

from xformd.telemetry.metrics import BYTES, FOLD_AT, MAX_TRANSFORMS, NONE, OTHERS, SECONDS, UNKNOWN, Histogram, Metrics

INF = float("inf")


def test_a_value_is_in_the_bucket_of_its_bound_and_in_those_after() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 1.5, 10, 11):
        histogram.observe(value)
    assert histogram.cumulative == [(1, 2), (10, 4), (INF, 5)]
    assert histogram.sum == 24


@given(st.lists(st.one_of(st.integers(0, 2**25), st.sampled_from(BYTES))))
def test_many_values_count_as_each_would(values: list[int]) -> None:
    one_by_one, at_once = Histogram(BYTES), Histogram(BYTES)
    for value in values:
        one_by_one.observe(value)
    at_once.take_all(values)
    assert values == []
    assert (at_once.cumulative, at_once.sum) == (one_by_one.cumulative, one_by_one.sum)


def test_the_bounds_reach_from_what_is_usual_to_what_is_allowed() -> None:
    for bounds in (SECONDS, BYTES):
        assert list(bounds) == sorted(set(bounds))
    assert SECONDS[-1] >= 30
    assert BYTES[-1] >= 10 * 1024 * 1024


def ran(metrics: Metrics, transform: str) -> list[tuple[float, int]]:
    metrics.fold()
    return [pair for pair in dict(metrics.run_seconds)[transform].cumulative if pair[1]]


def test_requests_that_are_taken_down_share_their_time() -> None:
    metrics = Metrics()
    batched_counts = metrics.batched_counts("upper", "session")
    for size in (3, 4, 5):
        batched_counts.poems_bytes.append(size)
        batched_counts.results_bytes.append(10 * size)
    batched_counts.ran(0.3)
    batched_counts.poems_bytes.append(6)  # which fails, and is counted by somebody else
    batched_counts.ran(7.0)
    assert ran(metrics, "upper")[0] == (0.1, 3)
    assert ran(metrics, "upper")[-1] == (INF, 4)
    assert dict(metrics.run_seconds)["upper"].sum == 0.3 + 7.0
    assert metrics.requests == {("upper", "session", "ok"): 3}
    assert (metrics.poem_bytes.sum, metrics.result_bytes.sum) == (18, 120)


def test_nothing_is_lost_or_counted_twice_however_often_somebody_looks() -> None:
    metrics = Metrics()
    batched_counts = metrics.batched_counts("upper", "session")
    for _ in range(2 * FOLD_AT + 3):
        batched_counts.poems_bytes.append(1)
        batched_counts.results_bytes.append(1)
        batched_counts.ran(0.001)
    metrics.fold()
    metrics.fold()
    batched_counts.ran(5.0)  # nothing has run since
    assert metrics.requests["upper", "session", "ok"] == 2 * FOLD_AT + 3
    assert ran(metrics, "upper")[-1] == (INF, 2 * FOLD_AT + 3)


def test_what_is_taken_down_does_not_grow_when_nobody_looks() -> None:
    batched_counts = Metrics().batched_counts("upper", "session")
    for _ in range(10 * FOLD_AT):
        batched_counts.poems_bytes.append(1)
        batched_counts.results_bytes.append(1)
        batched_counts.ran(0.001)
    assert max(len(batched_counts.poems_bytes), len(batched_counts.results_bytes)) < FOLD_AT


def test_the_transforms_that_are_told_apart_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_TRANSFORMS + 50):
        metrics.count(f"t{number}", "session", "ok")
        metrics.run_seconds_of(f"t{number}").observe(1)
        metrics.batched_counts(f"t{number}", "session")
    metrics.refused("session", "bad-request")
    labels = {transform for transform, _, _ in metrics.requests}
    assert len(labels) == MAX_TRANSFORMS - 3 + len({OTHERS, NONE}), "three labels of its own are among them"
    assert len([*metrics.run_seconds]) == MAX_TRANSFORMS - 3 + len({OTHERS})
    assert {OTHERS, NONE} <= labels
    assert sum(metrics.requests.values()) == MAX_TRANSFORMS + 51


def test_a_name_that_is_not_registered_stands_under_one_label_wherever_that_is_found_out() -> None:
    metrics = Metrics()
    for code in ("no-such-transform", "ambiguous-transform", "bad-request"):
        metrics.refused("http", code)
    assert metrics.requests == {
        (UNKNOWN, "http", "no-such-transform"): 1,
        (UNKNOWN, "http", "ambiguous-transform"): 1,
        (NONE, "http", "bad-request"): 1,
    }


def test_what_nobody_has_asked_for_has_no_line() -> None:
    metrics = Metrics()
    metrics.batched_counts("upper", "session")
    metrics.fold()
    assert not [*metrics.requests]
