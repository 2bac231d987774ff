"""Sessions over real sockets: what the wire promises of memory, of the share of one connection, and of deadlines."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from support.processes import DEADLINE_S, VERSES, Server, netstring, read_to_end, resident_bytes, serving, wait_until
from support.session_client import Session
from support.timing import assert_within

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


DRIPPING = (b"1", b"10:", b"10:upp", b"10:upper.", OPENING + b"1", OPENING + b"20:", OPENING + b"20:1 upper.a")


@pytest.mark.slow
def test_a_drip_in_each_state_of_the_parser_is_cut_at_its_deadline(tmp_path: Path) -> None:
    """A byte every 0.4 s extends nothing: all are cut after the 1.5 s, and long before the drip ends."""
    limits = ("--request-timeout-s", "1500ms", "--idle-timeout-s", "1min", "--max-request-bytes", "99999")
    with serving(tmp_path, "--plugins=none", *limits) as server, ThreadPoolExecutor(len(DRIPPING)) as threads:
        took_s = list(threads.map(lambda start: drip(server, start), DRIPPING))
    assert all(1.4 <= each < DEADLINE_S for each in took_s), took_s


def drip(server: Server, start: bytes) -> float:
    """Send single bytes until the connection is cut; return how long that took."""
    began = time.monotonic()
    with server.connect() as connection, suppress(ConnectionError):
        connection.settimeout(0.4)
        connection.sendall(start)
        for byte in b"999:" * start.endswith(b"1") + b"x" * 1_000:
            with suppress(TimeoutError):
                read_to_end(connection)  # what comes before the end is a hello
                break
            connection.sendall(bytes([byte]))
    return time.monotonic() - began


@pytest.mark.timing
@pytest.mark.parametrize("message", [b"%d !list.", b"%d upperr.x", b"%d raises.x"])
def test_one_sessions_flood_does_not_stall_another(tmp_path: Path, message: bytes) -> None:
    flood = OPENING + b"".join(netstring(message % number) for number in range(1, 10_000)) + netstring(b"10000 !ping.")
    plugins = ("--plugins=none", "--plugins-dir", str(VERSES), "--inline=raises")
    with serving(tmp_path, *plugins) as server, Session(server) as other:
        assert other.ask("upper").code == "ok"

        def measure() -> float:
            with server.connect() as flooding:
                threading.Thread(target=flooding.sendall, args=(flood,), daemon=True).start()
                last = netstring(b"10000 ok.")
                drain = threading.Thread(target=read_until, args=(flooding, lambda received: received.endswith(last)))
                drain.start()
                elapsed_s = []
                while drain.is_alive():
                    elapsed_s.append(other.ask("upper").elapsed_s)
                drain.join()
            return max(elapsed_s)

        assert_within(0.25, measure)
        assert len(server.log) < 100_000
