"""Hostile HTTP clients of a real server: they are cut off, cost bounded memory, and keep nobody else out."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP, connect, exchange
from support.http_front import CASES, Case, request
from support.processes import DEADLINE_S, Server, read_to_end, serving, wait_until

pytestmark = pytest.mark.slow

OWL = request("/transform/upper", b"owl")
HEAD = b"POST /transform/upper HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TIMEOUT_S = 1.0
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short timeouts; after all tests it still works, and has not grown."""
    with serving(
        tmp_path_factory.mktemp("server"),
        *("--plugins=none", "--workers=0", *HTTP),
        XFORMD_REQUEST_TIMEOUT_S=f"{TIMEOUT_S:g}",
        XFORMD_WRITE_TIMEOUT_S=f"{TIMEOUT_S:g}",
        XFORMD_LINGER_TIMEOUT_S="0.5",
    ) as running:
        before = memory_bytes(running)
        yield running
        with exchange(running) as client:
            assert client.ask(OWL).body == b"OWL"
        assert "Traceback" not in running.log
        assert "never retrieved" not in running.log
        assert memory_bytes(running) - before < 64 * MIB
        assert running.stop() == 0


def memory_bytes(server: Server) -> int:
    """Return the size of the server's private memory."""
    lines = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines()
    (size_kib,) = (int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    return size_kib * 1024


@contextlib.contextmanager
def growing_at_most(server: Server, limit_bytes: int) -> Iterator[None]:
    before = memory_bytes(server)
    yield
    assert memory_bytes(server) - before < limit_bytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_raw_request_gets_its_answer(server: Server, case: Case) -> None:
    with exchange(server) as client:
        with contextlib.suppress(OSError) if not case.stays_open else contextlib.nullcontext():
            client.send(case.send)  # it may be rejected before everything was sent
        try:
            found = client.receive(len(case.status))
        except ConnectionResetError:
            assert not case.stays_open
            return
        assert [answer.status for answer in found] == case.status
        if case.stays_open:
            assert client.ask(OWL).body == b"OWL"
        else:
            assert read_to_end(client.socket) == b""


def test_a_dripping_client_gains_no_time(server: Server) -> None:
    with connect(server) as connection:
        start = time.monotonic()
        connection.sendall(CHUNKED + b"1;")
        connection.settimeout(0.02)
        received = b""
        while not received:
            assert time.monotonic() - start < DEADLINE_S
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65_536)
        assert time.monotonic() - start > TIMEOUT_S / 2
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    with connect(server, 4_096) as connection:
        connection.sendall(request("/transform/upper", b"owl" * 3_000_000))
        wait_until(lambda: "took" in server.log)


@pytest.mark.parametrize("last", ["close", "keep-alive"])
def test_a_client_that_reads_slowly_gets_all_of_its_result(server: Server, last: str) -> None:
    poem = b"owl" * 300_000
    with connect(server, 4_096) as connection:
        connection.sendall(request("/transform/upper", poem, connection=last))
        received, start = b"", time.monotonic()
        while len(received.partition(b"\r\n\r\n")[2]) < len(poem):
            received += connection.recv(3_000)
            time.sleep(0.01)  # it reads for several times as long as it may read nothing
        assert time.monotonic() - start > 2 * TIMEOUT_S
        assert received.endswith(poem.upper())


def test_an_endless_body_is_cut_off(server: Server) -> None:
    chunk, ends_at = b"10000\r\n" + b"a" * 65_536 + b"\r\n", time.monotonic() + DEADLINE_S

    def send_all() -> None:
        with connect(server) as connection:
            connection.sendall(CHUNKED)
            while time.monotonic() < ends_at:
                connection.sendall(chunk)

    with growing_at_most(server, 48 * MIB), pytest.raises(OSError, match=r"reset|pipe"):
        send_all()


def test_pipelining_without_reading_costs_bounded_memory(server: Server) -> None:
    with connect(server) as connection, growing_at_most(server, 24 * MIB):
        connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(request("/transforms") * 1_500)


def test_short_connections_leak_nothing(server: Server) -> None:
    def visit(count: int) -> None:
        for _ in range(count):
            with exchange(server) as client:
                assert client.ask(OWL).status == 200

    visit(500)
    with growing_at_most(server, 3 * MIB):
        visit(3_000)
