"""One address floods the server with inline requests on many connections; another one's answer comes soon."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import Server, netstring, serving
from support.session_client import Session
from support.timing import assert_within

pytestmark = [pytest.mark.slow, pytest.mark.timing]

ATTACK_S = 4.0
MAX_P99_S = 0.06

FLOOD = """
import select, socket, sys

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
requests = sys.stdin.buffer.read()
poll, connections, rest = select.epoll(), {}, {}
for _ in range(count):
    connection = socket.create_connection((host, port), source_address=("127.0.0.2", 0))
    connection.sendall(b"8:xformd/2,")
    connection.setblocking(False)
    connections[connection.fileno()], rest[connection.fileno()] = connection, memoryview(requests)
    poll.register(connection, select.EPOLLIN | select.EPOLLOUT)
print("flooding", flush=True)
while True:
    for number, events in poll.poll():
        if events & select.EPOLLIN:
            connections[number].recv(1 << 20)
        if events & select.EPOLLOUT:
            rest[number] = rest[number][connections[number].send(rest[number]) :] or memoryview(requests)
"""


@contextmanager
def flooding(server: Server, connections: int, request: bytes) -> Iterator[None]:
    """Send this request again and again, in a process of its own, until the block ends."""
    host, _, port = server.address.rpartition(":")
    command = [sys.executable, "-c", FLOOD, host, port, str(connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request * max(4, 200_000 // len(request)))
            process.stdin.close()
            assert process.stdout.readline() == b"flooding\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("connections", "spec", "poem"),
    [(200, b"upper", b"x"), (30, b"upper", b"x" * 65_000), (30, b"reverse-lines", b"\r\n" * 32_000)],
    ids=["short", "long", "many-lines"],
)
def test_a_flood_on_many_connections_has_one_peers_time(
    connections: int, spec: bytes, poem: bytes, tmp_path: Path
) -> None:
    def measure() -> float:
        times = []
        with flooding(server, connections, netstring(b"1 %b.%b" % (spec, poem))):
            ends_at = time.monotonic() + ATTACK_S
            while time.monotonic() < ends_at:
                times.append(session.ask("upper", b"owl").elapsed_s)
                time.sleep(0.002)
        return sorted(times)[len(times) * 99 // 100]

    with serving(tmp_path, "--plugins=none") as server, Session(server, "127.0.0.3") as session:
        print(f"\n{connections} connections, {len(poem)} bytes each, another's p99 in seconds:", end=" ")
        assert_within(MAX_P99_S, measure)
