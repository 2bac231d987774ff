"""Slow clients: connections that begin a request and never end it, and that come again when they are cut off.

The first line of its output says that each has tried once. It ends when its standard input does, or its time is up.
"""

import contextlib
import select
import socket
import sys
import time

PERIOD_S = 2.0
"""How long each waits before its next byte."""

_HEAD = b"POST /transform/cummingsify HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
_MOST_S = 120.0


class Slow:
    """One connection, again and again.

    Args:
        address: of the server.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def turn(self) -> None:
        """Send one byte, or come again."""
        try:
            if self._socket is None:
                self._socket = self._connect()
            else:
                self._socket.send(b"a")
                if self._socket.recv(1_000) == b"":
                    self.close()
        except BlockingIOError:
            pass  # it still lives
        except OSError:
            self.close()

    def _connect(self) -> socket.socket:
        connected = socket.create_connection(self._address, timeout=1.0)
        connected.setblocking(False)
        with contextlib.suppress(OSError):
            connected.send(_HEAD)
        return connected

    def close(self) -> None:
        """Be gone."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def main(host: str, port: str, count: str) -> None:
    """Attack until standard input ends."""
    crowd = [Slow((host, int(port))) for _ in range(int(count))]
    for each in crowd:
        each.turn()
    print("ready", flush=True)
    ends_at, pause_s = time.monotonic() + _MOST_S, PERIOD_S / len(crowd)
    due = time.monotonic()
    while time.monotonic() < ends_at:
        for each in crowd:
            due += pause_s
            if select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
                return
            each.turn()


if __name__ == "__main__":
    main(*sys.argv[1:])
