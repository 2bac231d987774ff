"""Hostile HTTP clients of a real server: they are cut off, cost bounded memory, and keep nobody else out."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import http_front
from support.http_client import HTTP, Http, connect, connect_slowly, exchange
from support.http_front import Case, answers, request
from support.processes import DEADLINE_S, Server, read_to_end, serving, wait_until
from support.session_client import abort

pytestmark = pytest.mark.slow

OWL = request("/transform/upper", b"owl")
HEAD = b"POST /transform/upper HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TIMEOUT_S = 1.0
MIB = 1024 * 1024
LIMITS = {
    "XFORMD_REQUEST_TIMEOUT_S": f"{TIMEOUT_S:g}",
    "XFORMD_WRITE_TIMEOUT_S": f"{TIMEOUT_S:g}",
    "XFORMD_LINGER_TIMEOUT_S": "0.5",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with short timeouts; after all tests it still works, and has not grown."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, "--plugins=none", "--workers=0", *HTTP, **LIMITS) as running:
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
    for line in Path(f"/proc/{server.process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Private_Dirty in smaps_rollup")


@pytest.mark.parametrize("case", http_front.cases(), ids=lambda case: case.name)
def test_each_raw_request_gets_its_answer(server: Server, case: Case) -> None:
    with connect(server) as connection:
        client = Http(connection)
        try:
            client.send(case.send)
        except OSError:
            assert not case.open  # rejected before everything was sent
        try:
            found = client.receive(len(case.status))
        except ConnectionResetError:
            assert not case.open
            return
        assert [answer.status for answer in found] == [*case.status]
        if case.open:
            assert client.ask(OWL).body == b"OWL"
        else:
            assert read_to_end(connection) == b""


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"", HEAD + b"X: " + b"y" * 1_000),
        (HEAD, b"X: y\r\n" * 1_000),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"o" * 1_000),
        (CHUNKED, b"1\r\no\r\n" * 1_000),
        (CHUNKED + b"1;", b"x" * 1_000),
        (CHUNKED + b"0\r\n", b"X: y\r\n" * 1_000),
    ],
    ids=["a head", "headers", "a body", "chunks", "an extension", "trailers"],
)
def test_a_dripping_client_gains_no_time(server: Server, beginning: bytes, more: bytes) -> None:
    with connect(server) as connection:
        start = time.monotonic()
        connection.sendall(beginning + more[:1])
        connection.settimeout(0.02)
        received = b""
        for byte in more[1:]:
            connection.sendall(bytes([byte]))
            try:
                received = connection.recv(65_536)
                break
            except TimeoutError:
                assert time.monotonic() - start < DEADLINE_S
        assert time.monotonic() - start > TIMEOUT_S / 2
        (answer,) = answers(received)
        assert answer.status == 408


def test_a_client_that_does_not_read_is_cut_off(server: Server) -> None:
    with connect_slowly(server, 4_096) as connection:
        connection.sendall(request("/transform/upper", b"owl" * 3_000_000))
        wait_until(lambda: "took" in server.log)


@pytest.mark.parametrize("end", [0, 1, len(HEAD), len(OWL) - 1, len(OWL), len(OWL) + 1, 2 * len(OWL) - 1])
def test_a_reset_at_any_point_harms_nobody(server: Server, end: int) -> None:
    for _ in range(20):
        connection = connect(server)
        connection.sendall((OWL * 2)[:end])
        abort(connection)
    with exchange(server) as client:
        assert client.ask(OWL).status == 200


def send_until(connection: socket.socket, data: bytes, ends_at: float) -> None:
    while time.monotonic() < ends_at:
        connection.sendall(data)


def test_an_endless_body_is_cut_off(server: Server) -> None:
    chunk, before, start = b"10000\r\n" + b"a" * 65_536 + b"\r\n", memory_bytes(server), time.monotonic()
    with connect(server) as connection:
        connection.sendall(CHUNKED)
        with pytest.raises(OSError, match=r"reset|pipe"):
            send_until(connection, chunk, start + DEADLINE_S)
    assert memory_bytes(server) - before < 48 * MIB
    assert "Traceback" not in server.log


def test_pipelining_without_reading_costs_bounded_memory(server: Server) -> None:
    before = memory_bytes(server)
    with connect(server) as connection:
        connection.settimeout(0.3)
        try:
            for _ in range(200):
                connection.sendall(request("/transforms") * 1_500)
        except (TimeoutError, OSError):
            pass
        assert memory_bytes(server) - before < 24 * MIB


def test_short_connections_leak_nothing(server: Server) -> None:
    def visit(count: int) -> None:
        for _ in range(count):
            with exchange(server) as client:
                assert client.ask(OWL).status == 200

    visit(500)
    before = memory_bytes(server)
    visit(3_000)
    assert memory_bytes(server) - before < 3 * MIB


def test_slow_clients_keep_nobody_out(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--workers=0", "--max-connections", "32", *HTTP) as server:
        with exchange(server) as staying:
            assert staying.ask(OWL).status == 200
            slow = []
            for _ in range(10):
                for _ in range(4):
                    slow.append(connect(server))
                    slow[-1].sendall(HEAD)
                assert staying.ask(OWL).status == 200
                with exchange(server) as coming:
                    assert coming.ask(OWL).status == 200
            for each in slow:
                each.close()
