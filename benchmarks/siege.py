"""The work with slow connections that take every slot: what is left for those who send whole requests."""

import contextlib
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import attrs

from benchmarks.answers import WrongAnswer
from benchmarks.kernel import cpu_seconds, pinned
from benchmarks.load import PATIENCE_S, Address
from benchmarks.plan import Plan, interleave, measuring
from benchmarks.samples import MICROSECONDS, Column, Figures, Result
from benchmarks.servers import BESIEGED, ROOT, SLOTS, Running
from benchmarks.traffic import Traffic

SLOW_ONES = 10 * SLOTS
STAYING, COMING = 12, 4
_READ_BYTES = 64 * 1024
_PATIENCE = struct.pack("ll", int(PATIENCE_S), 0)
_LEAST_S = 2.0  # so that each of the slow ones has had its turn


class Visitor:
    """A good client, with one request in flight.

    Args:
        address: of the server.
        traffic: what to send, and what must come back.
        stays: whether its connection stays open; else there is one for each request.
        connected: called with each new connection.
    """

    def __init__(
        self, address: Address, traffic: Traffic, stays: bool, connected: Callable[["Visitor"], object]
    ) -> None:
        self._address = address
        self._connected = connected
        self._traffic = traffic
        self._stays = stays
        self._index = 0
        self._received = b""
        self.lost = 0
        self._connect()

    def send(self) -> None:
        """Send the next request."""
        with contextlib.suppress(OSError):  # whose connection is gone finds out when it reads
            self.socket.sendall(self._traffic.requests[self._index])

    def receive(self) -> bool:
        """Read once; say whether a request has been answered. One that is cut off before that is sent again."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self.lost += 1
            self._come_again()
            return False
        self._received += data
        expected = self._traffic.replies[self._index]
        if not self._received.startswith(b"HTTP/1.1 200 OK\r\n"[: len(self._received)]):
            raise WrongAnswer(f"expected a poem, not {self._received[:200]!r}")
        if not self._received.endswith(expected):
            return False
        self._received, self._index = b"", (self._index + 1) % len(self._traffic.requests)
        if not self._stays:
            self._come_again(and_send=False)
        return True

    def _come_again(self, *, and_send: bool = True) -> None:
        self.socket.close()
        self._received = b""
        self._connect()
        if and_send:
            self.send()

    def _connect(self) -> None:
        self.socket = socket.socket()
        # The kernel's timeout, since Python's own costs a poll(2) for each call; what is read is there already.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        self.socket.connect(self._address)
        self._connected(self)


@attrs.frozen
class Visit:
    """What good clients saw.

    Attributes:
        answered: requests.
        lost: those that had to be sent again.
        wall_s: how long it took.
        cpu_s: what it cost the server.
    """

    answered: int
    lost: int
    wall_s: float
    cpu_s: float = 0.0

    def __add__(self, other: "Visit") -> "Visit":
        return Visit(*(mine + its for mine, its in zip(attrs.astuple(self), attrs.astuple(other), strict=True)))

    @property
    def cpu_us(self) -> float:
        """What each request cost the server."""
        return MICROSECONDS * self.cpu_s / self.answered

    @property
    def per_s(self) -> float:
        """How many were answered in a second."""
        return self.answered / self.wall_s


class Visitors:
    """Good clients, some of which stay, and some of which come anew for each request.

    Args:
        address: of the server.
        traffic: what they send.
    """

    def __init__(self, address: Address, traffic: Traffic) -> None:
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Visitor] = {}
        self._visitors = [
            Visitor(address, traffic, number < STAYING, self._watch) for number in range(STAYING + COMING)
        ]

    def _watch(self, visitor: Visitor) -> None:
        descriptor = visitor.socket.fileno()
        self._by_descriptor[descriptor] = visitor
        self._poll.register(descriptor, select.EPOLLIN)

    def run(self, seconds: float) -> Visit:
        """Load the server for some time."""
        lost = sum(each.lost for each in self._visitors)
        answered, start = 0, time.perf_counter()
        for each in self._visitors:
            each.send()
        waiting = set(self._visitors)
        while waiting:
            ready = self._poll.poll(PATIENCE_S)
            if not ready:
                raise TimeoutError(f"the server has not answered for {PATIENCE_S:g} s")
            goes_on = time.perf_counter() - start < seconds
            for each in (self._by_descriptor[descriptor] for descriptor, _ in ready):
                if each in waiting and each.receive():
                    answered += 1
                    each.send() if goes_on else waiting.discard(each)
        lost = sum(each.lost for each in self._visitors) - lost
        return Visit(answered, lost, time.perf_counter() - start)

    def close(self) -> None:
        """Go."""
        self._poll.close()
        for each in self._visitors:
            each.socket.close()


@contextlib.contextmanager
def _slow_ones(address: Address) -> Iterator[None]:
    """Let the slow ones do what they do, and end them."""
    command = [sys.executable, "-m", "benchmarks.peers.slow_loris", address[0], str(address[1]), str(SLOW_ONES)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the slow ones do not start")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


@attrs.frozen
class Siege:
    """Good requests: with slow connections that take every slot, and before and after that without."""

    key: str
    title: str
    size: int
    columns: tuple[Column, ...] = (
        Column("cpu_us", "server CPU µs/request without"),
        Column("besieged_cpu_us", "with"),
        Column("per_s", "requests/s without", ",.0f"),
        Column("besieged_per_s", "with", ",.0f"),
        Column("kept", "kept", ".0%", has_range=True),
        Column("lost", "lost of 1,000", ".1f"),
        Column("busy", "server busy without", ".0%"),
    )

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = plan.rows([BESIEGED])
        with plan.running(rows) as started:
            interleave(rows, measuring(self._measure, started, plan), plan.rounds)
        return Result(self.key, self.title, self.columns, rows)

    def _measure(self, running: Running, plan: Plan) -> Figures:
        assert running.server.dialect is not None
        seconds = max(_LEAST_S, plan.seconds) if plan.seconds >= 0.5 else plan.seconds
        with pinned(plan.generator_cpu):
            visitors = Visitors(running.address, running.server.dialect(self.size, 1))
            with contextlib.closing(visitors):
                visitors.run(plan.warm_up_s)
                before = _serve(visitors, running.pid, seconds)
                with _slow_ones(running.address):
                    besieged = _serve(visitors, running.pid, seconds)
                after = _serve(visitors, running.pid, seconds)
        free = before + after
        return {
            "cpu_us": free.cpu_us,
            "besieged_cpu_us": besieged.cpu_us,
            "per_s": free.per_s,
            "besieged_per_s": besieged.per_s,
            "kept": besieged.per_s / free.per_s,
            "lost": 1_000 * besieged.lost / besieged.answered,
            "busy": free.cpu_s / free.wall_s,
        }


def _serve(visitors: Visitors, pid: int, seconds: float) -> Visit:
    before = cpu_seconds(pid)
    visit = visitors.run(seconds)
    return attrs.evolve(visit, cpu_s=cpu_seconds(pid) - before)
