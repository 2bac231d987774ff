"""When to start a worker, when one is worn, when to ask again."""

from typing import Any

import pytest

from xformd.limits import Limits
from xformd.runners import policy
from xformd.runners.policy import retry_after_ms, start_delay_s, why_worn


@pytest.mark.parametrize(("failures", "delay_s"), [(0, 0), (1, 0.1), (2, 0.2), (7, 6.4), (8, 10), (10_000, 10)])
def test_the_delay_doubles_up_to_ten_seconds(failures: int, delay_s: float) -> None:
    assert start_delay_s(failures) == pytest.approx(delay_s)


LIMITS = Limits(max_jobs_per_worker=10, max_worker_growth_bytes=100)


@pytest.mark.parametrize(
    ("jobs", "growth_bytes", "why"),
    [
        (9, 100, ""),
        (0, -5, ""),
        (10, 0, "has done 10 jobs"),
        (1, 101, "has grown by 101 bytes"),
    ],
)
def test_a_worker_is_worn_by_jobs_or_by_growth(jobs: int, growth_bytes: int, why: str) -> None:
    assert why_worn(jobs, growth_bytes, LIMITS) == why


@pytest.mark.parametrize(
    ("waiting", "workers", "mean_job_s", "expected_ms"),
    [(1_000, 4, 0, 100), (100, 2, 0.1, 2_500), (1_000, 1, 10, 30_000), (10, 1, 0.001, 100)],
)
def test_one_should_come_back_when_half_are_likely_to_be_done(
    waiting: int, workers: int, mean_job_s: float, expected_ms: int
) -> None:
    assert retry_after_ms(waiting, workers, mean_job_s) == expected_ms


def listing_of(**versions: str) -> dict[str, Any]:
    listed = [{"name": name, "distribution": f"x-{name}", "version": version} for name, version in versions.items()]
    return {"transforms": listed}


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ({}, listing_of(owl="1"), ""),
        (listing_of(owl="1"), listing_of(owl="1"), ""),
        (listing_of(owl="1"), listing_of(owl="2"), "owl from x-owl 2, not from x-owl 1"),
        (listing_of(owl="1", cat="1"), listing_of(owl="1"), "cat from nowhere, not from x-cat 1"),
        (listing_of(owl="1"), listing_of(owl="1", cat="1"), "cat, which is new"),
    ],
)
def test_the_first_difference_between_the_plugins_of_two_workers(first: Any, other: Any, said: str) -> None:
    assert policy.difference(first, other) == said
