"""A limit ends the work itself: within 0.2 s, whatever the transform ignores, and also when the client gives up."""

from collections.abc import Iterator

import pytest

from support.hostile import GONE_S, KILL_S, Hostile, Hosting, codes, new_marker, seconds_until
from support.processes import netstring, wait_until
from support.session_client import Answer, Session, abort, step
from support.timing import assert_within

HUNG = {
    "sleeps": step("sleep", seconds=300),
    "ignores-sigterm": "deaf",
    "loops-in-c": "loop-c",
    "loops-in-python": "loop-python",
}


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deadlines")]


@pytest.fixture(scope="module")
def one_second(hosting: Hosting) -> Iterator[Hostile]:
    """A server that allows a transform one second."""
    with hosting(XFORMD_TRANSFORM_TIMEOUT_S="1") as running:
        yield running


@pytest.fixture(scope="module")
def single(hosting: Hosting) -> Iterator[Hostile]:
    """A server with one worker, so that a second request waits."""
    with hosting(XFORMD_WORKERS="1") as running:
        yield running


def ask_and_leave_nothing(
    hostile: Hostile, session: Session, spec: str, timeout_ms: int | None = None
) -> tuple[Answer, float]:
    """Send a request that has no result; check that it ran, that its processes end, and that another runs then.

    Returns its answer, and how much later than they may its processes ended.
    """
    marker = new_marker()
    answer = session.ask(f"{spec}{',' if ':' in spec else ':'}marker={marker}", timeout_ms=timeout_ms)
    assert hostile.started(marker)
    gone_s = seconds_until(lambda: not hostile.left_of(marker))
    assert session.ask("pid").code == "ok"
    return answer, gone_s - GONE_S


@pytest.mark.timing
@pytest.mark.parametrize("kind", HUNG)
def test_a_hung_transform_with_a_limit_of_one_second_is_answered_by_1_2_s(one_second: Hostile, kind: str) -> None:
    def measure() -> float:
        answer, late_s = ask_and_leave_nothing(one_second, session, HUNG[kind])
        assert answer.code == "timeout"
        assert answer.elapsed_s >= 0.99
        return max(answer.elapsed_s - 1, late_s + KILL_S)

    with Session(one_second.server) as session:
        assert_within(KILL_S, measure)


@pytest.mark.timing
def test_a_memory_bomb_has_died_within_a_second_and_the_next_call_works(single: Hostile) -> None:
    def measure() -> float:
        answer, late_s = ask_and_leave_nothing(single, session, "memory-bomb")
        assert answer.code == "transform-died", answer.poem
        assert b"memory" in answer.poem
        return max(answer.elapsed_s, late_s + 1)

    with Session(single.server) as session:
        assert_within(1.0, measure)


@pytest.mark.timing
def test_the_clients_own_deadline_ends_the_work(single: Hostile) -> None:
    def measure() -> float:
        answer, late_s = ask_and_leave_nothing(single, session, HUNG["sleeps"], timeout_ms=300)
        assert answer.code == "timeout"
        return max(answer.elapsed_s - 0.3, late_s + KILL_S)

    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"  # a worker is there
        assert_within(KILL_S, measure)


@pytest.mark.parametrize("how", ["cancels", "leaves", "leaves-a-classic-connection", "leaves-with-all-it-may-send"])
def test_a_client_that_gives_up_ends_the_work(single: Hostile, how: str) -> None:
    marker = new_marker()
    spec = step("sleep", seconds=300, marker=marker)
    with Session(single.server) as session, single.server.connect() as connection:
        if how == "leaves-a-classic-connection":
            connection.sendall(netstring(f"{spec}.".encode()))
            ids = []
        else:
            ids = session.send(*[(spec, b"")] * (100 if how == "leaves-with-all-it-may-send" else 1))
        single.wait_for(marker)
        if how == "cancels":
            session.cancel(ids[0])
            assert codes(session.collect(ids)) == ["cancelled"]
        elif how == "leaves-a-classic-connection":
            abort(connection)  # a plain close looks like a half-close, whose client still waits for its answer
        else:
            if how == "leaves-with-all-it-may-send":
                session.send(*[(spec, b"x" * 1_000)] * 20)  # which the server does not read
            session.abort()
        wait_until(lambda: not single.left_of(marker))
    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"


def test_of_what_a_client_leaves_in_the_queue_nothing_begins(single: Hostile) -> None:
    """Otherwise each abandoned request would make room for the next, and cost another worker."""
    markers = [new_marker() for _ in range(10)]
    with Session(single.server) as session:
        session.send(*[(step("sleep", seconds=300, marker=marker), b"") for marker in markers])
        single.wait_for(markers[0])
        session.abort()
    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"
    assert [marker for marker in markers if single.started(marker)] == markers[:1]


def test_a_request_whose_deadline_passes_in_the_queue_never_runs(single: Hostile) -> None:
    holder, late = new_marker(), new_marker()
    with Session(single.server) as session:
        (held,) = session.send((step("sleep", seconds=300, marker=holder), b""))
        single.wait_for(holder)
        assert session.ask(step("pid", marker=late), timeout_ms=200).code == "timeout"  # while the other still runs
        session.cancel(held)
        assert codes(session.collect([held])) == ["cancelled"]
        # The queue is in order: once this one has run, the late one would have.
        assert session.ask("pid").code == "ok"
    assert not single.started(late)
