"""Sessions over real sockets: what the wire promises of memory, of the share of one connection, and of deadlines."""

import itertools
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from support.processes import VERSES, Server, netstring, read_to_end, resident_bytes, serving, wait_until
from support.session_client import Session

MIB = 1024 * 1024
OPENING = b"8:xformd/2,"


def read_until(connection: socket.socket, enough: Callable[[bytearray], bool]) -> bytearray:
    """Read until what was read is enough."""
    received = bytearray()
    while not enough(received):
        data = connection.recv(1_000_000)
        assert data, f"it closed after {len(received)} bytes: {bytes(received[-100:])!r}"
        received += data
    return received


def test_a_session_by_hand(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(
            OPENING + netstring(b"7 cummingsify.HERE. IS") + netstring(b"8 nope.x") + netstring(b"9 !ping.")
        )
        connection.shutdown(socket.SHUT_WR)
        received = read_to_end(connection)
    assert b'xformd/2 {"server": "xformd 0.1.0", "max_request_bytes": 10485760, "max_in_flight": 64},' in received
    assert netstring(b"7 ok.here. is") in received
    assert b"8 no-such-transform.no transform 'nope' here" in received
    assert received.endswith(netstring(b"9 ok."))


@pytest.mark.slow
def test_200_mb_that_are_asked_for_and_never_read_cost_the_server_20_mb_at_most(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(VERSES)) as server:
        server.ask(netstring(b"repeat:times=5000000.a"))
        before = resident_bytes(server)
        with server.connect() as greedy:
            greedy.sendall(
                OPENING + b"".join(netstring(b"%d repeat:times=5000000.a" % number) for number in range(1, 41))
            )
            # A result is there, and stays unread: looking takes nothing.
            wait_until(lambda: len(greedy.recv(100_000, socket.MSG_PEEK)) > 10_000)
            highest = before
            for _ in range(50):
                server.ask(b"7:upper.a,")
                highest = max(highest, resident_bytes(server))
            assert highest - before < 20 * MIB
            # It was slow, not dead: once it reads, everything comes.
            assert read_until(greedy, lambda received: len(received) > 200_000_000)


def test_of_a_thousand_requests_on_one_connection_no_more_than_its_share_run(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--plugins=none", "--plugins-dir", str(VERSES), GATE=str(tmp_path)) as server,
        server.connect() as connection,
    ):
        requests = b"".join(netstring(b"%d gate.x" % number) for number in range(1, 1_001))
        connection.sendall(OPENING + requests)
        wait_until((tmp_path / "started").exists)
        (tmp_path / "open").touch()
        read_until(connection, lambda received: received.count(b" ok.") == 1_000)
        assert max(map(int, (tmp_path / "most").read_text().split())) <= 64


DRIPPING = (b"1", b"10:", b"10:upp", b"10:upper.", OPENING + b"1", OPENING + b"20:", OPENING + b"20:1 upper.a")


def test_a_drip_in_each_state_of_the_parser_is_cut_at_its_deadline(tmp_path: Path) -> None:
    """A byte every 0.4 s extends nothing: all are cut after the 1.5 s, and long before the drip ends."""
    limits = ("--request-timeout-s", "1500ms", "--idle-timeout-s", "1min", "--max-request-bytes", "99999")
    with serving(tmp_path, "--plugins=none", *limits) as server, ExitStack() as stack:
        drips = {
            stack.enter_context(server.connect()): b"999:" * (start[-1:] == b"1") + b"x" * 100 for start in DRIPPING
        }
        for connection, start in zip(drips, DRIPPING, strict=True):
            connection.sendall(start)
        began = time.monotonic()
        for count in itertools.count():
            next_byte_at = began + 0.4 * (count + 1)
            while drips and (remaining := next_byte_at - time.monotonic()) > 0:
                for connection in select.select(drips, [], [], remaining)[0]:
                    if is_cut(connection):
                        assert time.monotonic() - began >= 1.4
                        del drips[connection]
            if not drips:
                break
            for connection, drip in drips.items():
                with suppress(OSError):  # it has just been cut
                    connection.sendall(drip[count : count + 1])
    assert time.monotonic() - began < 15


def is_cut(connection: socket.socket) -> bool:
    """Whether the connection has been reset; what else arrives, a hello, is read."""
    try:
        return connection.recv(65_536) == b""
    except ConnectionResetError:
        return True


def test_sessions_are_told_when_the_server_stops(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--plugins=none", "--plugins-dir", str(VERSES), GATE=str(tmp_path)) as server,
        server.connect() as connection,
    ):
        connection.sendall(OPENING + netstring(b"1 gate.poem"))
        wait_until((tmp_path / "started").exists)
        server.process.terminate()
        read_until(connection, lambda received: b"0 shutting-down" in received)
        connection.sendall(netstring(b"2 upper.a"))
        read_until(connection, lambda received: b"2 shutting-down retry-after=" in received)
        (tmp_path / "open").touch()  # not before: the server closes once nothing is in flight
        assert netstring(b"1 ok.POEM") in read_to_end(connection)
        assert server.process.wait(timeout=20) == 0


BROKEN_PLUGIN = """
import xformd

@xformd.transform(inline=True)
def broken(poem: str) -> str:
    raise ValueError("no")

@xformd.hookimpl
def xformd_transforms():
    return [broken]
"""


@pytest.mark.timing
@pytest.mark.parametrize("message", [b"%d !list.", b"%d upperr.x", b"%d broken.x"])
def test_one_sessions_flood_does_not_stall_another(tmp_path: Path, message: bytes) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_PLUGIN)
    flood = OPENING + b"".join(netstring(message % number) for number in range(1, 10_000)) + netstring(b"10000 !ping.")
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(tmp_path)) as server, Session(server) as other:
        assert other.ask("upper").code == "ok"
        with server.connect() as flooding:
            threading.Thread(target=flooding.sendall, args=(flood,), daemon=True).start()
            last = netstring(b"10000 ok.")
            drain = threading.Thread(target=read_until, args=(flooding, lambda received: received.endswith(last)))
            drain.start()
            elapsed_s = []
            while drain.is_alive():
                elapsed_s.append(other.ask("upper").elapsed_s)
            drain.join()
        assert max(elapsed_s) < 0.25
        assert len(server.log) < 100_000
