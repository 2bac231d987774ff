"""A small client of HTTP, on a socket: what it sends and reads is bytes."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from support.http_front import Answer, answers
from support.processes import DEADLINE_S, Server, read_to_end
from support.session_client import abort

__all__ = ["HTTP", "Http", "abort", "connect", "exchange", "whole"]

HTTP = ("--http", "tcp:0:interface=127.0.0.1")
"""Lets a server answer HTTP on a free port."""


def connect(server: Server) -> socket.socket:
    """Open a connection to a server's HTTP port."""
    place = urlsplit(server.http)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 80), timeout=DEADLINE_S)


def whole(data: bytes) -> list[Answer]:
    """Give the answers, where all of them are whole; else none."""
    try:
        return answers(data)
    except (AssertionError, ValueError, KeyError):
        return []


class Http:
    """A connection.

    Args:
        connection: its socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, data: bytes) -> None:
        """Send."""
        self.socket.sendall(data)

    def receive(self, count: int = 1) -> list[Answer]:
        """Give so many answers, and no more than have come."""
        data, ends_at = b"", time.monotonic() + DEADLINE_S
        while len(found := whole(data)) < count:
            assert time.monotonic() < ends_at
            piece = self.socket.recv(65_536)
            assert piece, f"the server closed after {data!r}"
            data += piece
        return found

    def ask(self, data: bytes) -> Answer:
        """Send one request, and give its answer."""
        self.send(data)
        (answer,) = self.receive()
        return answer

    def rest(self) -> list[Answer]:
        """Give what comes until the server closes."""
        return answers(read_to_end(self.socket))


@contextmanager
def exchange(server: Server) -> Iterator[Http]:
    """Open a connection until the block ends."""
    with connect(server) as connection:
        yield Http(connection)
