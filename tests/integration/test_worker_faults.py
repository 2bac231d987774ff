"""Whatever a transform does, its own request gets the right code in time, and nobody else notices.

For each hostile transform: the seven requests that are in flight beside it are answered right, the next call works,
and no process of it is left.
"""

from collections.abc import Iterator
from itertools import cycle

import pytest

from support.faults import FAULTS, MEDDLERS, HostileCase
from support.hostile import GONE_S, Hostile, hostile_server, new_marker, within
from support.packages import Environment
from support.processes import wait_until
from support.session_client import Answer, Session, step

COMPANIONS = 7

LIMIT_S = 1.5
"""More than the companions need, who wait beside a worker that is held."""

IN_TIME_S = LIMIT_S + 1.0
"""Loose: whether each figure is reached is measured in ``test_deadlines.py``, alone."""


HUNG = ("deaf", "loop-python", "loop-c", "own-session")
"""Several, so that none of them is killed often."""

each_fault = pytest.mark.parametrize("raised", FAULTS, ids=str)


@pytest.fixture(scope="module")
def hostile(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A server that none of the transforms may bring down."""
    folder = tmp_path_factory.mktemp("faults")
    with hostile_server(hostile_environment, folder, XFORMD_TRANSFORM_TIMEOUT_S=str(LIMIT_S)) as running:
        # Else a test that finds no process left would say nothing.
        assert running.worker_pids() <= running.processes()
        yield running


def ask_beside_companions(session: Session, spec: str) -> tuple[Answer, list[Answer]]:
    """Send a request in the midst of seven good ones; give its answer and theirs."""
    good = [(step("sleep", seconds=0.02), f"companion {number}".encode()) for number in range(COMPANIONS)]
    ids = session.send(*good[:4], (spec, b"The Owl"), *good[4:])
    *companions, own = session.collect([*ids[:4], *ids[5:], ids[4]])
    return own, companions


def assert_unharmed(companions: list[Answer]) -> None:
    """The companions have their own poems back."""
    expected = [("ok", f"companion {number}".encode()) for number in range(COMPANIONS)]
    assert [(answer.code, answer.poem) for answer in companions] == expected


@each_fault
def test_a_fault_is_that_of_its_own_request_alone(hostile: Hostile, raised: HostileCase) -> None:
    marker = new_marker()
    marked = {} if raised.name == "never" else {"marker": marker}
    with Session(hostile.server) as session:
        own, companions = ask_beside_companions(session, step(raised.name, **raised.options, **marked))
        assert own.code in raised.code, own.poem
        assert raised.says in own.poem.decode()
        assert own.elapsed_s <= IN_TIME_S
        assert_unharmed(companions)
        assert session.ask("pid", b"next").code == "ok"
    if own.code in ("transform-died", "timeout"):
        assert within(GONE_S, lambda: not hostile.left_of(marker)), hostile.left_of(marker)
    if marked:
        assert hostile.started(marker), "it never ran, so this test has shown nothing"


@pytest.mark.parametrize(("name", "hung"), [*zip(MEDDLERS, cycle(HUNG), strict=False)])
def test_meddling_with_the_process_changes_no_answer(hostile: Hostile, name: str, hung: str) -> None:
    marker = new_marker()
    with Session(hostile.server) as session:
        own, companions = ask_beside_companions(session, step(name, marker=marker))
        assert (own.code, own.poem) == ("ok", b"The Owl")
        assert_unharmed(companions)
        # Whichever worker it was: each of them still works, and still can be killed.
        assert hostile.worker_pids()
        assert session.ask(hung, timeout_ms=200).code == "timeout"
        assert session.ask("pid", b"next").code == "ok"
    assert hostile.started(marker)


def test_what_a_transform_prints_goes_to_the_log(hostile: Hostile) -> None:
    marker = new_marker()
    with Session(hostile.server) as session:
        assert session.ask(step("prints", marker=marker), b"The Owl").poem == b"The Owl"
    wait_until(lambda: f"ok.{marker}," in hostile.server.log and f"ok.{marker}-1," in hostile.server.log)


def test_a_pipeline_that_dies_in_its_second_step_fails_once_and_alone(hostile: Hostile) -> None:
    marker = new_marker()
    with Session(hostile.server) as session:
        own, companions = ask_beside_companions(session, f"pid+{step('crash-1', marker=marker)}+pid")
        assert own.code == "transform-died"
        assert_unharmed(companions)
    assert len((hostile.folder / marker).read_text().split()) == 1


def test_twenty_crashes_lose_no_companion(hostile: Hostile) -> None:
    """Five copies of a transform crash four times each: none is quarantined, so each crash is one."""
    with Session(hostile.server) as session:
        for number in range(20):
            marker = new_marker()
            own, companions = ask_beside_companions(session, step(f"crash-{number % 5 + 2}", marker=marker))
            assert own.code == "transform-died", own.poem
            assert_unharmed(companions)
            assert hostile.started(marker)
