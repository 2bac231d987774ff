"""A limit ends the work itself: within 0.2 s, whatever the transform ignores, and also when the client gives up."""

from collections.abc import Callable, Iterator

import pytest

from support.hostile import GONE_S, KILL_S, Hostile, best_of, codes, hostile_server, new_marker, within
from support.packages import Environment
from support.processes import netstring, wait_until
from support.session_client import Session, abort, step

HUNG = {
    "sleeps": ("sleep", {"seconds": "30"}),
    "ignores-sigterm": ("deaf", {}),
    "loops-in-c": ("loop-c", {}),
    "loops-in-python": ("loop-python", {}),
}


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deadlines")]


@pytest.fixture(scope="module")
def one_second(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A server that allows a transform one second."""
    folder = tmp_path_factory.mktemp("one-second")
    with hostile_server(hostile_environment, folder, XFORMD_TRANSFORM_TIMEOUT_S="1") as running:
        yield running


@pytest.fixture(scope="module")
def single(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A server with one worker, so that a second request waits."""
    with hostile_server(hostile_environment, tmp_path_factory.mktemp("single"), XFORMD_WORKERS="1") as running:
        yield running


@pytest.mark.timing
@pytest.mark.parametrize("kind", HUNG)
def test_a_hung_transform_with_a_limit_of_one_second_is_answered_by_1_2_s(one_second: Hostile, kind: str) -> None:
    name, options = HUNG[kind]

    def measure() -> float:
        marker = new_marker()
        answer = session.ask(step(name, **options, marker=marker))
        assert (answer.code, bool(one_second.started(marker))) == ("timeout", True)
        assert answer.elapsed_s >= 0.99
        assert within(GONE_S, lambda: not one_second.left_of(marker))
        return answer.elapsed_s

    with Session(one_second.server) as session:
        assert best_of(3, 1 + KILL_S, measure) <= 1 + KILL_S
        assert session.ask("pid").code == "ok"


@pytest.mark.timing
def test_a_memory_bomb_has_died_within_a_second_and_the_next_call_works(single: Hostile) -> None:
    def measure() -> float:
        marker = new_marker()
        answer = session.ask(step("memory-bomb", marker=marker))
        assert answer.code == "transform-died", answer.poem
        assert b"memory" in answer.poem
        assert within(GONE_S, lambda: not single.left_of(marker))
        assert session.ask("pid").code == "ok"
        return answer.elapsed_s

    with Session(single.server) as session:
        assert best_of(3, 1.0, measure) <= 1.0


@pytest.mark.timing
def test_the_clients_own_deadline_ends_the_work(single: Hostile) -> None:
    def measure() -> float:
        marker = new_marker()
        answer = session.ask(step("sleep", seconds=30, marker=marker), timeout_ms=300)
        assert (answer.code, bool(single.started(marker))) == ("timeout", True)
        assert within(GONE_S, lambda: not single.left_of(marker))
        assert session.ask("pid").code == "ok"
        return answer.elapsed_s

    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"  # a worker is there
        assert best_of(3, 0.3 + KILL_S, measure) <= 0.3 + KILL_S


def test_cancelling_a_request_ends_the_work(single: Hostile) -> None:
    marker = new_marker()
    with Session(single.server) as session:
        (number,) = session.send((step("sleep", seconds=30, marker=marker), b""))
        single.wait_for(marker)
        session.cancel(number)
        assert codes(session.collect([number])) == ["cancelled"]
        wait_until(lambda: not single.left_of(marker))
        assert session.ask("pid").code == "ok"


@pytest.mark.parametrize("opening", ["session", "classic"])
def test_a_client_that_leaves_ends_the_work(single: Hostile, opening: str) -> None:
    marker = new_marker()
    spec = step("sleep", seconds=30, marker=marker)
    leave = leave_session if opening == "session" else leave_classic
    leave(single, spec, lambda: single.wait_for(marker))
    wait_until(lambda: not single.left_of(marker))
    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"


def test_a_client_that_leaves_with_as_much_in_flight_as_may_be_ends_the_work(single: Hostile) -> None:
    """It is not read then, and what it has sent besides still waits to be."""
    marker = new_marker()
    spec = step("sleep", seconds=30, marker=marker)
    leaver = Session(single.server)
    leaver.send(*[(spec, b"")] * 100)
    single.wait_for(marker)
    leaver.send(*[(spec, b"x" * 1_000)] * 20)
    leaver.abort()
    wait_until(lambda: not single.left_of(marker))
    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"


def test_of_what_a_client_leaves_in_the_queue_nothing_begins(single: Hostile) -> None:
    """Else each request that is given up would make room for the next one, and cost a worker more."""
    markers = [new_marker() for _ in range(10)]
    with Session(single.server) as session:
        session.send(*[(step("sleep", seconds=30, marker=marker), b"") for marker in markers])
        single.wait_for(markers[0])
        session.abort()
    with Session(single.server) as session:
        assert session.ask("pid").code == "ok"
    assert [marker for marker in markers if single.started(marker)] == markers[:1]


def leave_session(hostile: Hostile, spec: str, wait: Callable[[], object]) -> None:
    """Send a request in a session, and leave once it runs."""
    with Session(hostile.server) as session:
        session.send((spec, b""))
        wait()
        session.abort()


def leave_classic(hostile: Hostile, spec: str, wait: Callable[[], object]) -> None:
    """Send a request in the classic form, and abort the connection once it runs.

    A plain close would look like a half-close to the server, and that one is still owed its answer.
    """
    request = f"{spec}.".encode()
    with hostile.server.connect() as connection:
        connection.sendall(netstring(request))
        wait()
        abort(connection)


def test_a_request_whose_deadline_passes_in_the_queue_never_runs(single: Hostile) -> None:
    holder, late = new_marker(), new_marker()
    with Session(single.server) as session:
        (held,) = session.send((step("sleep", seconds=30, marker=holder), b""))
        single.wait_for(holder)
        assert session.ask(step("pid", marker=late), timeout_ms=200).code == "timeout"  # while the other still runs
        session.cancel(held)
        assert codes(session.collect([held])) == ["cancelled"]
        # The queue is in order: once this one has run, the late one would have.
        assert session.ask("pid").code == "ok"
    assert not single.started(late)


@pytest.mark.parametrize("how", ["cancelled", "left"])
def test_a_request_that_is_given_up_in_the_queue_never_runs(single: Hostile, how: str) -> None:
    holder, given_up = new_marker(), new_marker()
    with Session(single.server) as session, Session(single.server) as other:
        (held,) = session.send((step("sleep", seconds=0.5, marker=holder), b""))
        single.wait_for(holder)
        (number,) = other.send((step("pid", marker=given_up), b""))
        if how == "cancelled":
            other.cancel(number)
            assert codes(other.collect([number])) == ["cancelled"]
        else:
            other.abort()
        assert codes(session.collect([held])) == ["ok"]
        assert session.ask("pid").code == "ok"
    assert not single.started(given_up)
