"""Only a transform that kills its worker again and again is quarantined, and every client can see it.

The trial request after a quarantine is tested with a clock, in the tests of the pool.
"""

import json

import pytest

from support.hostile import Hostile, codes
from support.processes import wait_until, xformd
from support.session_client import Session, retry_after_s

pytestmark = pytest.mark.slow

DEATHS = 5
"""This many within a minute put a transform into quarantine."""

PERIOD_S = 60


def states(hostile: Hostile) -> dict[str, str]:
    """Return the state of each transform, as the command lists it."""
    listed = xformd("list-transforms", "--server", hostile.server.address, "--json")
    assert listed.returncode == 0, listed.stderr
    return {transform["name"]: transform["state"] for transform in json.loads(listed.stdout)["transforms"]}


def test_after_five_deaths_a_transform_is_unavailable_and_others_are_not(hostile: Hostile, session: Session) -> None:
    for number in range(DEATHS):
        assert states(hostile)["crash-1"] == "active"
        with Session(hostile.server, f"127.0.0.{10 + number // 2}") as one_of_three:
            assert one_of_three.ask("crash-1").code == "transform-died"
    refused = session.ask("crash-1")
    assert refused.code == "unavailable", refused.poem
    assert 0 < retry_after_s(refused) <= PERIOD_S
    shown = states(hostile)
    assert (shown["crash-1"], shown["crash-2"], shown["pid"]) == ("quarantined", "active", "active")
    assert codes([session.ask("crash-2"), session.ask("pid")]) == ["transform-died", "ok"]
    wait_until(lambda: any("crash-1" in line and "quarantine" in line for line in hostile.server.log.splitlines()))


def test_five_deaths_of_one_peer_keep_nobody_else_from_the_transform(hostile: Hostile, session: Session) -> None:
    assert codes([session.ask("crash-4") for _ in range(DEATHS + 1)]) == ["transform-died"] * DEATHS + ["unavailable"]
    assert states(hostile)["crash-4"] == "active"
    with Session(hostile.server, "127.0.0.9") as other:
        assert other.ask("crash-4").code == "transform-died"
    wait_until(lambda: "crash-4 is in quarantine for 127.0.0.1" in hostile.server.log)


def test_a_death_in_a_pipeline_counts_against_its_own_step(hostile: Hostile, session: Session) -> None:
    """Once that is quarantined, no other step of a pipeline runs."""
    died = [session.ask("pid+crash-3+sleep") for _ in range(DEATHS)]
    assert codes(died) == ["transform-died"] * DEATHS
    assert codes([session.ask("pid:marker=unused+crash-3"), session.ask("pid+sleep")]) == ["unavailable", "ok"]
    assert not hostile.started("unused")


def test_neither_failures_nor_cancelled_calls_lead_to_quarantine(hostile: Hostile, session: Session) -> None:
    for number in range(2 * DEATHS):
        assert session.ask("raises").code == "transform-failed"
        marker = f"cancelled-{number}"
        (sent,) = session.send((f"sleep:seconds=300,marker={marker}", b""))
        hostile.wait_for(marker)
        session.cancel(sent)
        assert codes(session.collect([sent])) == ["cancelled"]
    assert session.ask("sleep").code == "ok"
    assert states(hostile)["raises"] == "active"
