"""One address takes all connections that a server has: others get in all the same."""

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.http_client import HTTP, Http
from support.http_front import request
from support.processes import DEADLINE_S, netstring, serving

pytestmark = pytest.mark.slow

MAX_CONNECTIONS = 200


def connect(address: str, source: str) -> socket.socket:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S, source_address=(source, 0))


@pytest.mark.parametrize("begins", [b"", b"GET /livez HT", b"8:xformd/2,"])
@pytest.mark.parametrize("front", ["netstring", "http"])
def test_an_address_with_all_connections_keeps_nobody_out(tmp_path: Path, front: str, begins: bytes) -> None:
    more = ("--max-connections", str(MAX_CONNECTIONS), "--plugins=none", *HTTP)
    with serving(tmp_path, *more) as server, ExitStack() as stack:
        address = server.http if front == "http" else server.address
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(connect(address, "127.0.0.2")).sendall(begins)
        answered = 0
        for number in range(MAX_CONNECTIONS // 4):
            other = stack.enter_context(connect(address, "127.0.0.3"))
            if front == "http":
                answered += Http(other).ask(request("/transform/upper", b"owl")).body == b"OWL"
            else:
                other.sendall(netstring(b"upper.owl"))
                answered += other.recv(100) == netstring(b"OWL")
            for _ in range(number % 3):  # it goes on
                stack.enter_context(connect(address, "127.0.0.2"))
        print(f"\n{front}, {begins!r}: {answered} of {MAX_CONNECTIONS // 4} were answered")
        assert answered == MAX_CONNECTIONS // 4
        assert server.log.count("closed ") <= 20
