"""What traces cost a request that is not sampled: ``python -m benchmarks.traces [ROUNDS]`` prints ratios of CPU time.

Two servers, one with ``traces = otlp`` and one without, get the same requests in alternating rounds. What is printed is
the CPU time of a request without traces, and the ratio, both of the fastest quarter of the rounds: a busy machine only
ever adds to them.
"""

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

ROUND_REQUESTS = 640
"""Short rounds, so that what else the machine does is the same for both of a pair."""

RATE = "0.000000001"
"""None is sampled here; a rate of 0 would be a case of its own."""

UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
POEM = b"The Owl and the Pussy-cat went to sea " * 16
TRACES = {
    "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
    "OTEL_TRACES_SAMPLER_ARG": RATE,
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # nobody listens there
}


def _netstring(string: bytes) -> bytes:
    return b"%d:%b," % (len(string), string)


def _http(*headers: str) -> bytes:
    lines = ("POST /transform/cummingsify HTTP/1.1", "Host: localhost", f"Content-Length: {len(POEM)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + POEM


_SESSION = _netstring(b"1 cummingsify." + POEM)
_TRACED = _netstring(b"1 cummingsify traceparent=%b." % UNSAMPLED.encode() + POEM)

WORKS = {
    "session, one at a time": ("session", _SESSION, 1),
    "session, 64 in a write": ("session", _SESSION, 64),
    "session, of an unsampled trace": ("session", _TRACED, 1),
    "HTTP": ("http", _http(), 1),
    "HTTP, of an unsampled trace": ("http", _http(f"traceparent: {UNSAMPLED}"), 1),
}


class Server:
    """A server, and a connection to each of its fronts."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._pid = process.pid
        assert process.stdout is not None
        ports = [int(process.stdout.readline().rpartition(b":")[2]) for _ in range(2)]
        self._connections = dict(zip(("session", "http"), map(self._connect, ports), strict=True))
        self._connections["session"].sendall(_netstring(b"xformd/2"))
        self._connections["session"].recv(1_000)

    @staticmethod
    def _connect(port: int) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def cpu_s(self, front: str, request: bytes, at_once: int) -> float:
        """Send it some thousand requests; return how much CPU time that has taken it, for each."""
        connection, answer_bytes = self._connections[front], 0
        began_s = self._used_s()
        for _ in range(ROUND_REQUESTS // at_once):
            connection.sendall(request * at_once)
            received = 0
            while received < (answer_bytes * at_once or 1):
                data = connection.recv(262_144)
                assert data, "the server has closed the connection"
                received += len(data)
            answer_bytes = answer_bytes or self._measure(received, at_once)
        return (self._used_s() - began_s) / ROUND_REQUESTS

    def _measure(self, received: int, at_once: int) -> int:
        time.sleep(0.1)
        for connection in self._connections.values():
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                received += len(connection.recv(1_000_000))
            connection.settimeout(60)
        return received // at_once

    def _used_s(self) -> float:
        return time.clock_gettime(~self._pid << 3 | 2)  # its CPUCLOCK_SCHED, as of clock_getcpuclockid(3)


@contextlib.contextmanager
def serving(traces: str, variables: Mapping[str, str]) -> Iterator[Server]:
    """Run a server without workers until the block ends."""
    flags = ("--port=0", "--http=tcp:0:interface=127.0.0.1", "--workers=0", "--plugins=none", f"--traces={traces}")
    command = (sys.executable, "-m", "xformd", "serve", *flags)
    environment = {**os.environ, **variables}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            yield Server(process)
        finally:
            process.terminate()


def main(rounds: int) -> None:
    """Print a line for each work."""
    with serving("none", {}) as without, serving("otlp", TRACES) as traced:
        for name, work in WORKS.items():
            pairs = []
            for number in range(rounds + 2):
                if number % 2:
                    pairs.append((without.cpu_s(*work), traced.cpu_s(*work)))
                else:
                    on_s, off_s = traced.cpu_s(*work), without.cpu_s(*work)
                    pairs.append((off_s, on_s))
            del pairs[:2]  # what is done once
            off_s, on_s = (statistics.mean(sorted(times)[: max(1, rounds // 4)]) for times in zip(*pairs, strict=True))
            median = statistics.median(on / off for off, on in pairs)
            print(f"{name:32} {1e6 * off_s:6.2f} us; with traces {on_s / off_s:.3f} (median of pairs: {median:.3f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=60, help="how many [%(default)s]")
    main(parser.parse_args().rounds)
