"""Decisions about workers: placement, quarantine, when one is worn, when to ask again."""

from typing import Any

import pytest

from support.registries import PLACED
from xformd.errors import ConfigError
from xformd.limits import Limits
from xformd.runners.policy import (
    DEATH_WINDOW_S,
    EVERYBODY,
    LONG_POEM_BYTES,
    MAX_DEATHS,
    QUARANTINE_S,
    Placement,
    Quarantine,
    Scope,
    retry_after_ms,
    why_worn,
)


@pytest.mark.parametrize(
    ("placement", "isolated"),
    [
        (Placement(), {"plain"}),
        (Placement(inline=frozenset({"plain", "patient"})), set()),
        (Placement(isolate=frozenset({"quick"})), {"plain", "quick"}),
        (Placement(isolate=frozenset({"patient"})), {"plain"}),
        (Placement(inline=frozenset({"quick"}), isolate=frozenset({"quick"})), {"plain"}),
    ],
)
def test_the_operator_overrules_placement(placement: Placement, isolated: set[str]) -> None:
    assert {name for name, entry in PLACED.entries.items() if placement.is_isolated(entry.transform)} == isolated


@pytest.mark.parametrize(
    ("placement", "isolated"),
    [
        (Placement(), {"plain", "quick"}),
        (Placement(inline=frozenset({"quick"})), {"plain"}),
        (Placement(isolate=frozenset({"quick"})), {"plain", "quick"}),
    ],
)
def test_a_long_poem_goes_to_a_worker_unless_the_operator_keeps_it(placement: Placement, isolated: set[str]) -> None:
    placed = {
        size: {name for name, entry in PLACED.entries.items() if placement.is_isolated(entry.transform, size)}
        for size in (LONG_POEM_BYTES, LONG_POEM_BYTES + 1)
    }
    assert placed == {LONG_POEM_BYTES: {"plain"} | placement.isolate, LONG_POEM_BYTES + 1: isolated}


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("inline", "plian", "inline: no transform 'plian' here; did you mean 'plain'?"),
        ("isolate", "plian", "isolate: no transform 'plian' here; did you mean 'plain'?"),
        ("isolate", "patient", "isolate: patient awaits Deferreds and can only run in the server's reactor"),
    ],
)
def test_an_impossible_placement_is_rejected(setting: str, name: str, message: str) -> None:
    names: dict[str, Any] = {setting: frozenset({name})}
    with pytest.raises(ConfigError) as caught:
        Placement(**names).check(PLACED)
    assert (caught.value.message, caught.value.setting) == (message, setting)


def test_a_possible_placement_is_accepted() -> None:
    Placement(inline=frozenset({"plain", "patient"}), isolate=frozenset({"quick", "plain"})).check(PLACED)


@pytest.fixture
def quarantine() -> Quarantine:
    """``bomb`` is in quarantine since the time 0."""
    quarantine = Quarantine()
    assert [quarantine.died("bomb", 0) for _ in range(MAX_DEATHS)] == [None] * (MAX_DEATHS - 1) + [EVERYBODY]
    return quarantine


def test_a_transform_that_never_killed_has_no_record() -> None:
    quarantine = Quarantine()
    quarantine.begin("upper", 0)
    assert quarantine.survived("upper") is False
    quarantine.undecided("upper")
    assert quarantine.wait_s("upper", 0) is None
    assert not quarantine._records


def test_a_few_deaths_are_tolerated(quarantine: Quarantine) -> None:
    for _ in range(MAX_DEATHS - 1):
        assert quarantine.died("other", 0) is None
    assert quarantine.wait_s("other", 0) is None
    assert quarantine.names == {"bomb"}


@pytest.mark.parametrize(("last", "is_quarantined"), [(DEATH_WINDOW_S, True), (DEATH_WINDOW_S + 0.001, False)])
def test_deaths_count_for_a_minute(last: float, is_quarantined: bool) -> None:
    quarantine = Quarantine()
    for _ in range(MAX_DEATHS - 1):
        quarantine.died("bomb", 0)
    assert (quarantine.died("bomb", last) == EVERYBODY) is is_quarantined
    assert (quarantine.wait_s("bomb", last) is not None) is is_quarantined


def test_a_quarantine_lasts_half_a_minute_and_has_one_trial(quarantine: Quarantine) -> None:
    assert quarantine.wait_s("bomb", 0) == QUARANTINE_S
    assert quarantine.wait_s("bomb", QUARANTINE_S - 1) == 1
    assert quarantine.wait_s("bomb", QUARANTINE_S) is None
    quarantine.begin("bomb", QUARANTINE_S)
    assert quarantine.wait_s("bomb", QUARANTINE_S + 5) == QUARANTINE_S
    assert quarantine.names == {"bomb"}


def test_a_trial_that_survives_ends_the_quarantine(quarantine: Quarantine) -> None:
    assert quarantine.survived("bomb") is False  # a run from before the quarantine is no trial
    quarantine.begin("bomb", QUARANTINE_S)
    assert quarantine.survived("bomb") is True
    assert quarantine.names == frozenset()
    assert quarantine.died("bomb", QUARANTINE_S) is None


def test_a_trial_that_dies_renews_the_quarantine(quarantine: Quarantine) -> None:
    quarantine.begin("bomb", QUARANTINE_S)
    assert quarantine.died("bomb", 10_000) == EVERYBODY
    assert quarantine.wait_s("bomb", 10_000) == QUARANTINE_S
    assert quarantine.wait_s("bomb", 10_000 + QUARANTINE_S) is None


def test_a_trial_that_is_given_up_leaves_the_decision_to_the_next(quarantine: Quarantine) -> None:
    quarantine.begin("bomb", QUARANTINE_S)
    quarantine.undecided("bomb")
    assert quarantine.wait_s("bomb", QUARANTINE_S) is None
    assert quarantine.names == {"bomb"}


def test_a_run_from_before_the_quarantine_that_dies_renews_it(quarantine: Quarantine) -> None:
    assert quarantine.died("bomb", 20) == EVERYBODY
    assert quarantine.wait_s("bomb", QUARANTINE_S) == 20


def test_no_more_deaths_are_remembered_than_count() -> None:
    quarantine = Quarantine()
    for now in range(1_000):
        quarantine.died("bomb", now * 100)
    assert len(quarantine._records["bomb"].deaths) <= 20 * MAX_DEATHS
    assert quarantine.names == frozenset()


def die(quarantine: Quarantine, *shares: str, poem_bytes: int = 0) -> Scope | None:
    return [quarantine.died("bomb", 0, share, poem_bytes) for share in shares][-1]


def test_deaths_of_one_share_are_its_own() -> None:
    quarantine = Quarantine()
    assert die(quarantine, *["a"] * MAX_DEATHS) == Scope("a")
    assert quarantine.wait_s("bomb", 0, "a") == QUARANTINE_S
    assert quarantine.wait_s("bomb", 0, "b") is None
    assert quarantine.names == frozenset()
    assert die(quarantine, "b", "b", "c") == EVERYBODY
    assert quarantine.names == {"bomb"}


def test_one_other_death_does_not_make_it_everybodys() -> None:
    quarantine = Quarantine()
    assert die(quarantine, *["a"] * (MAX_DEATHS - 1), "b") is None


def test_deaths_of_long_poems_are_no_reason_to_refuse_short_ones() -> None:
    quarantine = Quarantine()
    long_bytes = LONG_POEM_BYTES + 1
    quarantine.died("bomb", 0, "e", 10 * long_bytes)
    scope = die(quarantine, "a", "b", "c", "d", poem_bytes=long_bytes)
    assert scope == Scope(None, long_bytes)
    assert str(scope) == f" for poems of {long_bytes} bytes and more"
    assert quarantine.wait_s("bomb", 0, "f", long_bytes) == QUARANTINE_S
    assert quarantine.wait_s("bomb", 0, "f", long_bytes - 1) is None
    assert quarantine.names == frozenset()


def test_the_trial_of_a_share_says_nothing_about_another() -> None:
    quarantine = Quarantine()
    for share in "ab":
        for _ in range(MAX_DEATHS):
            quarantine.died("bomb", 0 if share == "a" else DEATH_WINDOW_S + 1, share)
    quarantine.begin("bomb", QUARANTINE_S, "a")
    assert quarantine.survived("bomb", "a") is True
    assert quarantine.wait_s("bomb", DEATH_WINDOW_S + 1, "b") == QUARANTINE_S


def test_a_run_during_a_quarantine_is_no_trial(quarantine: Quarantine) -> None:
    """A pipeline that has begun before may reach the transform when it likes."""
    quarantine.begin("bomb", QUARANTINE_S - 1)
    assert quarantine.survived("bomb") is False
    assert quarantine.names == {"bomb"}


def test_poems_of_many_lengths_are_one_shares_still() -> None:
    quarantine = Quarantine()
    begun = [quarantine.died("bomb", number / 10, "a", 10_000_000 - number) for number in range(400)]
    assert {scope.share for scope in begun if scope is not None} == {"a"}
    assert quarantine.wait_s("bomb", 400 / 10, "b", 10_000_000) is None


def test_what_was_over_long_ago_does_not_count_for_everybody() -> None:
    quarantine = Quarantine()
    for day in range(200):
        begun = [quarantine.died("bomb", day * 86_400, f"{day}") for _ in range(MAX_DEATHS)]
        assert begun[-1] == Scope(f"{day}")


LIMITS = Limits(max_jobs_per_worker=10, max_worker_growth_bytes=100)


@pytest.mark.parametrize(
    ("jobs", "growth_bytes", "why"),
    [(9, 100, ""), (0, -5, ""), (10, 0, "has done 10 jobs"), (1, 101, "has grown by 101 bytes")],
)
def test_a_worker_is_worn_by_jobs_or_by_growth(jobs: int, growth_bytes: int, why: str) -> None:
    assert why_worn(jobs, growth_bytes, LIMITS) == why


@pytest.mark.parametrize(
    ("waiting", "workers", "mean_job_s", "expected_ms"),
    [(1_000, 4, 0, 100), (100, 2, 0.1, 2_500), (1_000, 1, 10, 30_000), (10, 1, 0.001, 100)],
)
def test_retry_after_is_when_half_are_done(waiting: int, workers: int, mean_job_s: float, expected_ms: int) -> None:
    assert retry_after_ms(waiting, workers, mean_job_s) == expected_ms
