"""Signals at odd times and in odd places: while plugins are imported, and as the first process of a container."""

import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.certificates import tls_endpoint
from support.processes import DEADLINE_S, XFORMD, Server, environment, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

TWISTD = (str(Path(sysconfig.get_path("scripts")) / "twistd"), "--nodaemon", "--pidfile=")
WITHOUT_PLUGINS = {
    "proxy": (XFORMD, ("proxy",), "the transforms of"),
    "poem serve": (XFORMD, ("poem", "serve"), "the poem of"),
    "poem proxy": (XFORMD, ("poem", "proxy"), "the poem of"),
    "twistd proxy": (TWISTD, ("xformd-proxy",), "listening on"),
    "twistd poem serve": (TWISTD, ("xformd-poem", "serve"), "listening on"),
    "twistd poem proxy": (TWISTD, ("xformd-poem", "proxy"), "listening on"),
}
READ_AGAIN = "read the TLS certificate again"
CONTAINER = ("unshare", "--map-root-user", "--pid", "--fork", "--kill-child")
SLOW_TO_IMPORT = """
import pathlib, time
import xformd

here = pathlib.Path(__file__).parent
(here / "importing").touch()
ends_at = time.monotonic() + 90
while not (here / "go on").exists() and time.monotonic() < ends_at:
    time.sleep(0.005)

@xformd.transform
def nap(poem: str, *, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [nap]
"""


ORPHANING = """
import os, pathlib
import xformd

@xformd.transform(inline=True)
def orphan(poem: str) -> str:
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            while os.getppid() != 1:
                pass
            pathlib.Path(__file__).with_name("orphaned").touch()
        os._exit(0)
    os.wait()
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [orphan]
"""


@contextmanager
def importing(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Start a server that waits in the import of a plugin; yield its process and its log."""
    (folder / "slow.py").write_text(SLOW_TO_IMPORT)
    command = [*XFORMD, "serve", "--port", "0", "--plugins=none", "--plugins-dir", str(folder), "--workers", "1"]
    log = folder / "server.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=environment({"XFORMD_HTTP": "none"})
        ) as process,
    ):
        try:
            wait_until((folder / "importing").exists)
            yield process, log
        finally:
            process.kill()


def test_a_sighup_while_plugins_are_imported_is_not_the_end(tmp_path: Path) -> None:
    with importing(tmp_path) as (process, log):
        process.send_signal(signal.SIGHUP)
        (tmp_path / "go on").touch()
        server = Server(process, log)
        with Session(server) as session:
            assert session.ask("nap", b"a").poem == b"a"
        assert server.stop() == 0


def test_a_sigterm_while_plugins_are_imported_is(tmp_path: Path) -> None:
    with importing(tmp_path) as (process, _):
        process.terminate()
        assert process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("kind", WITHOUT_PLUGINS)
def test_sighup_has_a_proxy_and_a_poem_server_read_their_certificate_again(kind: str, tmp_path: Path) -> None:
    command, verb, ready = WITHOUT_PLUGINS[kind]
    (tmp_path / "owl.txt").write_text("The Owl\n")
    endpoint, _ = tls_endpoint(tmp_path)
    what = str(tmp_path / "owl.txt") if "serve" in verb else "127.0.0.1:1"
    with serving(tmp_path, "--listen", endpoint, what, command=command, verb=verb, ready=ready) as server:
        for count in (1, 2):
            server.process.send_signal(signal.SIGHUP)
            if command is XFORMD:
                wait_until(lambda count=count: server.log.count(READ_AGAIN) == count)  # type: ignore[misc]
            else:  # which logs to standard output
                while READ_AGAIN not in server.read_line():
                    pass
        assert server.stop() == (0 if command is XFORMD else -signal.SIGTERM)


def can_contain() -> bool:
    """Whether this system lets us have a first process of our own."""
    try:
        return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_contain(), reason="needs unshare(1), and the right to use it")
def test_a_second_sigterm_ends_also_the_first_process_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_TO_IMPORT)
    (tmp_path / "go on").touch()
    loose = ("--plugins=none", "--plugins-dir", str(tmp_path), "--workers", "1")
    with serving(tmp_path, *loose, command=(*CONTAINER, *XFORMD)) as server, Session(server) as session:
        pid = server.process.pid
        first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        session.send(("!ping", b""))
        session.receive()  # it has been accepted
        session.send(("nap:seconds=1000", b""))
        os.kill(first, signal.SIGTERM)
        assert session.receive().code == "shutting-down"
        os.kill(first, signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) == 128 + signal.SIGTERM


@pytest.mark.skipif(not can_contain(), reason="needs unshare(1), and the right to use it")
def test_the_first_process_of_a_container_reaps_orphans(tmp_path: Path) -> None:
    (tmp_path / "orphaning.py").write_text(ORPHANING)
    loose = ("--plugins=none", "--plugins-dir", str(tmp_path), "--workers", "1")
    with serving(tmp_path, *loose, command=(*CONTAINER, *XFORMD)) as server, Session(server) as session:
        pid = server.process.pid
        first = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        children = Path(f"/proc/{first}/task/{first}/children")
        before = children.read_text()
        assert session.ask("orphan", b"").code == "ok"
        wait_until((tmp_path / "orphaned").exists)
        wait_until(lambda: children.read_text() == before)
        os.kill(first, signal.SIGTERM)  # unshare itself heeds none
        assert server.process.wait(DEADLINE_S) == 0


@pytest.mark.skipif(not can_contain(), reason="needs unshare(1), and the right to use it")
def test_the_first_process_of_a_container_starts_again_on_its_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with serving(tmp_path, "--listen", f"unix:{path}", command=(*CONTAINER, *XFORMD)) as server:
            pid = server.process.pid
            assert path.with_name("socket.lock").readlink() == Path("2")
            os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text()), signal.SIGKILL)
            server.process.wait(DEADLINE_S)
        assert path.is_socket()
