"""What workers and the server have loaded is the same, also while somebody installs, and where a plugin misbehaves."""

import signal
import time
from pathlib import Path

import pytest

from support.processes import serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

NAP = """
import os, socket, time
import xformd

@xformd.transform
def nap(poem: str, *, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return poem

@xformd.transform
def pid(poem: str) -> str:
    return str(os.getpid())

@xformd.hookimpl
def xformd_transforms():
    return [nap, pid]
"""

DOZE = NAP.replace("nap", "doze").replace("pid", "whose")


def arguments(folder: Path) -> tuple[str, ...]:
    return ("--plugins=none", "--plugins-dir", str(folder), "--workers", "1")


def test_a_plugin_that_fails_in_workers_alone_is_in_the_log_and_in_the_list(tmp_path: Path) -> None:
    """As one that takes a lock, or a port, when it is imported."""
    lock = f"import os\nos.open({str(tmp_path / 'lock')!r}, os.O_CREAT | os.O_EXCL)\n"
    (tmp_path / "locks.py").write_text(lock + NAP)
    with serving(tmp_path, *arguments(tmp_path)) as server, Session(server) as session:
        wait_until(lambda: "plugin locks.py (locks) fails in workers: import of" in server.log)
        assert session.ask("nap").code == "no-such-transform"
        assert session.ask("sort-lines", b"b\na").poem == b"a\nb"


def test_a_worker_that_starts_during_an_installation_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(NAP)
    (tmp_path / "q.py").write_text(DOZE)
    with serving(tmp_path, *arguments(tmp_path)) as server, Session(server) as session:
        assert session.ask("doze").code == "ok"
        (tmp_path / "q.py").unlink()  # pip takes the old version away,
        assert session.ask("nap:seconds=5", timeout_ms=50).code == "timeout"  # a worker is replaced meanwhile,
        wait_until(lambda: "has other plugins than those before" in server.log)
        (tmp_path / "q.py").write_text(DOZE)  # and here is the new one
        for _ in range(5):
            assert session.ask("nap:seconds=5", timeout_ms=50).code == "timeout"
            assert session.ask("doze").code == "ok"


@pytest.mark.parametrize("does", ["time.sleep(3)", "os._exit(1)"])
def test_a_reload_imports_nothing_into_the_server_that_no_worker_has_lived_through(tmp_path: Path, does: str) -> None:
    (tmp_path / "p.py").write_text(NAP)
    with serving(tmp_path, *arguments(tmp_path)) as server, Session(server) as session:
        assert session.ask("nap").code == "ok"
        (tmp_path / "q.py").write_text(f"import os, time\n{does}\n{DOZE}")
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert session.ask("upper").elapsed_s < 0.5
        assert session.ask("nap").code == "ok"


def test_a_request_that_has_no_time_left_when_it_comes_costs_no_worker(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(NAP)
    with serving(tmp_path, *arguments(tmp_path)) as server, Session(server) as session:
        before = session.ask("pid").poem
        assert session.ask("pid", timeout_ms=0).code == "timeout"
        assert session.ask("pid").poem == before


def test_one_session_with_much_to_do_does_not_hold_up_another(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(NAP)
    with serving(tmp_path, *arguments(tmp_path)) as server, Session(server) as greedy, Session(server) as modest:
        assert modest.ask("pid").code == "ok"
        greedy.send(*[("nap:seconds=0%2E2", b"")] * 20)  # four seconds of work
        for _ in range(3):
            assert modest.ask("pid").elapsed_s < 2
