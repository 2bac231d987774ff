"""Poem servers and proxies as processes, and servers in threads that behave as a test needs: well, slowly, or badly."""

import contextlib
import socket
import socketserver
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.processes import DEADLINE_S, Server, serving

ANYWHERE = "tcp:0:interface=127.0.0.1"

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def poem_server(folder: Path, verb: str, *arguments: str, listen: int = 1, **extra: Any) -> Iterator[Server]:
    """Run ``poem serve`` or ``poem proxy`` on free ports until the block ends; ``extra`` adds to its environment."""
    own = Path(tempfile.mkdtemp(dir=folder))
    places = [word for _ in range(listen) for word in ("--listen", ANYWHERE)]
    with serving(own, *arguments, *places, verb=("poem", verb), ready="the poem of", **extra) as server:
        yield server


def addresses_of(server: Server) -> list[str]:
    """Return every address of a server that listens on several."""
    return [line.rpartition(" ")[2] for line in server.greeting if " listening on " in line]


def connections(server: Server) -> int:
    """Count the open connections of a server."""
    port = int(server.address.rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01" for line in lines)


class Peer(socketserver.ThreadingTCPServer):
    """A server in threads, which calls ``talk`` with each connection, and then closes it in order.

    Attributes:
        connected_at: when each connection came.
        left: how many of them the client has ended.
    """

    request_queue_size = 1024

    def __init__(self, talk: Talk) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self._talk = talk
        self.address = "{}:{}".format(*self.server_address)
        self.connected_at: list[float] = []
        self.left = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connected_at.append(time.monotonic())
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(DEADLINE_S)
        try:
            self._talk(request)
        except OSError:
            self.left += 1

    def shutdown_request(self, request: Any) -> None:
        request.close()  # and no more: a connection that is to be reset must not be ended in order before


@contextlib.contextmanager
def peer(talk: Talk) -> Iterator[Peer]:
    """Run a peer until the block ends."""
    with Peer(talk) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        try:
            yield running
        finally:
            running.shutdown()


def sends(poem: bytes) -> Talk:
    """Make a well-behaved server."""
    return lambda connection: connection.sendall(poem)


def sends_in(poem: bytes, seconds: float) -> Talk:
    """Make a slow server that takes this long for the poem, in 20 pieces."""

    def talk(connection: socket.socket) -> None:
        start = time.monotonic()
        for number in range(20):
            time.sleep(max(0, start + seconds * (number + 1) / 20 - time.monotonic()))
            connection.sendall(poem[number * len(poem) // 20 : (number + 1) * len(poem) // 20])

    return talk


def sends_after(event: threading.Event, poem: bytes) -> Talk:
    """Make a server that sends its poem once the event is set."""

    def talk(connection: socket.socket) -> None:
        event.wait(DEADLINE_S)
        connection.sendall(poem)

    return talk


def drips(connection: socket.socket) -> None:
    """Send a byte 20 times a second, for ever."""
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def floods(connection: socket.socket) -> None:
    """Send 1 GB."""
    for _ in range(1000):
        connection.sendall(b"x" * 1_000_000)


def resets_half_way(connection: socket.socket) -> None:
    """Send half a poem and reset the connection."""
    connection.sendall(b"The Owl and the ")
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closes(connection: socket.socket) -> None:
    """Close without sending anything."""


def never_answers(connection: socket.socket) -> None:
    """Wait until the client closes."""
    if not connection.recv(1):
        raise ConnectionResetError


def only_listens(connection: socket.socket) -> None:
    """Read whatever the client sends, and never answer."""
    while connection.recv(65_536):
        pass
