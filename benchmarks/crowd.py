"""Many connections to one server, of which one at a time has something to say."""

import socket
import struct
import time
from types import TracebackType

from benchmarks.answers import Answers, check
from benchmarks.load import PATIENCE_S, Address, open_connection
from benchmarks.samples import Load
from benchmarks.traffic import Traffic

_READ_BYTES = 64 * 1024
_PATIENCE = struct.pack("ll", int(PATIENCE_S), 0)


class Crowd:
    """Connections that are all open, and that take turns with one request each.

    Args:
        address: of the server.
        traffic: what to send, and what must come back.
    """

    def __init__(self, address: Address, traffic: Traffic) -> None:
        self._address = address
        self._traffic = traffic
        self._members: list[tuple[socket.socket, Answers]] = []
        self._indexes: list[int] = []  # which request of the cycle is each member's next
        self._next = 0

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connected, _ in self._members:
            connected.close()

    def grow(self, size: int) -> None:
        """Open connections until there are so many, and have one request answered on each."""
        while len(self._members) < size:
            connected = open_connection(self._address, self._traffic)
            # The kernel's timeout, since Python's own costs a poll(2) for each call.
            connected.settimeout(None)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._members.append((connected, check(self._traffic, outstanding=1)))
            self._indexes.append(0)
            self._exchange(len(self._members) - 1)

    def run(self, seconds: float) -> Load:
        """Let them take turns for some time, and at least until each has had one."""
        latencies_s: list[float] = []
        cpu, start = time.process_time(), time.perf_counter()
        now, until = start, start + seconds
        while now < until or len(latencies_s) < len(self._members):
            self._next = (self._next + 1) % len(self._members)
            self._exchange(self._next)
            before, now = now, time.perf_counter()
            latencies_s.append(now - before)
        return Load(len(latencies_s), now - start, time.process_time() - cpu, latencies_s)

    def _exchange(self, member: int) -> None:
        connected, answers = self._members[member]
        index = self._indexes[member]
        self._indexes[member] = (index + 1) % len(self._traffic.requests)
        connected.sendall(self._traffic.requests[index])
        answered = 0
        while not answered:
            data = connected.recv(_READ_BYTES)
            if not data:
                raise ConnectionError("the server closed a connection of the crowd")
            answered = answers.take(data)
