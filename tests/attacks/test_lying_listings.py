"""Servers that lie about their transforms: what that costs a client, and the proxy in front of them."""

import contextlib
import functools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.poems import Peer, peer
from support.processes import DEADLINE_S, Server, environment, netstring, serving
from support.session_client import Session

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
HELLO = netstring(b'xformd/2 {"server": "liar 1", "max_request_bytes": 1000000, "max_in_flight": 64}')


def row(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "summary": "", "options": [], "distribution": "x", "version": "1", **fields}


def listing(*transforms: Any, **parts: Any) -> bytes:
    return json.dumps({"transforms": transforms, "plugins": [], "conflicts": [], **parts}).encode()


@contextlib.contextmanager
def liar(answer: bytes, hello: bytes = HELLO) -> Iterator[Peer]:
    """Run a server that answers every request with this."""

    def talk(connection: socket.socket) -> None:
        pending = b""
        greeted = False
        while data := connection.recv(65_536):
            pending += data
            while b"," in pending:
                string, _, pending = pending.partition(b",")
                if not greeted:
                    connection.sendall(hello)
                    greeted = True
                else:
                    number = string.partition(b":")[2].partition(b" ")[0]
                    connection.sendall(netstring(number + b" ok." + answer))

    with peer(talk) as running:
        yield running


# In a small process: what its parent has taken counts as a child's own.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "xformd", *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print("COST", usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(*arguments: str) -> tuple[subprocess.CompletedProcess[bytes], float, float]:
    """Run a command; return it with its seconds of CPU time, and the MiB that it has taken at most."""
    command = [sys.executable, "-S", "-c", MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)
    done.stderr, _, cost = done.stderr.rpartition(b"COST ")
    seconds, peak = map(float, cost.split())
    return done, seconds, peak


OPTION = {"name": "a", "type": "str", "required": False, "default": "x" * 250_000}
LIES: dict[str, Callable[[], bytes]] = {
    "one long name": lambda: listing(row("x" * 250_000), *[row(f"a{number}") for number in range(2_000)]),
    "one long option": lambda: listing(row("a", options=[OPTION]), *[row(f"a{number}") for number in range(9_000)]),
    "9 MB": lambda: listing(*[row(f"a{number}", summary="x" * 900) for number in range(9_000)]),
    "much, within the bounds": lambda: listing(*[row(f"a{number}", summary="x" * 300) for number in range(9_900)]),
    "many empty rows": lambda: listing(*[{}] * 300_000),
    "many empty lists": lambda: listing(news=[[]] * 120_000),
    "many small objects": lambda: listing(news=[{"a": 0}] * 120_000),
    "nested": lambda: b"[" * 3_000_000,
    "wide and deep": lambda: listing(news=[json.loads("[" * 13 + "1," * 240_000 + "1" + "]" * 13)]),
    "a long reason": lambda: listing(plugins=[{"name": "p", "state": "failed", "reason": "\u2028" * 600_000}]),
    "a huge number": lambda: listing()[:-1] + b', "cache": {"hits": ' + b"9" * 4_000_000 + b"}}",
}


@functools.cache
def measure_honest(*form: str) -> tuple[float, float]:
    with liar(listing(row("a"))) as honest:
        _, seconds, peak_mb = measure("list-transforms", *form, "--server", honest.address)
        return seconds, peak_mb


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize("lie", LIES)
def test_what_a_lying_listing_costs(lie: str, form: tuple[str, ...]) -> None:
    base_s, base_mb = measure_honest(*form)
    answer = LIES[lie]()
    with liar(answer) as server:
        done, seconds, peak_mb = measure("list-transforms", *form, "--server", server.address)
    cost = f"{seconds - base_s:.2f} s, {peak_mb - base_mb:.0f} MB more than for an honest one"
    print(f"{lie}: {len(answer):,} bytes: status {done.returncode}, {cost}")
    assert done.returncode in (0, 76)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0 or (done.stderr.startswith(b"xformd: bad-frame: ") and done.stderr.count(b"\n") == 1)
    assert seconds - base_s < 1.5
    assert peak_mb - base_mb < 80


@pytest.mark.parametrize(
    "fields",
    [b"[]", b"1e400", b"[" * 9_000, b"[" * 3_000_000, b'{"server": "x"}', b"9" * 9_000],
    ids=["list", "number", "nested", "long", "short", "digits"],
)
def test_a_lying_hello_is_one_line(fields: bytes) -> None:
    with liar(b"", netstring(b"xformd/2 " + fields)) as server:
        for command in ("list-transforms", "ping"):
            done, seconds, peak_mb = measure(command, "--server", server.address)
            print(f"hello of {len(fields):,} bytes, {command}: {seconds:.2f} s, {peak_mb:.0f} MB")
            assert done.returncode == 76
            assert done.stderr.startswith(b"xformd: bad-frame: ")
            assert done.stderr.count(b"\n") == 1


def test_list_through_a_proxy_with_a_long_upstream_listing(tmp_path: Path) -> None:
    """An answer to ``!list`` costs the proxy no more than to send it."""
    long = listing(*[row(f"a{number}", summary="x" * 300) for number in range(9_900)])
    with liar(long) as upstream:
        with serving(tmp_path, upstream.address, verb=("proxy",), ready="the transforms of") as proxy:
            with Session(proxy) as session:
                assert len(session.ask("!list").poem) > 3 * MIB
                count = 20
                before, start = cpu_s(proxy), time.monotonic()
                session.collect(session.send(*[("!list", b"")] * count))
                took = (cpu_s(proxy) - before) / count
            print(f"!list of {len(long):,} bytes: {1000 * took:.1f} ms of CPU, {time.monotonic() - start:.1f} s in all")
            assert took < 0.02
            with contextlib.ExitStack() as stack:
                before_mb = resident_mb(proxy)
                for _ in range(50):
                    stack.enter_context(Session(proxy)).send(("!list", b""))
                with Session(proxy) as last:
                    last.ask("!ping")
                grown = resident_mb(proxy) - before_mb
                print(f"50 sessions that do not read it: {grown:.0f} MB")
                assert grown < 40


def cpu_s(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mb(server: Server) -> float:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096 / MIB
