"""``xformd poem serve`` over real sockets: what clients get, what the file does meanwhile, and what it costs."""

import hashlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from support.poems import ANYWHERE, addresses_of, poem_server
from support.processes import Server, read_to_end, wait_until, xformd

POEM = b"The Owl and the Pussy-cat\r\nwent to sea \0 without an end"


@pytest.fixture
def owl(tmp_path: Path) -> Path:
    path = tmp_path / "owl.txt"
    path.write_bytes(POEM)
    return path


def memory_bytes(server: Server) -> int:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def test_a_client_gets_the_poem_byte_for_byte_and_the_close(tmp_path: Path, owl: Path) -> None:
    with poem_server(tmp_path, "serve", str(owl)) as server:
        assert server.greeting[-1] == f"the poem of {owl}"
        for half_close in (False, True):
            assert server.ask(b"", half_close=half_close) == POEM
        assert server.stop() == 0
        assert server.log == ""


def test_a_client_that_sends_something_gets_the_poem_all_the_same(tmp_path: Path, owl: Path) -> None:
    owl.write_bytes(POEM * 20_000)
    with poem_server(tmp_path, "serve", str(owl)) as server:
        assert server.ask(b"GET / HTTP/1.1\r\n\r\n" * 100) == POEM * 20_000


def test_a_slow_client_gets_what_the_server_has_long_sent(tmp_path: Path, owl: Path) -> None:
    owl.write_bytes(POEM * 5_000)
    with poem_server(tmp_path, "serve", str(owl)) as server:
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        before = len([*descriptors.iterdir()])
        client = server.connect()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == POEM[:1]
        wait_until(lambda: len([*descriptors.iterdir()]) == before)
        with client:
            assert POEM[:1] + read_to_end(client) == POEM * 5_000


def test_a_changed_file_is_read_again(tmp_path: Path, owl: Path) -> None:
    with poem_server(tmp_path, "serve", str(owl)) as server:
        owl.write_bytes(b"The Cat")
        assert server.ask(b"") == b"The Cat"
        owl.unlink()
        assert [server.ask(b"") for _ in range(3)] == [b"The Cat"] * 3
        line = f"cannot read {owl}: No such file or directory; the last good poem stays"
        assert server.log.count(line) == server.log.count("\n") == 1
        owl.write_bytes(POEM)
        assert server.ask(b"") == POEM
        assert f"{owl} can be read again" in server.log


@pytest.mark.slow
def test_a_hundred_slow_readers_of_50_mb_cost_little_memory(tmp_path: Path, owl: Path) -> None:
    large = os.urandom(1_000_000) * 50
    owl.write_bytes(large)
    with poem_server(tmp_path, "serve", str(owl)) as server:
        before = memory_bytes(server)
        readers = [server.connect() for _ in range(100)]
        try:
            for reader in readers:
                assert reader.recv(1000, socket.MSG_WAITALL) == large[:1000]
            owl.write_bytes(b"x" * len(large))
            grown = memory_bytes(server) - before
            assert grown < 30_000_000
            read = hashlib.sha256(large[:1000])
            while data := readers[0].recv(1_000_000):
                read.update(data)
            assert read.digest() == hashlib.sha256(large).digest()
        finally:
            for reader in readers:
                reader.close()
        assert hashlib.sha256(server.ask(b"")).digest() == hashlib.sha256(b"x" * len(large)).digest()


@pytest.mark.timing
def test_a_slow_poem_is_sent_to_all_clients_at_once(tmp_path: Path, owl: Path) -> None:
    owl.write_bytes(b"x" * 100)
    with poem_server(tmp_path, "serve", str(owl), "--slow", "200") as server:
        start = time.monotonic()
        readers = [server.connect() for _ in range(5)]
        for reader in readers:
            with reader:
                assert read_to_end(reader) == b"x" * 100
        assert 0.45 < time.monotonic() - start < 2.0


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


def test_several_places_and_a_unix_socket(tmp_path: Path, owl: Path) -> None:
    path = tmp_path / "socket"
    with poem_server(tmp_path, "serve", str(owl), "--listen", f"unix:{path}") as server:
        assert f"unix:{path}" in addresses_of(server)
        got = xformd("poem", "get", f"unix:{path}", *[place for place in addresses_of(server) if "unix" not in place])
        assert (got.returncode, got.stdout) == (0, 2 * POEM)
        wait_until(lambda: server.log == "")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("no-such-file",), 78, "xformd: bad-config: cannot serve no-such-file: No such file or directory\n"),
        (("/dev/null",), 78, "xformd: bad-config: cannot serve /dev/null: it is not a regular file\n"),
        (("README.md", "--listen", "nonsense:1"), 78, "write a Twisted server endpoint"),
        (("README.md", "--listen", "unix:/no/such/folder/socket"), 69, "cannot listen on unix:/no/such/folder/socket"),
        (("README.md", "--slow", "0"), 2, "invalid size '0': try 100000 or 10MiB"),
        (("README.md", "--slow", "fast"), 2, "invalid size 'fast': try 100000 or 10MiB"),
    ],
)
def test_impossible_arguments_are_an_error_at_once(arguments: tuple[str, ...], status: int, says: str) -> None:
    place = () if "--listen" in arguments else ("--listen", ANYWHERE)
    refused = xformd("poem", "serve", *arguments, *place)
    assert refused.returncode == status
    assert says in refused.stderr.decode()
    assert refused.stdout == b""
