"""Clients that ask for much and read nothing, or hardly anything: what they make the server hold, and for how long."""

import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.http_client import HTTP
from support.http_front import request
from support.processes import DEADLINE_S, Server, netstring, resident_bytes, serving, wait_until
from support.session_client import OPENING
from xformd.limits import MIB, Limits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("unread-output")]

CONNECTIONS = 1_000

PLUGIN = """
import xformd

@xformd.transform(inline=True)
def fill(poem: str) -> str:
    return poem * 100

@xformd.hookimpl
def xformd_transforms():
    return [fill]
"""
POEM = b"o" * 1_000
RESULT_BYTES = 100 * len(POEM)

BOUND_BYTES = Limits().max_unread_output_bytes + RESULT_BYTES + 512 * 1024
"""What docs/settings.md says that such a connection takes at most."""

FIXED_BYTES = 32 * MIB
"""What the server may keep in any case: most of it is ``allocator.KEPT_BYTES``."""


def of_session(count: int) -> bytes:
    return OPENING + b"".join(netstring(b"%d fill." % number + POEM) for number in range(1, count))


def of_http(count: int) -> bytes:
    return count * request("/transform/fill", POEM)


def of_batch(count: int) -> bytes:
    return request("/batch", count * (b'{"spec": "fill", "poem": "%b"}\n' % POEM))


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], CONNECTIONS + 500), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "fill.py").write_text(PLUGIN)
    arguments = ("--plugins=none", "--plugins-dir", str(tmp_path), "--write-timeout-s", "60", *HTTP)
    with serving(tmp_path, *arguments) as running:
        yield running


def connect(address: str, stack: ExitStack) -> socket.socket:
    """Connect so that the systems on both sides hold little of what is not read."""
    connection = stack.enter_context(socket.socket())
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1_000)
    connection.settimeout(DEADLINE_S)
    host, _, port = address.rpartition("/")[2].rpartition(":")
    connection.connect((host, int(port)))
    return connection


def peak_bytes(server: Server) -> int:
    """Wait until the server's memory has not grown for half a second; return the most that it has had."""
    peak, since = 0, time.monotonic()
    while time.monotonic() < since + 0.5:
        if (now := resident_bytes(server)) > peak:
            peak, since = now, time.monotonic()
        time.sleep(0.01)
    return peak


@pytest.mark.parametrize("requests", [of_session, of_http, of_batch])
def test_connections_that_never_read_take_no_more_than_is_published(
    server: Server, requests: Callable[[int], bytes]
) -> None:
    address = server.http if requests in (of_http, of_batch) else server.address
    before, data = resident_bytes(server), requests(30)
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = connect(address, stack)
            connection.setblocking(False)
            connection.send(data)
        peak = peak_bytes(server)
        took = (peak - before) / CONNECTIONS
        print(f"\n{requests.__name__}: {took / MIB:.2f} MiB a connection of {BOUND_BYTES / MIB:.2f}")
    started = time.monotonic()
    # After a try that took long the server waits a thousand times as long: that may be a minute on a busy machine.
    wait_until(lambda: resident_bytes(server) - before <= FIXED_BYTES, 120)
    print(f"{(peak - before) / MIB:.0f} MiB were given back within {time.monotonic() - started:.1f} s")
    assert RESULT_BYTES < took <= BOUND_BYTES  # it has been asked, and has answered


@pytest.mark.parametrize(("bytes_per_s", "is_cut_off"), [(20_000, False), (400, True)])
def test_who_reads_steadily_is_not_cut_off(tmp_path: Path, bytes_per_s: int, is_cut_off: bool) -> None:
    """With a tenth of the default timeout: 20 KB/s once lasted for a tenth more than that."""
    with serving(tmp_path, "--plugins=none", "--write-timeout-s", "3") as server, ExitStack() as stack:
        connection = connect(server.address, stack)
        connection.sendall(netstring(b"upper." + 3 * MIB * b"x"))
        started, taken, longest_s = time.monotonic(), 0, DEADLINE_S if is_cut_off else 12
        while (seconds := time.monotonic() - started) < longest_s and "cut off" not in server.log:
            connection.recv(max(1, int(bytes_per_s * seconds) - taken) if taken else 1)
            taken = int(bytes_per_s * seconds)
            time.sleep(0.05)
        print(f"\n{bytes_per_s} bytes/s were read for {seconds:.1f} s")
        assert ("cut off" in server.log) == is_cut_off
