"""What it costs to count each request: our own batched histograms, or one ``observe`` of prometheus-client for each.

    python -m benchmarks.histograms

feeds requests with a poem of 64 bytes to a session's fast path in this process, so that no socket hides the difference:
without counting, with ``BatchedCounts``, and with prometheus-client's ``Counter.inc`` and ``Histogram.observe`` in its
place. It prints microseconds of CPU time for each request, and how much counting adds.
"""

import time
from collections.abc import Callable
from typing import Any

import prometheus_client
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from xformd.counting import CountingService
from xformd.limits import Limits
from xformd.plugins.loader import load
from xformd.protocol import TransformFactory
from xformd.service import TransformService
from xformd.telemetry.metrics import BYTES, SECONDS, Metrics
from xformd.wire.netstring import encode

POEM = b"The Owl and the Pussy-cat went to sea in a beautiful pea-green  "
ROUNDS = 15
REQUESTS = 6_400
PIPELINED = (1, 64)


class _Observe:
    """Has ``append``, like a list of sizes."""

    def __init__(self, histogram: Any) -> None:
        self.append = histogram.observe


class PrometheusCounts:
    """What ``BatchedCounts`` does, with prometheus-client and for each request at once."""

    def __init__(self, registry: prometheus_client.CollectorRegistry) -> None:
        def histogram(name: str, bounds: Any, **labels: Any) -> Any:
            return prometheus_client.Histogram(name, name, buckets=bounds, registry=registry, **labels)

        requests = prometheus_client.Counter("requests", "-", ["transform", "front", "code"], registry=registry)
        self._requests = requests.labels("upper", "session", "ok")  # looked up once, as we do
        self._run_seconds = histogram("run_seconds", SECONDS, labelnames=["transform"]).labels("upper")
        self.poems_bytes = _Observe(histogram("poem_bytes", BYTES))
        self.results_bytes = _Observe(histogram("result_bytes", BYTES))
        self._count = 0

    def ran(self, seconds: float) -> None:
        """Count one request. For several that ran together this is too little, in favour of prometheus-client."""
        self._requests.inc()
        self._run_seconds.observe(seconds)


class PrometheusMetrics(Metrics):
    """Metrics whose batched counts are not batched."""

    def batched_counts(self, transform: str, front: Any) -> Any:  # noqa: ARG002 - the base's signature
        """Return the stand-in."""
        return PrometheusCounts(prometheus_client.CollectorRegistry())


class _Wire(StringTransport):
    def write(self, data: bytes) -> None:
        """Drop it."""


def session(metrics: Metrics | None) -> Callable[[bytes], None]:
    """Open a session with a server, and return what takes its input."""
    clock, limits = Clock(), Limits()
    service = TransformService.inline(load(), limits, clock)
    counting: Any = {} if metrics is None else {"session": CountingService(service, metrics, "session")}
    factory = TransformFactory(service, limits, clock, metrics=metrics, counting=counting)
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    protocol.makeConnection(_Wire())
    protocol.dataReceived(encode(b"xformd/2"))
    receive: Callable[[bytes], None] = protocol.dataReceived
    return receive


def us_per_request(receive: Callable[[bytes], None], pipelined: int) -> float:
    """Measure the CPU time of requests, so many in each read."""
    read = b"".join(encode(b"%d upper.%b" % (number, POEM)) for number in range(1, pipelined + 1))
    times = REQUESTS // pipelined
    started_s = time.process_time()
    for _ in range(times):
        receive(read)
    return (time.process_time() - started_s) / (times * pipelined) * 1e6


def main() -> None:
    """Measure and print."""
    sessions = {
        "no counting": session(None),
        "BatchedCounts": session(Metrics()),
        "prometheus-client": session(PrometheusMetrics()),
    }
    for pipelined in PIPELINED:
        best = dict.fromkeys(sessions, float("inf"))
        for _ in range(ROUNDS):  # interleaved, so that whatever else the machine does hits all of them
            for name, receive in sessions.items():
                best[name] = min(best[name], us_per_request(receive, pipelined))
        plain = best["no counting"]
        print(f"{pipelined} in each read:")
        for name, us in best.items():
            print(f"  {name:<18}{us:6.2f} us a request, {us / plain - 1:+.1%}")


if __name__ == "__main__":
    main()
