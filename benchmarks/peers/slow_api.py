"""An API that lower-cases what it is sent, after 50 ms, however many ask at once. A poem that hangs gets no answer."""

import asyncio
import re
import socket
from typing import Any

import uvloop

from benchmarks.peers.hang import HANG

TAKES_S = 0.05
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Api(asyncio.Protocol):
    """A connection, with one request at a time."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        """Keep what to answer on."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request that is complete, later."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length is not None and len(body) == int(length[1]):
            self._received = b""
            if body != HANG:
                asyncio.get_running_loop().call_later(TAKES_S, self._answer, body.lower())

    def _answer(self, body: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def main() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening on 127.0.0.1:{listening.getsockname()[1]}", flush=True)
    server = await asyncio.get_running_loop().create_server(Api, sock=listening)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
