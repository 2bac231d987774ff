"""A server that meets the limit on open files: alive, idle, terse, and well again once there is room."""

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.hostile import within
from support.processes import XFORMD, Server, netstring, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

LIMIT = 64
FEW_DESCRIPTORS = ("bash", "-c", f'ulimit -n {LIMIT}; exec "$@"', "bash", *XFORMD)

HOARD = '''
"""A plugin that leaves the server without a descriptor."""

import os

import xformd
from twisted.internet import tcp

held = []


@xformd.transform(inline=True)
def hoard(poem: str, *, all_of_them: bool = False) -> str:
    """Open files until there are no more."""
    if all_of_them:
        tcp._reservedFD.__enter__()  # Twisted keeps one, to close what it cannot accept
    while True:
        try:
            held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            return str(len(held))


@xformd.transform(inline=True)
def release(poem: str) -> str:
    """Close them all."""
    while held:
        os.close(held.pop())
    return poem


@xformd.hookimpl
def xformd_transforms():
    return [hoard, release]
'''


def cpu_s(server: Server) -> float:
    """Return the CPU time that a server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_idle_for_a_second(server: Server) -> bool:
    """Whether it uses next to no CPU time while it cannot do anything."""
    before = cpu_s(server)
    return not within(1, lambda: cpu_s(server) - before >= 0.2)


def answers(server: Server) -> bool:
    """Whether it takes a new connection, and answers there."""
    try:
        return server.ask(netstring(b"upper.d")) == b"1:D,"
    except ConnectionResetError:
        return False


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed a connection to which it has sent nothing."""
    return bool(select.select([connection], [], [], 0)[0])


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    """Holds connections until the test lets them go."""
    with ExitStack() as stack:
        yield stack


def test_200_connections_to_64_descriptors(tmp_path: Path, crowd: ExitStack) -> None:
    with serving(tmp_path, "--plugins=none", command=FEW_DESCRIPTORS) as server:
        wait_until(lambda: server.log.count("\n") == 1)
        wait_until(lambda: "ulimit -n is 64 and has room for" in server.log)
        with Session(server) as session:
            connections = [crowd.enter_context(server.connect()) for _ in range(200)]
            wait_until(lambda: sum(map(is_closed, connections)) > 200 - LIMIT)
            assert session.ask("upper", b"a").poem == b"A"
            assert is_idle_for_a_second(server)
            assert session.ask("upper", b"b").poem == b"B"
            still_open = [connection for connection in connections if not is_closed(connection)]
            assert len(still_open) >= 8
            still_open[-1].sendall(netstring(b"upper.c"))
            assert still_open[-1].recv(100) == b"1:C,"
            assert server.log.count("\n") <= 4
            crowd.close()
            wait_until(lambda: answers(server))
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_the_limit_is_raised_where_the_system_lets_it(tmp_path: Path, crowd: ExitStack) -> None:
    command = ("bash", "-c", 'ulimit -Sn 64; ulimit -Hn 400; exec "$@"', "bash", *XFORMD)
    with serving(tmp_path, "--plugins=none", "--max-connections=150", "--workers=1", command=command) as server:
        connections = [crowd.enter_context(server.connect()) for _ in range(150)]
        for connection in connections:
            connection.sendall(netstring(b"upper.a"))
            assert connection.recv(100) == b"1:A,"
        assert server.log == ""


@pytest.mark.parametrize("all_of_them", ["false", "true"])
def test_a_transform_that_takes_every_descriptor(tmp_path: Path, crowd: ExitStack, all_of_them: str) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "hoard.py").write_text(HOARD)
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(plugins), command=FEW_DESCRIPTORS) as server:
        with Session(server) as session:
            began = time.monotonic()
            assert session.ask(f"hoard:all_of_them={all_of_them}").code == "ok"
            for _ in range(100):
                crowd.enter_context(server.connect())
            wait_until(lambda: "no file descriptors are left; raise ulimit -n" in server.log)
            assert is_idle_for_a_second(server)
            assert session.ask("upper", b"a").poem == b"A"
            assert server.log.count("\n") <= 4 + time.monotonic() - began
            assert session.ask("release", b"a").poem == b"a"
            crowd.close()
            wait_until(lambda: answers(server))
        assert server.stop() == 0
        assert "Traceback" not in server.log
