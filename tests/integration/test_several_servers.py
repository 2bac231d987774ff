"""Real servers with no balancer before them but the client: killed under load, busy for long, and vanished."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.several_servers import KNOWN, Load, beside_long_one, killed
from support.machines import Machine, linked
from support.processes import XFORMD, serving

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machines")]

TIMEOUT_S, LEFT_OUT_S, BACK_S = 2.0, 3.0, 5.0
LATE_S = 1.0  # a busy machine


@pytest.mark.parametrize("through_proxy", [False, True], ids=["TransformProxy", "xformd proxy"])
def test_a_killed_server_loses_only_what_it_had_and_must_not_run_twice_and_that_says_so(
    tmp_path: Path, through_proxy: bool
) -> None:
    found = killed(tmp_path, 500, through_proxy=through_proxy, kills=2)
    assert [len(outcome.answered) for outcome in found.values()] == [500, 500]
    assert found["work"].lost == []
    once = found["once"]
    assert once.unexplained == []
    assert len(once.lost) <= 4  # the request of a worker for each server that was killed, and one that was on its way
    assert set(once.begun.values()) == {1}


def test_no_quick_request_waits_for_one_that_takes_long(tmp_path: Path) -> None:
    assert beside_long_one(tmp_path, 180) < 2


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[list[Machine], Load]]:
    """Three machines, and a client that asks them all the time, a few requests at once."""
    with ExitStack() as stack:
        client, machines = stack.enter_context(linked(tmp_path, 3))
        for machine in machines:
            logs = tmp_path / machine.namespace
            logs.mkdir()
            where = ("--listen", f"tcp:11000:interface={machine.address}", "--plugins=none")
            stack.enter_context(serving(logs, *where, command=[*machine.command, *XFORMD]))
        servers = ",".join(f"{machine.address}:11000" for machine in machines)
        load = Load(servers, "upper", 1_000_000, at_once=4, timeout=TIMEOUT_S, pause_s=0.01, command=client.command)
        stack.callback(load.end)
        yield machines, load


def test_a_machine_that_vanishes_is_left_out_soon_and_used_again_soon_after_it_is_back(
    site: tuple[list[Machine], Load],
) -> None:
    (first, *_), load = site
    load.read(KNOWN)
    vanished = time.monotonic()
    first.vanish()
    load.read(seconds=8)
    slow = [each for each in load.answered if each.waited_s > 0.5]
    assert slow, "it was not asked"
    assert max(each.waited_s for each in load.answered) < TIMEOUT_S + LATE_S
    assert {each.code for each in load.answered} <= {"ok", "timeout"}
    assert max(each.ended_s - each.waited_s for each in slow) - vanished < LEFT_OUT_S + LATE_S
    before, known = len(load.answered), first.peers()
    returned = time.monotonic()
    first.come_back()
    while not first.peers() - known:
        assert time.monotonic() < returned + BACK_S + LATE_S
        load.read(seconds=0.1)
    assert [each.code for each in load.answered[before:] if each.code != "ok"] == []
