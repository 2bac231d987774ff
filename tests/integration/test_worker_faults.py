"""Whatever a transform does, its own request gets the right code, and no other request notices.

For each hostile transform: the seven requests in flight beside it succeed, the next call works, and none of its
processes is left. How soon it is answered is measured in ``test_deadlines.py``, alone.
"""

from itertools import cycle

import pytest

from support.faults import FAULTS, MEDDLERS, TIMEOUT, HostileCase
from support.hostile import Hostile, new_marker
from support.processes import wait_until
from support.session_client import Answer, Session, step

pytestmark = pytest.mark.slow

COMPANIONS = 7

HANG_MS = 1_500
"""The deadline of a request that hangs. Others have the server's, or on a busy machine a memory bomb would be late."""

HUNG = ("deaf", "loop-python", "loop-c", "own-session")
"""Several, so that none of them is killed often."""


def ask_beside_companions(session: Session, spec: str, timeout_ms: int | None = None) -> tuple[Answer, list[Answer]]:
    """Send a request in the midst of seven good ones; return its answer and theirs."""
    good = [(step("sleep", seconds=0.02), f"companion {number}".encode()) for number in range(COMPANIONS)]
    ids = session.send(*good[:4])
    (own_id,) = session.send((spec, b"The Owl"), timeout_ms=timeout_ms)
    ids += session.send(*good[4:])
    *companions, own = session.collect([*ids, own_id])
    return own, companions


def assert_unharmed(companions: list[Answer]) -> None:
    expected = [("ok", f"companion {number}".encode()) for number in range(COMPANIONS)]
    assert [(answer.code, answer.poem) for answer in companions] == expected


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_that_of_its_own_request_alone(hostile: Hostile, session: Session, fault: HostileCase) -> None:
    marker = new_marker()
    marked = {} if fault.name == "never" else {"marker": marker}
    timeout_ms = HANG_MS if fault.code == TIMEOUT else None
    own, companions = ask_beside_companions(session, step(fault.name, **fault.options, **marked), timeout_ms)
    assert own.code in fault.code, own.poem
    assert fault.says in own.poem.decode()
    assert_unharmed(companions)
    assert session.ask("pid", b"next").code == "ok"
    if own.code in ("transform-died", "timeout"):
        wait_until(lambda: not hostile.left_of(marker))
    if marked:
        assert hostile.started(marker), "it never ran, so this test has shown nothing"


@pytest.mark.parametrize(("name", "hung"), [*zip(MEDDLERS, cycle(HUNG), strict=False)])
def test_meddling_with_the_process_changes_no_answer(hostile: Hostile, session: Session, name: str, hung: str) -> None:
    marker = new_marker()
    own, companions = ask_beside_companions(session, step(name, marker=marker))
    assert (own.code, own.poem) == ("ok", b"The Owl")
    assert_unharmed(companions)
    # Each worker still works, and can still be killed, whichever it was.
    assert hostile.worker_pids()
    assert session.ask(hung, timeout_ms=200).code == "timeout"
    assert session.ask("pid", b"next").code == "ok"
    assert hostile.started(marker)


def test_what_a_transform_prints_goes_to_the_log(hostile: Hostile, session: Session) -> None:
    marker = new_marker()
    assert session.ask(step("prints", marker=marker), b"The Owl").poem == b"The Owl"
    wait_until(lambda: f"ok.{marker}," in hostile.server.log and f"ok.{marker}-1," in hostile.server.log)


def test_twenty_crashes_lose_no_companion(hostile: Hostile, session: Session) -> None:
    """Five transforms crash four times each: none is quarantined. Each is the second step, and runs only once."""
    for number in range(20):
        marker = new_marker()
        crash = step(f"crash-{number % 5 + 1}", marker=marker)
        own, companions = ask_beside_companions(session, f"pid+{crash}+pid")
        assert own.code == "transform-died", own.poem
        assert_unharmed(companions)
        assert len(hostile.started(marker)) == 1
