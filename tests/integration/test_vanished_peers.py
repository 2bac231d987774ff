"""A peer whose machine is gone without a word, in network namespaces: it costs a caller no more than it must."""

import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.machines import Client, linked
from support.processes import DEADLINE_S, XFORMD, environment, netstring, serving, wait_until, xformd

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machines")]
LATE_S = 20.0
"""What a busy machine may add: the system itself gives up after many minutes."""

ASK = """
import sys, time
from twisted.internet import defer, reactor, task
from xformd import TransformProxy, XformError

async def main(reactor):
    proxy = TransformProxy(sys.argv[1].split(","))
    timeout = float(sys.argv[2]) or None
    while True:
        started = time.monotonic()
        try:
            await proxy.xform("upper", "x", timeout=timeout)
            outcome = "ok"
        except XformError as error:
            outcome = error.code
        print(outcome, time.monotonic() - started, flush=True)
        if not sys.stdin.readline():
            return

task.react(main)
"""
"""Sends a request for each line of its input, and prints what became of it and how many seconds it took."""


class Caller:
    """A program that asks, in the client's namespace."""

    def __init__(self, client: Client, servers: str, timeout_s: float = 0) -> None:
        self.process = subprocess.Popen(
            [*client.command, sys.executable, "-c", ASK, servers, str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self.read() == "ok"

    def read(self) -> str:
        """Return what became of the next request."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], DEADLINE_S)[0], "no answer"
        return self.process.stdout.readline().decode().split()[0]

    def ask(self) -> str:
        """Send a request; return what became of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return self.read()

    def fails_for_s(self) -> float:
        """Ask until there is a result; return for how long there was none."""
        started = time.monotonic()
        lost = 0.0
        while self.ask() != "ok":
            lost = time.monotonic() - started
            assert lost < DEADLINE_S
        return lost

    def end(self) -> None:
        """End the program."""
        self.process.kill()
        self.process.communicate()


class Site:
    """A client, and two machines with a server each."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self.client, self.machines = stack.enter_context(linked(folder, 2))
        for machine in self.machines:
            logs = folder / machine.namespace
            logs.mkdir()
            where = ("--listen", f"tcp:11000:interface={machine.address}", "--write-timeout-s", "3")
            stack.enter_context(serving(logs, *where, command=[*machine.command, *XFORMD]))

    def caller(self, servers: str, timeout_s: float = 0) -> Caller:
        caller = Caller(self.client, servers, timeout_s)
        self._stack.callback(caller.end)
        return caller


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


@pytest.mark.parametrize(("timeout_s", "lost_s"), [(1, 2), (2, 4), (0, 5)])
def test_a_name_that_points_elsewhere_is_followed(site: Site, timeout_s: float, lost_s: float) -> None:
    first, second = site.machines
    site.client.name("servers", first)
    caller = site.caller("servers:11000", timeout_s)
    first.vanish()
    site.client.name("servers", second)
    assert caller.fails_for_s() < lost_s + LATE_S


def test_another_server_is_used(site: Site) -> None:
    first, second = site.machines
    caller = site.caller(f"{first.address}:11000,{second.address}:11000", 2)
    first.vanish()
    assert caller.fails_for_s() < 4 + LATE_S
    assert [caller.ask() for _ in range(3)] == ["ok"] * 3


def test_a_server_finds_out_that_a_client_is_gone(site: Site) -> None:
    first, *_ = site.machines
    site.caller(f"{first.address}:11000")
    assert first.connections() == 1
    first.vanish()
    started = time.monotonic()
    wait_until(lambda: first.connections() == 0)
    assert time.monotonic() - started < 4 + LATE_S  # --write-timeout-s, and the time between two looks


def test_a_server_that_reads_nothing_for_a_while_is_still_there() -> None:
    with socket.socket() as listener, ThreadPoolExecutor(1) as threads:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        served = threads.submit(read_late, listener, 9.0)
        sent = xformd("send", "upper", "--server", f"127.0.0.1:{listener.getsockname()[1]}", stdin=b"x" * 5_000_000)
        assert (sent.returncode, sent.stdout, sent.stderr) == (0, b"done", b"")
        served.result(DEADLINE_S)


def read_late(listener: socket.socket, seconds: float) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(11)
        hello = b'xformd/2 {"server": "late", "max_request_bytes": 10000000, "max_in_flight": 64}'
        connection.sendall(netstring(hello))
        time.sleep(seconds)
        arrived = 0
        while arrived < 5_000_000:
            arrived += len(connection.recv(1_000_000))
        connection.sendall(netstring(b"1 ok.done"))
        connection.recv(1)


@pytest.mark.parametrize("command", ["ping", "send upper", "poem get"])
def test_a_name_server_that_is_mute_delays_no_exit(tmp_path: Path, command: str) -> None:
    with linked(tmp_path, 1) as (client, (mute,)):
        mute.vanish()
        client.resolver.write_text(f"nameserver {mute.address}\noptions timeout:30 attempts:5\n")
        server = ["nowhere.example:1"] if command == "poem get" else ["--server", "nowhere.example:1"]
        asking = [*client.command, *XFORMD, *command.split(), *server, "--timeout", "1"]
        done = subprocess.run(asking, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)
        assert b"within 1 s" in done.stderr
