"""What workers and the server have loaded is the same, also while somebody installs, and where a plugin misbehaves."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.hostile import codes, within
from support.live import children
from support.processes import Server, serving, wait_until
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


@contextmanager
def serving_plugins(folder: Path, **files: str) -> Iterator[tuple[Server, Session]]:
    """Run a server with one worker and these files as plugins, and open a session."""
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    arguments = ("--plugins=none", "--plugins-dir", str(folder), "--workers", "1")
    with serving(folder, *arguments) as server, Session(server) as session:
        yield server, session


LOCK = "import os\nos.open({path!r}, os.O_CREAT | os.O_EXCL)\n"
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"


def test_a_plugin_that_takes_a_lock_is_imported_once_for_all_workers(tmp_path: Path) -> None:
    """Or a port, say."""
    with serving_plugins(tmp_path, locks=LOCK.format(path=str(tmp_path / "lock")) + NAP) as (_, session):
        assert codes([session.ask("nap"), session.ask("nap:seconds=5", timeout_ms=50), session.ask("nap")]) == [
            "ok",
            "timeout",
            "ok",
        ]


def test_a_plugin_that_fails_in_workers_alone_is_in_the_list(tmp_path: Path) -> None:
    """As one that takes a lock, and leaves a thread: each worker imports it."""
    source = LOCK.format(path=str(tmp_path / "lock")) + THREAD + NAP
    with serving_plugins(tmp_path, locks=source) as (server, session):
        wait_until(lambda: "leaves threads running when it is imported: that is done in each worker" in server.log)
        refused = session.ask("nap")
        assert refused.code == "no-such-transform"
        assert refused.poem.decode().endswith("plugin locks.py (locks) failed")
        why = "plugin locks.py (locks) failed: import of locks.py failed: FileExistsError"
        wait_until(lambda: why in server.log)
        assert session.ask("sort-lines", b"b\na").poem == b"a\nb"


def test_a_plugin_that_crashes_in_workers_alone_is_left_out(tmp_path: Path) -> None:
    crash = f"import os\nif os.path.exists({str(tmp_path / 'seen')!r}):\n    os.abort()\n"
    source = crash + LOCK.format(path=str(tmp_path / "seen")) + THREAD + NAP
    with serving_plugins(tmp_path, crashes=source, whole=DOZE) as (server, session):
        assert session.ask("doze").code == "ok"
        refused = session.ask("nap")
        assert refused.code == "no-such-transform"
        assert refused.poem.decode().endswith("plugin crashes.py (crashes) failed")
        why = "plugin crashes.py (crashes) failed: was killed by SIGABRT when it was imported in a worker"
        wait_until(lambda: why in server.log)
        wait_until(lambda: server.log.count("it is left out") == 1)


def test_a_plugin_that_crashes_in_new_workers_costs_no_other_its_job_and_at_last_itself_alone(tmp_path: Path) -> None:
    crash = f"import os\nif os.path.exists({str(tmp_path / 'flag')!r}):\n    os.abort()\n"
    with serving_plugins(tmp_path, crashes=crash + THREAD + NAP, whole=DOZE) as (server, session):
        assert session.ask("nap").code == "ok"
        (tmp_path / "flag").touch()
        assert session.ask("doze:seconds=5", timeout_ms=50).code == "timeout"
        wait_until(lambda: "when it imported crashes.py (crashes)" in server.log)
        assert session.ask("nap").code == "ok"  # by the spare worker
        assert session.ask("doze:seconds=5", timeout_ms=50).code == "timeout"
        assert session.ask("doze").code == "ok"
        wait_until(lambda: server.log.count("it is left out") == 1)


def test_a_worker_that_starts_during_an_installation_has_the_plugins_of_the_others(tmp_path: Path) -> None:
    with serving_plugins(tmp_path, p=NAP, q=DOZE) as (_, session):
        (tmp_path / "q.py").unlink()  # pip takes the old version away,
        for _ in range(3):  # and workers are replaced meanwhile
            assert session.ask("nap:seconds=5", timeout_ms=50).code == "timeout"
            assert session.ask("doze").code == "ok"


def test_a_fork_server_that_starts_during_an_installation_is_not_taken(tmp_path: Path) -> None:
    with serving_plugins(tmp_path, p=NAP, q=DOZE) as (server, session):
        assert session.ask("doze").code == "ok"
        (tmp_path / "q.py").unlink()  # pip takes the old version away,
        (reaper,) = children(server.process.pid)
        (fork_server,) = children(reaper)
        os.kill(fork_server, signal.SIGKILL)  # another one is started meanwhile,
        wait_until(lambda: "has other plugins than those before" in server.log)
        (tmp_path / "q.py").write_text(DOZE)  # and here is the new one
        assert codes([session.ask("doze"), session.ask("nap")]) == ["ok", "ok"]


@pytest.mark.parametrize("does", ["time.sleep(3)", "os._exit(1)"])
def test_a_reload_imports_nothing_into_the_server_that_no_worker_has_lived_through(tmp_path: Path, does: str) -> None:
    with serving_plugins(tmp_path, p=NAP) as (server, session):
        assert session.ask("nap").code == "ok"
        (tmp_path / "q.py").write_text(f"import os, time\n{does}\n{DOZE}")
        server.process.send_signal(signal.SIGHUP)
        assert not within(1, lambda: session.ask("upper").elapsed_s >= 2)
        if does == "os._exit(1)":
            why = "plugin q.py (q) failed: ended with exit status 1 when it was imported"
            wait_until(lambda: why in server.log)
        assert codes([session.ask("nap"), session.ask("doze")]) == ["ok", "no-such-transform"]


def test_one_session_with_much_to_do_does_not_hold_up_another(tmp_path: Path) -> None:
    with serving_plugins(tmp_path, p=NAP) as (server, greedy), Session(server) as modest:
        assert modest.ask("pid").code == "ok"
        greedy.send(*[("nap:seconds=0%2E2", b"")] * 20)  # four seconds of work
        for _ in range(3):
            assert modest.ask("pid").elapsed_s < 2
