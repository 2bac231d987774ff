"""Poem servers and proxies as processes, and servers in threads that behave as a test needs: well, slowly, or badly."""

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.processes import DEADLINE_S, Server, serving

ANYWHERE = "tcp:0:interface=127.0.0.1:backlog=1024"
_numbers = itertools.count()

Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def poem_server(folder: Path, verb: str, *arguments: str, listen: int = 1, **extra: Any) -> Iterator[Server]:
    """Run ``poem serve`` or ``poem proxy`` on free ports until the block ends; ``extra`` adds to its environment."""
    own = folder / f"{verb}-{next(_numbers)}"
    own.mkdir()
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


class Peer:
    """A server in a thread.

    Args:
        talk: called with each connection in its own thread; the connection is closed in order afterwards.

    Attributes:
        connected_at: when each connection came.
        left: how many of them the client has ended.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.connected_at: list[float] = []
        self.left = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Take no more connections; those that are open may end."""
        if self._is_closed:
            return
        self._is_closed = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._socket.close()

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                break
            self.connected_at.append(time.monotonic())
            threads.append(threading.Thread(target=self._serve, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join(DEADLINE_S)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(DEADLINE_S)
            try:
                self._talk(connection)
            except OSError:
                self.left += 1


@contextlib.contextmanager
def peer(talk: Talk) -> Iterator[Peer]:
    """Run a peer until the block ends."""
    running = Peer(talk)
    try:
        yield running
    finally:
        running.close()


def sends(poem: bytes) -> Talk:
    """Make a well-behaved server."""
    return lambda connection: connection.sendall(poem)


def sends_in(poem: bytes, seconds: float, pieces: int = 20) -> Talk:
    """Make a slow server that takes so many seconds for the poem."""

    def talk(connection: socket.socket) -> None:
        end = time.monotonic()
        for number in range(pieces):
            end += seconds / pieces
            time.sleep(max(0, end - time.monotonic()))
            connection.sendall(poem[number * len(poem) // pieces : (number + 1) * len(poem) // pieces])

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
