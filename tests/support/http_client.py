"""A small HTTP client on a socket: the bytes that it sends and reads are the test's own."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from support.http_front import Answer, answers
from support.processes import DEADLINE_S, Server, read_to_end

HTTP = ("--http", "tcp:0:interface=127.0.0.1")
"""Makes a server answer HTTP on a free port."""


def connect(server: Server, receive_buffer_bytes: int | None = None) -> socket.socket:
    """Open a connection to a server's HTTP port; with a small buffer, the server soon notices when nobody reads."""
    url = urlsplit(server.http)
    connection = socket.socket()
    connection.settimeout(DEADLINE_S)
    if receive_buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    try:
        connection.connect((url.hostname, url.port))
    except OSError:
        connection.close()
        raise
    return connection


def complete_answers(data: bytes) -> list[Answer]:
    """Return the answers, if all of them are complete; else none."""
    try:
        return answers(data)
    except (AssertionError, ValueError, KeyError):
        return []


class Http:
    """A client on one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, count: int = 1) -> list[Answer]:
        """Read until there is this number of complete answers."""
        data, ends_at = b"", time.monotonic() + DEADLINE_S
        while len(found := complete_answers(data)) < count:
            assert time.monotonic() < ends_at
            piece = self.socket.recv(65_536)
            assert piece, f"the server closed after {data!r}"
            data += piece
        return found

    def ask(self, data: bytes) -> Answer:
        """Send one request, and return its answer."""
        self.send(data)
        (answer,) = self.receive()
        return answer

    def rest(self) -> list[Answer]:
        """Read until the server closes."""
        return answers(read_to_end(self.socket))


@contextmanager
def exchange(server: Server) -> Iterator[Http]:
    """Open a connection until the block ends."""
    with connect(server) as connection:
        yield Http(connection)
