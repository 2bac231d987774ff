"""``xformd poem proxy`` over real sockets, in front of servers that the test controls."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import poems
from support.poems import peer, poem_server
from support.processes import DEADLINE_S, Server, read_to_end, wait_until, xformd

POEM = b"The Owl and the Pussy-cat\n"


@contextlib.contextmanager
def clients(server: Server, number: int) -> Iterator[list[socket.socket]]:
    """Connect many clients at once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(number)]


def outcome(connection: socket.socket) -> bytes | None:
    """Return the poem that a client gets; None if its connection is reset."""
    try:
        return read_to_end(connection)
    except ConnectionResetError:
        return None


def ask(server: Server) -> bytes | None:
    try:
        with server.connect() as connection:
            return outcome(connection)
    except ConnectionResetError:  # so soon that connecting itself has noticed
        return None


def test_100_simultaneous_misses_make_one_call(tmp_path: Path) -> None:
    may_answer = threading.Event()
    with (
        peer(poems.sends_after(may_answer, POEM)) as upstream,
        poem_server(tmp_path, "proxy", upstream.address) as proxy,
    ):
        with clients(proxy, 100) as (first, *others):
            wait_until(lambda: bool(upstream.connected_at))
            first.close()
            may_answer.set()
            assert [outcome(other) for other in others] == [POEM] * 99
        assert ask(proxy) == POEM
        assert len(upstream.connected_at) == 1
        assert proxy.log == ""


def test_the_last_client_that_leaves_ends_the_download(tmp_path: Path) -> None:
    with peer(poems.drips) as upstream, poem_server(tmp_path, "proxy", upstream.address) as proxy:
        with clients(proxy, 2) as (first, second):
            wait_until(lambda: bool(upstream.connected_at))
            first.close()
            # What the second is not sent shows that the first one's leaving has been dealt with before this time is up.
            assert select.select([second], [], [], 0.2)[0] == []
            assert upstream.left == 0
        wait_until(lambda: upstream.left == 1)
        assert proxy.log == ""


CLOCK = """
import pathlib, time

real, is_set_back = time.time, pathlib.Path(__file__).with_name("set-back").exists
time.time = lambda: real() - (3600 if is_set_back() else 0)
"""


@pytest.mark.slow
def test_setting_the_clock_back_does_not_keep_a_poem_fresh(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    with (
        peer(poems.sends(POEM)) as upstream,
        poem_server(tmp_path, "proxy", upstream.address, "--ttl", "0.2", PYTHONPATH=str(tmp_path)) as proxy,
    ):
        assert ask(proxy) == POEM
        (tmp_path / "set-back").touch()
        wait_until(lambda: ask(proxy) == POEM and len(upstream.connected_at) == 2)


def test_without_an_upstream_the_log_has_the_reason(tmp_path: Path) -> None:
    with poem_server(tmp_path, "proxy", "127.0.0.1:1") as proxy:
        assert ask(proxy) is None
        wait_until(lambda: "no poem: connection-failed: cannot connect to 127.0.0.1:1: Connection refused" in proxy.log)
        got = xformd("poem", "get", proxy.address)
        assert (got.returncode, got.stdout) == (69, b"")
        assert proxy.stop() == 0


def test_a_proxy_that_stops_answers_the_clients_that_wait(tmp_path: Path) -> None:
    with peer(poems.sends_in(POEM, 0.5)) as upstream, poem_server(tmp_path, "proxy", upstream.address) as proxy:
        with clients(proxy, 1) as (client,):
            wait_until(lambda: bool(upstream.connected_at))
            proxy.process.terminate()
            assert outcome(client) == POEM
        assert proxy.process.wait(DEADLINE_S) == 0
