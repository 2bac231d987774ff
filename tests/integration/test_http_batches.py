"""A batch beside other clients: it is one of them, however many lines it has, and costs what one may cost."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.processes import DEADLINE_S, Server, read_to_end, serving, wait_until

PLUGIN = '''
import time
import xformd

@xformd.transform
def nap(poem: str, *, seconds: float = 0.05) -> str:
    """Sleep, and note in a file that it is done."""
    time.sleep(seconds)
    with open(__file__ + ".done", "a") as done:
        done.write(poem)
    return poem

@xformd.transform
def long(poem: str) -> str:
    """Give much, and note in a file that it is done."""
    with open(__file__ + ".done", "a") as done:
        done.write("l")
    return poem * 2_000_000

@xformd.transform
def fails(poem: str) -> str:
    """Fail."""
    raise ValueError

@xformd.hookimpl
def xformd_transforms():
    return [nap, long, fails]
'''


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with one worker."""
    (tmp_path / "p.py").write_text(PLUGIN)
    options = ("--plugins=none", "--plugins-dir", str(tmp_path), "--workers=1", "--http", "tcp:0:interface=127.0.0.1")
    with serving(tmp_path, *options) as running:
        yield running


@contextmanager
def asking(server: Server, path: str, body: bytes, *headers: str) -> Iterator[socket.socket]:
    """Send a request, and read nothing yet."""
    address = urlsplit(server.http)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        connection.settimeout(DEADLINE_S)
        connection.connect((address.hostname, address.port))
        lines = (f"POST {path} HTTP/1.1", "Host: owl", "Connection: close", f"Content-Length: {len(body)}", *headers)
        connection.sendall("\r\n".join((*lines, "", "")).encode() + body)
        yield connection


def ask(server: Server, path: str, body: bytes, *headers: str) -> bytes:
    with asking(server, path, body, *headers) as connection:
        return read_to_end(connection)


def lines(count: int, spec: str) -> bytes:
    return count * (json.dumps({"spec": spec, "poem": "b"}).encode() + b"\n")


def test_who_has_one_poem_waits_for_one_line_of_a_batch_and_not_for_all(server: Server, tmp_path: Path) -> None:
    done = tmp_path / "p.py.done"
    with asking(server, "/batch", lines(40, "nap")) as batch:
        wait_until(done.exists)
        assert ask(server, "/transform/nap", b"o").startswith(b"HTTP/1.1 200")
        assert done.read_text().index("o") < 20
        assert read_to_end(batch).count(b'"result"') == 40


def test_lines_of_a_client_that_does_not_read_wait_and_run_when_it_reads(server: Server, tmp_path: Path) -> None:
    done = tmp_path / "p.py.done"
    with asking(server, "/batch", lines(40, "long")) as batch:
        wait_until(done.exists)
        for _ in range(40):  # each lets a line of the batch have its turn
            assert ask(server, "/transform/nap:seconds=0", b"o").startswith(b"HTTP/1.1 200")
        assert done.read_text().count("l") < 20
        assert read_to_end(batch).count(b'"result"') == 40


def test_the_log_names_a_batch_where_one_of_its_lines_fails(server: Server) -> None:
    assert b"transform-failed" in ask(server, "/batch", lines(1, "fails"), "X-Request-Id: owl-batch")
    wait_until(lambda: "transform fails of plugin p.py (p) failed (request owl-batch)" in server.log)
