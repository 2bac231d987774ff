"""A batch beside other clients: it queues as one client, however many lines it has."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.http_client import HTTP, connect, exchange
from support.http_front import request
from support.processes import Server, read_to_end, serving, wait_until

pytestmark = pytest.mark.slow

PLUGIN = '''
import time
import xformd

@xformd.transform
def nap(poem: str, *, seconds: float = 0.05, times: int = 1) -> str:
    """Sleep, note the poem, and repeat it."""
    time.sleep(seconds)
    with open(__file__ + ".done", "a") as done:
        done.write(poem)
    return poem * times

@xformd.hookimpl
def xformd_transforms():
    return [nap]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server with one worker."""
    (folder / "p.py").write_text(PLUGIN)
    with serving(folder, "--plugins=none", "--plugins-dir", str(folder), "--workers=1", *HTTP) as running:
        yield running


@pytest.fixture
def done(folder: Path) -> Path:
    """The file in which the transforms note their poems, empty at first."""
    path = folder / "p.py.done"
    path.unlink(missing_ok=True)
    return path


@contextmanager
def batch(server: Server, spec: str) -> Iterator[socket.socket]:
    """Send a batch of 40 lines, and read nothing yet."""
    line = json.dumps({"spec": spec, "poem": "b"}).encode() + b"\n"
    with connect(server, 65_536) as connection:
        connection.sendall(request("/batch", 40 * line, connection="close"))
        yield connection


def test_a_single_poem_waits_for_one_line_of_a_batch(server: Server, done: Path) -> None:
    with batch(server, "nap") as connection, exchange(server) as other:
        wait_until(done.exists)
        assert other.ask(request("/transform/nap", b"o")).status == 200
        assert done.read_text().index("o") < 20
        assert read_to_end(connection).count(b'"result"') == 40


def test_lines_wait_while_their_client_does_not_read(server: Server, done: Path) -> None:
    with batch(server, "nap:seconds=0,times=500000") as connection, exchange(server) as other:
        wait_until(done.exists)
        for _ in range(40):  # each gives one line of the batch a turn
            assert other.ask(request("/transform/nap:seconds=0", b"o")).status == 200
        assert done.read_text().count("b") < 20
        assert read_to_end(connection).count(b'"result"') == 40
