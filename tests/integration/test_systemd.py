"""The units of ``docs/deploy``: how systemd rates them, and that workers, plugins and reloads work under them.

No systemd runs here: ``support/restricted.py`` makes mounts, user, capabilities and system calls from a unit's lines.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import process_table, restricted
from support.processes import XFORMD, Server, environment, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
UNITS = ("xformd.service", "xformd@.service")
MAX_EXPOSURE = 2.0
UNIT = DEPLOY / "xformd.service"

PLUGIN = """
import ctypes
import os
import subprocess
import time

import numpy
import xformd


@xformd.transform
def norm(poem: str) -> str:
    return f"{numpy.linalg.norm(numpy.array(poem.split(), dtype=float)):g}"


@xformd.transform
def shell(poem: str) -> str:
    with open("file", "w") as file:
        file.write(poem)
    with open("file") as file:
        return subprocess.run(["tr", "a-z", "A-Z"], stdin=file, capture_output=True, text=True, check=True).stdout


@xformd.transform(timeout=1)
def hang(poem: str) -> str:
    subprocess.Popen(["sleep", "1000"], env={"HOSTILE_TOKEN": poem})
    time.sleep(1000)
    return poem


@xformd.transform
def crash(poem: str) -> str:
    ctypes.string_at(0)
    return poem


@xformd.transform
def trespass(poem: str) -> str:
    def executable() -> None:
        memory = ctypes.CDLL(None, use_errno=True).mmap
        memory.restype = ctypes.c_void_p
        if memory(None, ctypes.c_size_t(4096), 7, 0x22, -1, 0) == ctypes.c_void_p(-1).value:
            raise OSError

    def namespace() -> None:
        if ctypes.CDLL(None).unshare(0x10000000):
            raise OSError

    found = []
    for attempt in (
        lambda: open("/etc/trespass", "w"),
        lambda: os.listdir("/proc/1/fd"),
        lambda: os.setuid(0),
        lambda: __import__("socket").socket(16, 3, 0),
        executable,
        namespace,
    ):
        try:
            attempt()
            found.append("done")
        except OSError:
            found.append("forbidden")
    return " ".join(found)


@xformd.hookimpl
def xformd_transforms():
    return [norm, shell, hang, crash, trespass]
"""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd: apt-get install systemd")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_rates_a_unit_as_hardened(name: str) -> None:
    words = [
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={10 * MAX_EXPOSURE:.0f}",
        str(DEPLOY / name),
    ]
    rated = subprocess.run(words, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout + rated.stderr


def test_both_units_forbid_the_same() -> None:
    first, second = ((DEPLOY / name).read_text().partition("# Waits for the outcome")[2] for name in UNITS)
    assert first == second != ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server may write to."""
    if reason := restricted.why_not():
        pytest.skip(reason)
    pytest.importorskip("numpy")
    made = tmp_path_factory.mktemp("state")
    (made / "plugins").mkdir()
    (made / "plugins" / "loose.py").write_text(PLUGIN)
    for path in (made, *made.rglob("*")):
        os.chown(path, restricted.UID, restricted.UID)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server under the restrictions of the unit."""
    more = (
        "--plugins=none",
        f"--plugins-dir={folder / 'plugins'}",
        "--strict",
        "--workers=2",
        f"--log-file={folder / 'log'}",
    )
    command = restricted.command(UNIT, folder, *XFORMD)
    with serving(tmp_path_factory.mktemp("server"), *more, command=command) as running:
        yield running


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    with Session(server) as opened:
        yield opened


def test_a_server_has_no_privileges(server: Server) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(restricted.UID)] * 4
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_plugins_with_numpy_and_subprocesses_work(session: Session) -> None:
    assert session.ask("norm", b"3 4").poem == b"5"
    assert session.ask("shell", b"owl").poem == b"OWL"


def test_what_hangs_is_killed_with_what_it_has_started(session: Session) -> None:
    token = secrets.token_hex(8)
    (number,) = session.send(("hang", token.encode()))
    wait_until(lambda: bool(process_table.bearing(token)))
    (answer,) = session.collect([number])
    assert answer.code == "timeout"
    wait_until(lambda: not process_table.bearing(token))
    assert session.ask("shell", b"owl").poem == b"OWL"


def test_a_crash_costs_its_own_request(session: Session) -> None:
    assert session.ask("crash", b"").code == "transform-died"
    assert session.ask("norm", b"3 4").poem == b"5"


def test_a_plugin_gets_nowhere(session: Session) -> None:
    assert session.ask("trespass", b"").poem == b" ".join([b"forbidden"] * 6)


def test_a_reload_is_asked_for_under_the_same_restrictions(server: Server, session: Session, folder: Path) -> None:
    words = restricted.command(UNIT, folder, *XFORMD, "reload")
    variables = environment({"MAINPID": str(server.process.pid)})
    done = subprocess.run(words, capture_output=True, text=True, env=variables, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reloaded: ")
    assert "reloaded: " in (folder / "log").read_text()
    assert session.ask("norm", b"3 4").poem == b"5"


def test_a_stop_is_in_good_order(folder: Path, tmp_path: Path) -> None:
    command = restricted.command(UNIT, folder, *XFORMD)
    with serving(tmp_path, "--plugins=none", "--workers=1", command=command) as server:
        assert server.ask(b"7:upper.a,") == b"1:A,"
        assert server.stop() == 0
