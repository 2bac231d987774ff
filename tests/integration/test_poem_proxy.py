"""``xformd poem proxy`` over real sockets, in front of servers that the test controls."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import poems
from support.hostile import best_of
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

    def talk(connection: socket.socket) -> None:
        may_answer.wait(DEADLINE_S)
        connection.sendall(POEM)

    with peer(talk) as upstream, poem_server(tmp_path, "proxy", upstream.address) as proxy:
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


@pytest.mark.timing
def test_an_endless_upstream_fails_at_its_deadline(tmp_path: Path) -> None:
    talks: list[poems.Talk] = []
    with (
        peer(lambda connection: talks[-1](connection)) as upstream,
        poem_server(tmp_path, "proxy", upstream.address, "--timeout", "1") as proxy,
    ):

        def measure() -> float:
            start = time.monotonic()
            assert ask(proxy) is None
            elapsed_s = time.monotonic() - start
            assert elapsed_s >= 1.0
            return elapsed_s

        for talk in (poems.never_answers, poems.drips):
            talks.append(talk)
            assert best_of(3, 1.2, measure) <= 1.2
        wait_until(lambda: upstream.left == len(upstream.connected_at))
        assert f"no whole poem from {upstream.address} within 1 s" in proxy.log


def test_half_a_poem_is_never_served_nor_cached(tmp_path: Path) -> None:
    bad = [
        (poems.resets_half_way, "after 16 bytes: no whole poem"),
        (poems.floods, "sends more than 1048576 bytes"),
        (poems.closes, "closed without sending anything: no poem"),
    ]
    talks = iter([*[talk for talk, _ in bad], poems.sends(POEM)])
    with (
        peer(lambda connection: next(talks)(connection)) as upstream,
        poem_server(tmp_path, "proxy", upstream.address, "--max-bytes", "1MiB") as proxy,
    ):
        for _, reason in bad:
            assert ask(proxy) is None
            wait_until(lambda reason=reason: reason in proxy.log)  # type: ignore[misc]  # one line a second for each kind
        assert [ask(proxy), ask(proxy)] == [POEM, POEM]
        assert len(upstream.connected_at) == len(bad) + 1


@pytest.mark.slow
def test_the_old_poem_is_served_while_the_upstream_is_down(tmp_path: Path) -> None:
    with peer(poems.sends(POEM)) as upstream:
        with poem_server(tmp_path, "proxy", upstream.address, "--ttl", "0.1", "--stale", "3") as proxy:
            start = time.monotonic()
            assert ask(proxy) == POEM
            upstream.close()
            wait_until(lambda: time.monotonic() - start > 0.2)
            assert [ask(proxy), ask(proxy)] == [POEM, POEM]
            assert proxy.log.count("\n") == 1
            assert f"no fresh poem: connection-failed: cannot connect to {upstream.address}" in proxy.log
            wait_until(lambda: ask(proxy) is None)
            assert time.monotonic() - start > 3


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
        assert "no poem: connection-failed: cannot connect to 127.0.0.1:1: Connection refused" in proxy.log
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


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("no:such:endpoint",), 78, "write HOST:PORT"),
        (("127.0.0.1:1", "--ttl", "soon"), 2, "invalid duration 'soon': try 0.5, 30 or 5min"),
        (("127.0.0.1:1", "--timeout", "0"), 2, "invalid duration '0': it must be above 0"),
    ],
)
def test_impossible_arguments_are_an_error_at_once(arguments: tuple[str, ...], status: int, says: str) -> None:
    refused = xformd("poem", "proxy", *arguments, "--listen", poems.ANYWHERE)
    assert refused.returncode == status
    assert says in refused.stderr.decode()
