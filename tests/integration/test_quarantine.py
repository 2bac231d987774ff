"""A transform that kills its worker again and again is quarantined, which everybody can see, and nobody else is.

That one trial request decides once the time is over is shown with a clock, beside the pool.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hostile import Hostile, codes, hostile_server
from support.packages import Environment
from support.processes import wait_until, xformd
from support.session_client import Session, retry_after_s

pytestmark = pytest.mark.slow

DEATHS = 5
"""So many of them within a minute, and the transform is quarantined."""

PERIOD_S = 60


@pytest.fixture
def hostile(hostile_environment: Environment, tmp_path: Path) -> Iterator[Hostile]:
    """A server of its own for each test: what one has quarantined, another cannot use."""
    with hostile_server(hostile_environment, tmp_path) as running:
        yield running


def states(hostile: Hostile) -> dict[str, str]:
    """Give the state of each transform, as the command tells it."""
    listed = xformd("list-transforms", "--server", hostile.server.address, "--json")
    assert listed.returncode == 0, listed.stderr
    return {transform["name"]: transform["state"] for transform in json.loads(listed.stdout)["transforms"]}


def test_after_five_deaths_a_transform_is_unavailable_and_others_are_not(hostile: Hostile) -> None:
    with Session(hostile.server) as session:
        for _ in range(DEATHS - 1):
            assert session.ask("crash-1").code == "transform-died"
        assert states(hostile)["crash-1"] == "active"
        assert session.ask("crash-1").code == "transform-died"
        refused = session.ask("crash-1")
        assert refused.code == "unavailable", refused.poem
        assert 0 < retry_after_s(refused) <= PERIOD_S
        assert refused.elapsed_s < 0.2
        shown = states(hostile)
        assert (shown["crash-1"], shown["crash-2"], shown["pid"]) == ("quarantined", "active", "active")
        assert codes([session.ask("crash-2"), session.ask("pid")]) == ["transform-died", "ok"]
        wait_until(lambda: any("crash-1" in line and "quarantine" in line for line in hostile.server.log.splitlines()))


def test_a_pipeline_with_a_quarantined_step_is_unavailable_before_it_runs(hostile: Hostile) -> None:
    with Session(hostile.server) as session:
        for _ in range(DEATHS):
            session.ask("crash-1")
        assert session.ask("pid:marker=never-noted+crash-1").code == "unavailable"
        assert not hostile.started("never-noted")


def test_deaths_in_a_pipeline_count_against_the_step_that_died(hostile: Hostile) -> None:
    with Session(hostile.server) as session:
        died = [session.ask("pid+crash-1+sleep") for _ in range(DEATHS)]
        assert codes(died) == ["transform-died"] * DEATHS
        assert codes([session.ask("crash-1"), session.ask("pid+sleep")]) == ["unavailable", "ok"]


def test_a_transform_that_fails_without_killing_anything_is_never_quarantined(hostile: Hostile) -> None:
    with Session(hostile.server) as session:
        assert codes([session.ask("raises") for _ in range(2 * DEATHS)]) == ["transform-failed"] * 2 * DEATHS
        assert states(hostile)["raises"] == "active"


def test_calls_that_their_clients_give_up_quarantine_nothing(hostile: Hostile) -> None:
    """The worker is killed each time, yet the transform has done no wrong."""
    with Session(hostile.server) as session:
        for number in range(2 * DEATHS):
            marker = f"given-up-{number}"
            (sent,) = session.send((f"sleep:seconds=30,marker={marker}", b""))
            hostile.wait_for(marker)
            session.cancel(sent)
            assert codes(session.collect([sent])) == ["cancelled"]
        assert session.ask("sleep").code == "ok"
