"""HAProxy's agent check of a real server, in each state."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.processes import DEADLINE_S, Server, netstring, read_to_end, serving, wait_until, xformd_process

pytestmark = pytest.mark.slow

AGENT = ("--agent", "tcp:0:interface=127.0.0.1")
SLEEPY = """
import pathlib, time, xformd

@xformd.transform
def sleep(poem: str) -> str:
    while not pathlib.Path(poem).exists():
        time.sleep(0.01)
    return "done"

@xformd.hookimpl
def xformd_transforms():
    return [sleep]
"""


def report(server: Server) -> str:
    """Return what the agent says."""
    (line,) = (line for line in server.greeting if "agent://" in line)
    with socket.create_connection(("127.0.0.1", int(line.rpartition(":")[2])), timeout=DEADLINE_S) as connection:
        return read_to_end(connection).decode()


def weight(server: Server) -> int:
    """Return the weight that it says, and 0 while it gets no requests."""
    found = re.fullmatch(r"ready up (\d+)% maxconn:\d+\n", said := report(server))
    assert found or said == "drain\n"
    return int(found[1]) if found else 0


@contextmanager
def working(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a server with a worker."""
    (folder / "sleepy.py").write_text(SLEEPY)
    own = ("--plugins=none", "--plugins-dir", str(folder), *AGENT)
    with serving(folder, *own, *arguments, XFORMD_WORKERS="1") as server:
        yield server


def test_a_server_leaves_the_rotation_before_it_fails_anybody_and_comes_back(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with working(tmp_path, "--max-queue=2", "--drain-delay=10min") as server, ExitStack() as stack:
        wait_until(lambda: report(server) == "ready up 100% maxconn:2\n")
        requests = [stack.enter_context(server.connect()) for _ in range(3)]
        seen = []
        for request in requests:
            before = weight(server)
            request.sendall(netstring(b"sleep." + str(gate).encode()))
            wait_until(lambda before=before: weight(server) < before)  # type: ignore[misc]
            seen.append(weight(server))
        assert seen[2] == 0
        gate.touch()
        assert [read_to_end(request) for request in requests] == [b"4:done,"] * 3
        wait_until(lambda: weight(server) == 100)
        gate.unlink()
        # It has workers while it reloads: nothing changes.
        server.process.send_signal(signal.SIGHUP)
        while "reloaded" not in server.log:
            assert weight(server) > 0
        # While it drains, it accepts everything.
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: report(server) == "drain\n")
        assert server.ask(netstring(b"upper.owl")) == b"3:OWL,"
        assert server.stop() == 0


def test_a_server_without_a_worker_gets_nothing(tmp_path: Path) -> None:
    with working(tmp_path, "--worker-memory-bytes=1KiB") as server:
        assert report(server) == "drain\n"
        assert server.ask(netstring(b"upper.owl")) == b"3:OWL,"


def test_a_server_that_needs_no_worker_gets_requests(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", *AGENT) as server:
        assert report(server) == "ready up 100% maxconn:1000\n"
        assert server.stop() == 0


def test_processes_on_one_port_share_neither_metrics_nor_agent(tmp_path: Path) -> None:
    shared = ("--plugins=none", "--reuse-port")
    for front in ("agent", "metrics"):
        (folder := tmp_path / front).mkdir()
        with serving(folder, *shared, f"--{front}=tcp:0:interface=127.0.0.1") as server:
            port = next(line.rpartition(":")[2] for line in server.greeting if "//" in line)
            where = ("--port", server.address.rpartition(":")[2])
            refused = xformd_process("serve", *where, *shared, f"--{front}={port}", XFORMD_WORKERS="0")
            assert refused.returncode == 69
            assert f"--{front} moves it" in refused.stderr.decode()
