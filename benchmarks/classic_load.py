"""The load generator for the classic dialect: a connection for each poem, which the server closes after its answer."""

import select
import socket
import time

from benchmarks.answers import WrongAnswer
from benchmarks.load import PATIENCE_S, Address
from benchmarks.samples import Load
from benchmarks.traffic import Traffic

_MOST_BYTES = 64 * 1024


class _Exchange:
    """One connection, one poem."""

    __slots__ = ("answered_at", "expected", "received", "socket", "started_at")

    def __init__(self, address: Address, request: bytes, expected: bytes) -> None:
        self.expected = expected
        self.received = b""
        self.answered_at = 0.0
        self.started_at = time.perf_counter()
        self.socket = socket.socket()
        # On loopback the kernel completes a connection by itself, so this does not wait for the server.
        self.socket.connect(address)
        self.socket.setblocking(False)
        self.socket.send(request)

    def receive(self) -> bool:
        """Read once; say whether the server has closed, after the right answer and nothing else."""
        try:
            data = self.socket.recv(_MOST_BYTES)
        except BlockingIOError:
            return False
        self.received += data
        if data:
            self.answered_at = time.perf_counter()
            return False
        if self.received != self.expected:
            raise WrongAnswer(f"expected {self.expected[:60]!r}, not {self.received[:60]!r}")
        return True


class ClassicGenerator:
    """Keeps some connections busy, each with one poem.

    Args:
        address: of the server.
        traffic: what to send, and what must come back.
        concurrency: how many connections at a time.
    """

    def __init__(self, address: Address, traffic: Traffic, concurrency: int) -> None:
        self._address = address
        self._traffic = traffic
        self._concurrency = concurrency
        self._next = 0

    def run(self, seconds: float) -> Load:
        """Load the server for some time, and wait until all is answered."""
        open_now: dict[int, _Exchange] = {}
        cpu, start = time.process_time(), time.perf_counter()
        with select.epoll() as poll:
            try:
                latencies_s = self._turn(poll, open_now, start + seconds)
            finally:
                for exchange in open_now.values():
                    exchange.socket.close()
        return Load(len(latencies_s), time.perf_counter() - start, time.process_time() - cpu, latencies_s)

    def _turn(self, poll: select.epoll, open_now: dict[int, _Exchange], until: float) -> list[float]:
        latencies_s: list[float] = []
        for _ in range(self._concurrency):
            self._open(poll, open_now)
        while open_now:
            events = poll.poll(PATIENCE_S)
            if not events:
                raise TimeoutError(f"the server has not answered for {PATIENCE_S:g} s")
            for descriptor, _ in events:
                exchange = open_now[descriptor]
                if exchange.receive():
                    latencies_s.append(exchange.answered_at - exchange.started_at)
                    exchange.socket.close()  # which takes it out of the poll
                    del open_now[descriptor]
                    if time.perf_counter() < until:
                        self._open(poll, open_now)
        return latencies_s

    def _open(self, poll: select.epoll, open_now: dict[int, _Exchange]) -> None:
        requests = self._traffic.requests
        index = self._next = (self._next + 1) % len(requests)
        exchange = _Exchange(self._address, requests[index], self._traffic.replies[index])
        open_now[exchange.socket.fileno()] = exchange
        poll.register(exchange.socket, select.EPOLLIN)
