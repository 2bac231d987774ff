"""``xformd poem serve`` over real sockets: what clients get, what the file does meanwhile, and what it costs."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.poems import addresses_of, connections, poem_server
from support.processes import Server, read_to_end, resident_bytes, serving, wait_until, xformd
from support.timing import assert_within

POEM = b"The Owl and the Pussy-cat\r\nwent to sea \0 without an end"
LARGE = POEM * 20_000


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    path = tmp_path / "owl.txt"
    path.write_bytes(POEM)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test stops, of a poem that fills every buffer."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "owl.txt").write_bytes(LARGE)
    with poem_server(folder, "serve", str(folder / "owl.txt")) as server:
        yield server


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("request_sent", [b"", b"GET / HTTP/1.1\r\n\r\n" * 100])
def test_a_client_gets_the_poem_byte_for_byte_whatever_it_sends(
    large: Server, request_sent: bytes, half_close: bool
) -> None:
    assert large.ask(request_sent, half_close=half_close) == LARGE
    assert large.log == ""


def test_a_slow_client_gets_what_the_server_has_long_sent(tmp_path: Path, owl: Path) -> None:
    owl.write_bytes(POEM * 5_000)
    with poem_server(tmp_path, "serve", str(owl)) as server, server.connect() as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == POEM[:1]
        wait_until(lambda: connections(server) == 0)
        assert POEM[:1] + read_to_end(client) == POEM * 5_000


def test_a_changed_file_is_read_again(tmp_path: Path, owl: Path) -> None:
    with poem_server(tmp_path, "serve", str(owl)) as server:
        assert server.greeting[-1] == f"the poem of {owl}"
        owl.write_bytes(b"The Cat")
        assert server.ask(b"") == b"The Cat"
        owl.unlink()
        assert [server.ask(b"") for _ in range(3)] == [b"The Cat"] * 3
        line = f"cannot read {owl}: No such file or directory; the last good poem stays"
        wait_until(lambda: server.log.count(line) == server.log.count("\n") == 1)
        owl.write_bytes(POEM)
        assert server.ask(b"") == POEM
        wait_until(lambda: f"{owl} can be read again" in server.log)


@pytest.mark.slow
def test_a_hundred_slow_readers_of_50_mb_cost_little_memory(tmp_path: Path, owl: Path) -> None:
    first, second = os.urandom(1_000_000) * 50, b"x" * 50_000_000
    owl.write_bytes(first)
    with poem_server(tmp_path, "serve", str(owl)) as server, contextlib.ExitStack() as stack:
        before = resident_bytes(server)
        readers = [stack.enter_context(server.connect()) for _ in range(100)]
        for reader in readers:
            assert reader.recv(1000, socket.MSG_WAITALL) == first[:1000]
        owl.write_bytes(second)
        grown = resident_bytes(server) - before
        assert grown < 30_000_000
        assert first[:1000] + read_to_end(readers[0]) == first
        assert server.ask(b"") == second


@pytest.mark.timing
def test_a_slow_poem_is_sent_to_all_clients_at_once(tmp_path: Path, owl: Path) -> None:
    owl.write_bytes(b"x" * 100)
    with poem_server(tmp_path, "serve", str(owl), "--slow", "200") as server:

        def measure() -> float:
            start = time.monotonic()
            readers = [server.connect() for _ in range(5)]
            for reader in readers:
                with reader:
                    assert read_to_end(reader) == b"x" * 100
            return time.monotonic() - start - 0.5

        assert_within(1.5, measure)


def test_a_server_that_stops_lets_its_clients_read_to_the_end(tmp_path: Path, owl: Path) -> None:
    with poem_server(tmp_path, "serve", str(owl), "--slow", "100") as server:
        with server.connect() as reader:
            first = reader.recv(1)
            server.process.send_signal(signal.SIGTERM)
            assert first + read_to_end(reader) == POEM
        assert server.process.wait(10) == 0


def test_a_server_that_is_killed_resets_its_clients(tmp_path: Path, owl: Path) -> None:
    with poem_server(tmp_path, "serve", str(owl), "--slow", "100") as server:
        with server.connect() as reader:
            reader.recv(1)
            server.process.kill()
            with pytest.raises(ConnectionResetError):
                read_to_end(reader)


@pytest.mark.parametrize(("verb", "port"), [("serve", "10000"), ("proxy", "10001")])
def test_port_and_host_are_those_of_serve(tmp_path: Path, owl: Path, large: Server, verb: str, port: str) -> None:
    assert f"[{port}]" in xformd("poem", verb, "--help").stdout.decode()
    what, expected = (str(owl), POEM) if verb == "serve" else (large.address, LARGE)
    unix = f"unix:{tmp_path / 'socket'}"
    where = ("--host", "127.0.0.2", "--port", "0", "--listen", "0", "--listen", unix)
    with serving(tmp_path, what, *where, verb=("poem", verb), ready="the poem of") as server:
        *addresses, socket_address = addresses_of(server)
        assert [address.rpartition(":")[0] for address in addresses] == ["127.0.0.2", "127.0.0.1"]
        assert socket_address == unix
        for address in addresses:
            server.address = address
            assert server.ask(b"") == expected


def test_an_address_is_a_port_as_the_tutorial_writes_it(tmp_path: Path, large: Server) -> None:
    port = large.address.rpartition(":")[2]
    got = xformd("poem", "get", port, f":{port}", f"tcp:{port}", "--output-dir", str(tmp_path / "poems"))
    assert "would both become" in got.stderr.decode()  # all are the same
    got = xformd("poem", "get", port, "--output-dir", str(tmp_path / "poems"))
    assert (got.returncode, got.stderr) == (0, b"")
    assert (tmp_path / "poems" / f"127.0.0.1_{port}").read_bytes() == LARGE


def test_several_places_and_a_unix_socket(tmp_path: Path, owl: Path) -> None:
    path = tmp_path / "socket"
    with poem_server(tmp_path, "serve", str(owl), "--listen", f"unix:{path}") as server:
        assert f"unix:{path}" in addresses_of(server)
        got = xformd("poem", "get", f"unix:{path}", *[place for place in addresses_of(server) if "unix" not in place])
        assert (got.returncode, got.stdout) == (0, 2 * POEM)
        wait_until(lambda: server.log == "")
