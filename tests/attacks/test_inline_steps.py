"""Inline steps on the longest poems, many at once, from one peer: how long another's small request takes meanwhile.

The attacker is a process of its own, so that it takes no time from what is measured.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.http_client import HTTP
from support.processes import Server, netstring, serving
from support.session_client import OPENING, Session
from support.timing import assert_within
from xformd.runners.policy import LONG_POEM_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.timing]

P99_S = 0.06
WINDOW_S = 1.5

LONGEST = b"\n" * (10 * 1024 * 1024 - 500)
SLOWEST = b"\n" * (LONG_POEM_BYTES - 2) + b"\r\n"
"""Of the poems that stay in the reactor, the one that takes longest there."""

# Sends the same requests over some connections whenever all of them have been answered; prints a line for each answer.
ATTACKER = """
import socket, sys, threading
host, port, connections, folder, mark, count = sys.argv[1:]
opening, payload = (open(f"{folder}/{name}", "rb").read() for name in ("opening", "payload"))
mark, count = mark.encode(), int(count)

def attack():
    connection = socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0))
    connection.sendall(opening)
    while True:
        threading.Thread(target=connection.sendall, args=(payload,), daemon=True).start()
        answered, tail = 0, b""
        while answered < count:
            data = tail + connection.recv(1_000_000)
            for _ in range(data.count(mark)):
                answered += 1
                print("answered", flush=True)
            tail = data[1 - len(mark):]

for _ in range(int(connections)):
    threading.Thread(target=attack).start()
"""


def in_session(steps: int, poem: bytes, count: int) -> bytes:
    spec = b"+".join([b"reverse-lines"] * steps)
    return b"".join(netstring(b"%d %b." % (number, spec) + poem) for number in range(1, count + 1))


def over_http(steps: int, poem: bytes, count: int) -> bytes:
    path = b"+".join([b"reverse-lines"] * steps)
    return count * (b"POST /transform/%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path, len(poem)) + poem)


def in_batch(steps: int, poem: bytes, count: int) -> bytes:
    spec = "+".join(["reverse-lines"] * steps)
    body = count * (json.dumps({"spec": spec, "poem": poem.decode()}).encode() + b"\n")
    return b"POST /batch HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("inline"), "--plugins=none", "--workers", "2", *HTTP) as running:
        yield running


def p99_s(server: Server) -> float:
    """Return the 99th percentile of the time of a small inline request, from 127.0.0.1."""
    times = []
    with Session(server) as session:
        ends_at = time.monotonic() + WINDOW_S
        while time.monotonic() < ends_at:
            times.append(session.ask("cummingsify", b"The Owl").elapsed_s)
            time.sleep(0.005)
    return sorted(times)[len(times) * 99 // 100]


@pytest.mark.parametrize(
    ("make", "steps", "poem", "count", "connections"),
    [
        (in_session, 4, LONGEST, 1, 1),
        (in_session, 32, LONGEST, 1, 1),
        (over_http, 4, LONGEST, 1, 1),
        (in_session, 1, SLOWEST, 64, 1),
        (in_session, 4, SLOWEST, 64, 4),
        (in_session, 32, SLOWEST, 16, 4),
        (over_http, 32, SLOWEST, 16, 4),
        (in_batch, 32, SLOWEST, 64, 1),
    ],
    ids=lambda value: getattr(value, "__name__", len(value) if isinstance(value, bytes) else value),
)
def test_inline_steps_of_one_peer_hold_up_no_other(
    server: Server, tmp_path: Path, make: Any, steps: int, poem: bytes, count: int, connections: int
) -> None:
    (tmp_path / "opening").write_bytes(OPENING if make is in_session else b"")
    (tmp_path / "payload").write_bytes(make(steps, poem, count))
    host, _, port = (server.address if make is in_session else server.http.rpartition("/")[2]).rpartition(":")
    mark = {in_session: " ok.", over_http: "HTTP/1.1 200", in_batch: '"result"'}[make]
    arguments = [sys.executable, "-c", ATTACKER, host, port, str(connections), str(tmp_path), mark, str(count)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as attacker:
        try:
            time.sleep(0.3)
            what = f"{make.__name__}, {steps} steps on {len(poem)} bytes, {count} at a time"
            print(f"{what} over {connections} connections: p99 of another peer in seconds")
            assert_within(P99_S, lambda: p99_s(server))
            assert attacker.poll() is None, "the attack is over"
            assert attacker.stdout is not None
            has_answer = bool(select.select([attacker.stdout], [], [], 12)[0])
        finally:
            attacker.kill()
    assert has_answer or steps * len(poem) > 100_000_000, "the attack had no answer"
