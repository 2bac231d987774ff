"""The load generator for connections that stay open: raw sockets, epoll, slices of bytes made ahead of time.

A closed loop: each connection has so many requests in flight, and sends one more for each answer. A read's worth of
answers is compared at once, and as many requests go out in one write.
"""

import contextlib
import select
import socket
import time
from collections.abc import Iterator

from benchmarks.answers import WrongAnswer, check
from benchmarks.samples import Load
from benchmarks.traffic import Traffic

Address = tuple[str, int]

PATIENCE_S = 30.0
_READ_BYTES = 256 * 1024
_NEVER = 1 << 62


class Connection:
    """One connection, with what it has sent and what has been answered.

    Args:
        address: of the server.
        traffic: what to send, and what must come back.
        outstanding: how many requests to have in flight.
    """

    def __init__(self, address: Address, traffic: Traffic, outstanding: int) -> None:
        self.socket = open_connection(address, traffic)
        self.socket.setblocking(False)
        self.in_flight = 0
        self.answered = 0
        self.latencies_ns: list[int] = []
        self._outstanding = outstanding
        self._answers = check(traffic, outstanding)
        self._request_bytes = len(traffic.requests[0])
        self._stream = memoryview(traffic.request_stream)
        self._cycle_bytes = len(self._stream) // 2
        self._sent = 0  # bytes, since the beginning; likewise what there is to send
        self._to_send = 0
        self._timed_answer = _NEVER  # the one whose latency is being taken
        self._timed_since_ns = 0

    def fill(self) -> bool:
        """Have as many requests in flight as there should be; say whether all that was to be sent has gone."""
        missing = self._outstanding - self.in_flight
        self.in_flight = self._outstanding
        self._to_send += missing * self._request_bytes
        if self._timed_answer == _NEVER:
            self._timed_answer = self.answered + self._outstanding - missing + 1
            self._timed_since_ns = time.perf_counter_ns()
        return self.send()

    def send(self) -> bool:
        """Send what the socket takes; say whether that is all there is."""
        start = self._sent % self._cycle_bytes
        waiting = self._to_send - self._sent
        try:
            sent = self.socket.send(self._stream[start : start + waiting])
        except BlockingIOError:
            return False
        self._sent += sent
        return sent == waiting

    def receive(self) -> int:
        """Read once; give the number of answers that are complete now."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            raise ConnectionError("the server closed the connection")
        answers = self._answers.take(data)
        self.in_flight -= answers
        self.answered += answers
        if self.in_flight < 0:
            raise WrongAnswer(f"{-self.in_flight} more answers than requests")
        if self.answered >= self._timed_answer:
            self.latencies_ns.append(time.perf_counter_ns() - self._timed_since_ns)
            self._timed_answer = _NEVER
        return answers


class Generator:
    """Several connections under the same load.

    Args:
        address: of the server.
        traffic: what each connection sends.
        connections: how many.
        outstanding: how many requests each has in flight.
    """

    def __init__(self, address: Address, traffic: Traffic, connections: int, outstanding: int) -> None:
        self._connections = [Connection(address, traffic, outstanding) for _ in range(connections)]
        self._by_descriptor = {each.socket.fileno(): each for each in self._connections}
        self._poll = select.epoll()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self, seconds: float) -> Load:
        """Load the server for some time, and wait until all is answered."""
        before = sum(each.answered for each in self._connections)
        for each in self._connections:
            each.latencies_ns.clear()
        cpu, start = time.process_time(), time.perf_counter()
        self._turn(start + seconds)
        return Load(
            requests=sum(each.answered for each in self._connections) - before,
            wall_s=time.perf_counter() - start,
            generator_cpu_s=time.process_time() - cpu,
            latencies_s=[latency / 1e9 for each in self._connections for latency in each.latencies_ns],
        )

    def _turn(self, until: float) -> None:
        for each in self._connections:
            self._fill(each)
        busy = len(self._connections)
        while busy:
            events = self._wait()
            goes_on = time.perf_counter() < until
            for descriptor, event in events:
                each = self._by_descriptor[descriptor]
                if event & select.EPOLLOUT:
                    self._send(each)
                if event & ~select.EPOLLOUT and each.receive():
                    if goes_on:
                        self._fill(each)
                    elif not each.in_flight:
                        busy -= 1

    def _wait(self) -> list[tuple[int, int]]:
        events = self._poll.poll(PATIENCE_S)
        if not events:
            raise TimeoutError(f"the server has not answered for {PATIENCE_S:g} s")
        return events

    def _send(self, each: Connection) -> None:
        if each.send():
            self._poll.modify(each.socket.fileno(), select.EPOLLIN)

    def _fill(self, each: Connection) -> None:
        if not each.fill():
            self._poll.modify(each.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def close(self) -> None:
        """Close all connections."""
        self._poll.close()
        for each in self._connections:
            each.socket.close()


@contextlib.contextmanager
def generator(address: Address, traffic: Traffic, connections: int, outstanding: int) -> Iterator[Generator]:
    """Open connections for a load, and close them in the end."""
    opened = Generator(address, traffic, connections, outstanding)
    try:
        yield opened
    finally:
        opened.close()


def open_connection(address: Address, traffic: Traffic) -> socket.socket:
    """Connect and go through what comes before the first request. The socket blocks, but not for good."""
    connected = socket.create_connection(address, timeout=PATIENCE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        if traffic.opening:
            connected.sendall(traffic.opening)
        if traffic.has_hello:
            _read_hello(connected)
    except BaseException:
        connected.close()
        raise
    return connected


def _read_hello(connected: socket.socket) -> None:
    """Read one netstring and nothing after it; a server that knows the classic dialect alone closes instead."""
    received = b""
    while True:
        data = connected.recv(4096)
        if not data:
            raise ConnectionError("the server closed the connection at the session's opening")
        received += data
        length, colon, rest = received.partition(b":")
        if colon and len(rest) > int(length):
            break
    if not rest.startswith(b"xformd/2 "):
        raise WrongAnswer(f"expected a hello, not {received[:200]!r}")
    if len(rest) > int(length) + 1:
        raise ConnectionError(f"the server said {rest[int(length) + 1 :][:200]!r} before it was asked")
