"""Quarantine: five deaths within a minute, half a minute of rest, then one run that decides."""

import pytest

from xformd.runners.quarantine import MAX_DEATHS, PAUSE_S, WINDOW_S, Quarantine


@pytest.fixture
def resting() -> Quarantine:
    """``bomb`` is in quarantine since the time 0."""
    quarantine = Quarantine()
    assert [quarantine.died("bomb", 0) for _ in range(MAX_DEATHS)] == [False] * (MAX_DEATHS - 1) + [True]
    return quarantine


def test_what_never_killed_anything_may_run_and_costs_nothing() -> None:
    quarantine = Quarantine()
    quarantine.begin("upper")
    assert quarantine.survived("upper") is False
    quarantine.undecided("upper")
    assert quarantine.wait_s("upper", 0) is None
    assert not quarantine._records


def test_a_few_deaths_are_borne(resting: Quarantine) -> None:
    for _ in range(MAX_DEATHS - 1):
        assert resting.died("other", 0) is False
    assert resting.wait_s("other", 0) is None
    assert resting.names == {"bomb"}


@pytest.mark.parametrize(("last", "rests"), [(WINDOW_S, True), (WINDOW_S + 0.001, False)])
def test_deaths_count_for_a_minute(last: float, rests: bool) -> None:
    quarantine = Quarantine()
    for _ in range(MAX_DEATHS - 1):
        quarantine.died("bomb", 0)
    assert quarantine.died("bomb", last) is rests
    assert (quarantine.wait_s("bomb", last) is not None) is rests


def test_it_rests_for_half_a_minute(resting: Quarantine) -> None:
    assert resting.wait_s("bomb", 0) == PAUSE_S
    assert resting.wait_s("bomb", PAUSE_S - 1) == 1
    assert resting.wait_s("bomb", PAUSE_S) is None


def test_only_one_tries(resting: Quarantine) -> None:
    resting.begin("bomb")
    assert resting.wait_s("bomb", PAUSE_S + 5) == PAUSE_S
    assert resting.names == {"bomb"}


def test_a_trial_that_survives_ends_it_and_wipes_the_slate(resting: Quarantine) -> None:
    resting.begin("bomb")
    assert resting.survived("bomb") is True
    assert resting.names == frozenset()
    assert resting.died("bomb", PAUSE_S) is False


def test_a_trial_that_dies_begins_it_again_however_late(resting: Quarantine) -> None:
    resting.begin("bomb")
    assert resting.died("bomb", 10_000) is True
    assert resting.wait_s("bomb", 10_000) == PAUSE_S
    assert resting.wait_s("bomb", 10_000 + PAUSE_S) is None


def test_a_trial_that_is_given_up_leaves_the_decision_to_the_next(resting: Quarantine) -> None:
    resting.begin("bomb")
    resting.undecided("bomb")
    assert resting.wait_s("bomb", PAUSE_S) is None
    assert resting.names == {"bomb"}


def test_an_answer_of_a_run_that_began_before_decides_nothing(resting: Quarantine) -> None:
    assert resting.survived("bomb") is False
    assert resting.names == {"bomb"}


def test_a_death_of_a_run_that_began_before_prolongs_it(resting: Quarantine) -> None:
    assert resting.died("bomb", 20) is True
    assert resting.wait_s("bomb", PAUSE_S) == 20


def test_no_more_deaths_are_remembered_than_count() -> None:
    quarantine = Quarantine()
    for now in range(1_000):
        quarantine.died("bomb", now * 100)
    assert len(quarantine._records["bomb"].deaths) == MAX_DEATHS
    assert quarantine.names == frozenset()
