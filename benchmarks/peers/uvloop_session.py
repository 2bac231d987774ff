"""The session dialect by hand on uvloop, for this one transform and with no limits: the ceiling of what Python does.

Its framing is correct, however TCP splits the bytes; what it lacks is everything else that a server needs.
"""

import asyncio
from typing import Any

import uvloop

OPENING = b"xformd/2"
HELLO = b'xformd/2 {"server": "uvloop", "max_request_bytes": 10485760, "max_in_flight": 64}'
MAX_HEADER = len("99999999:")
COMMA = ord(",")


class SessionProtocol(asyncio.Protocol):
    """One session."""

    __slots__ = ("_is_open", "_missing", "_pieces", "_transport")

    def __init__(self) -> None:
        self._is_open = False
        self._pieces: list[bytes] = []  # of a netstring that is not complete
        self._missing = 0  # bytes until it may be

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer all requests of a read in one write."""
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        replies: list[bytes] = []
        try:
            self._answer_all(data, replies)
        except ValueError:
            self._transport.abort()
            return
        if replies:
            self._transport.write(b"".join(replies))

    def _answer_all(self, data: bytes, replies: list[bytes]) -> None:
        position, size = 0, len(data)
        while position < size:
            colon = data.find(b":", position, position + MAX_HEADER)
            if colon < 0:
                self._keep(data[position:])
                return
            end = colon + 1 + _length(data[position:colon])
            if end >= size:
                self._pieces.append(data[position:])
                self._missing = end + 1 - size
                return
            if data[end] != COMMA:
                raise ValueError("no comma")
            if self._is_open:
                replies.append(_answer(data, colon + 1, end))
            elif data[colon + 1 : end] == OPENING:
                self._is_open = True
                replies.append(b"%d:%b," % (len(HELLO), HELLO))
            else:
                raise ValueError("no session")
            position = end + 1

    def _keep(self, start: bytes) -> None:
        """Wait for the rest of a length."""
        if len(start) >= MAX_HEADER:
            raise ValueError("no length")
        _length(start)
        self._pieces.append(start)
        self._missing = 1


def _length(digits: bytes) -> int:
    if not digits.isdigit() or (digits[0] == ord("0") and len(digits) > 1):
        raise ValueError("no length")
    return int(digits)


def _answer(data: bytes, start: int, end: int) -> bytes:
    space = data.index(b" ", start, end)
    dot = data.index(b".", space, end)
    number = data[start:space]
    if data[space + 1 : dot] == b"cummingsify":
        poem = data[dot + 1 : end].decode().lower().encode()
        return b"%d:%b ok.%b," % (len(number) + 4 + len(poem), number, poem)
    message = b"%b no-such-transform.there is only cummingsify" % number
    return b"%d:%b," % (len(message), message)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(SessionProtocol, "127.0.0.1", 0, backlog=2048)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
