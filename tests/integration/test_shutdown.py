"""How a server ends: on SIGTERM every accepted request is answered, and however it ends, no process is left."""

import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from support import process_table
from support.hostile import GONE_S, Hostile, Hosting, new_marker, seconds_until
from support.processes import DEADLINE_S, VERSES, netstring, read_to_end, serving, wait_until
from support.session_client import Session, step
from support.timing import assert_within

pytestmark = pytest.mark.slow

GRACE_S = 1.0


def wait_until_no_process_is_left(hostile: Hostile) -> None:
    wait_until(lambda: not hostile.processes())


def start_hung(hostile: Hostile, session: Session, name: str, **options: str) -> tuple[str, int]:
    """Send a request that hangs, wait until it does, and return its marker and its id."""
    marker = new_marker()
    (number,) = session.send((step(name, marker=marker, **options), b""))
    hostile.wait_for(marker)
    if name not in ("deaf", "sleep"):
        wait_until(lambda: bool(process_table.named(marker)))
    return marker, number


def test_on_sigterm_every_request_in_flight_and_in_the_queue_is_answered(hosting: Hosting) -> None:
    first = new_marker()
    poems = [f"poem {number}".encode() for number in range(8)]
    with hosting(XFORMD_SHUTDOWN_GRACE_S="1000") as hostile:
        assert hostile.worker_pids() <= hostile.processes()
        with Session(hostile.server) as session:
            spec = step("sleep", seconds=0.3, marker=first)
            ids = session.send(*[(spec, poem) for poem in poems])
            hostile.wait_for(first)
            hostile.server.process.terminate()
            answers = session.collect(ids)
            assert [(answer.code, answer.poem) for answer in answers] == [("ok", poem) for poem in poems]
            with pytest.raises(ConnectionError):
                session.receive()
        assert hostile.server.process.wait(DEADLINE_S) == 0
        wait_until_no_process_is_left(hostile)


def test_an_idle_server_ends_at_once_with_the_processes_that_transforms_have_left(hosting: Hosting) -> None:
    markers = [new_marker() for _ in range(4)]
    with hosting(XFORMD_SHUTDOWN_GRACE_S="1000") as hostile, Session(hostile.server) as session:
        for name, marker in zip(("fork", "setsid", "daemonise", "thread"), markers, strict=True):
            assert session.ask(step(name, marker=marker), b"poem").poem == b"poem"
        assert all(map(hostile.started, markers))
        assert hostile.server.stop() == 0
        wait_until_no_process_is_left(hostile)
        assert not any(map(process_table.named, markers))
        assert "Traceback" not in hostile.server.log


def test_what_hangs_past_the_grace_period_is_answered_shutting_down_and_killed(hosting: Hosting) -> None:
    with hosting(XFORMD_SHUTDOWN_GRACE_S=str(GRACE_S)) as hostile, Session(hostile.server) as session:
        _, deaf = start_hung(hostile, session, "deaf")
        _, good = start_hung(hostile, session, "sleep", seconds="0.3")
        hostile.server.process.terminate()
        # Each on its own: the notice to the connection comes in between.
        answers = dict(collect_until_close(session))
        assert (answers[good], answers[deaf]) == ("ok", "shutting-down")
        assert hostile.server.process.wait(DEADLINE_S) == 0
        wait_until_no_process_is_left(hostile)


def collect_until_close(session: Session) -> list[tuple[int, str]]:
    """Return id and code of all that comes until the server closes."""
    received: list[tuple[int, str]] = []
    with suppress(ConnectionError):
        while True:
            answer = session.receive()
            received.append((answer.id, answer.code))
    return received


@pytest.mark.timing
def test_a_second_sigterm_ends_the_server_at_once(hosting: Hosting) -> None:
    def measure() -> float:
        with hosting(XFORMD_SHUTDOWN_GRACE_S="30") as hostile, Session(hostile.server) as session:
            start_hung(hostile, session, "deaf")
            hostile.server.process.terminate()
            notice = session.receive()
            assert (notice.id, notice.code) == (0, "shutting-down")
            assert hostile.server.process.poll() is None
            hostile.server.process.terminate()
            took_s = seconds_until(lambda: hostile.server.process.poll() is not None)
            wait_until_no_process_is_left(hostile)
            return took_s

    assert_within(0.5, measure)


@pytest.mark.timing
def test_half_a_second_after_sigkill_of_the_server_no_process_is_left(hosting: Hosting) -> None:
    """Its workers are deaf, or hang with a child that has left their session, or are idle."""

    def measure() -> float:
        with hosting(XFORMD_WORKERS="5") as hostile, Session(hostile.server) as session:
            assert hostile.worker_pids(5) <= hostile.processes()
            markers = [start_hung(hostile, session, "deaf")[0]]
            markers += [start_hung(hostile, session, name, then="hang")[0] for name in ("fork", "setsid", "daemonise")]
            assert all(map(hostile.left_of, markers))
            hostile.server.stop(signal.SIGKILL)
            return seconds_until(lambda: not hostile.processes() and not any(map(hostile.left_of, markers)))

    assert_within(GONE_S, measure)


def test_a_stop_after_its_socket_has_gone_from_its_folder_answers_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    plugins = ("--plugins=none", "--plugins-dir", str(VERSES))
    with serving(tmp_path, "--listen", f"unix:{path}", *plugins, GATE=str(tmp_path)) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(netstring(b"gate.poem"))
            wait_until((tmp_path / "started").exists)
            path.unlink()
            server.process.terminate()
            wait_until(lambda: "cannot close a port in order" in server.log)
            (tmp_path / "open").touch()
            assert read_to_end(client) == netstring(b"POEM")
        assert server.process.wait(DEADLINE_S) == 0


def test_a_server_with_http_is_gone_as_soon_as_its_workers_are(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--workers=1", "--http", "tcp:0:interface=127.0.0.1") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) == 0
    assert "have not ended" not in server.log
