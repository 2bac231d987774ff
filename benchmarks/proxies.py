"""The work with the caching proxy: what it has kept, beside asking the server behind it for the same.

The server is asked over the same connections, with as many requests in flight: it has one worker, or two, which is what
it has by default where there are two CPUs.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs

from benchmarks import traffic
from benchmarks.answers import WrongAnswer
from benchmarks.kernel import pinned
from benchmarks.load import Address, generator, open_connection
from benchmarks.plan import Plan, interleave, measuring
from benchmarks.samples import STEADY_COLUMNS, Figures, Result, Row
from benchmarks.servers import FOR_EVER, Running, Server, install, of_other_checkout, with_plugins_of
from benchmarks.works import measure_load

PROXY = "xformd proxy"
ONE_WORKER, TWO_WORKERS = "xformd, 1 worker", "xformd, 2 workers"
KILOBYTE = 1_000
_TRANSFORM = "slow-cummingsify"
_FILL_S = 0.5  # every poem of a cycle takes 5 ms, once
_handler = partial(traffic.session, transform=_TRANSFORM)


@attrs.frozen
class Hits:
    """A server with a slow transform, and a proxy that has its results already, under the same load."""

    key: str
    title: str
    size: int = 100 * KILOBYTE
    connections: int = 8

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        with tempfile.TemporaryDirectory() as folder:
            install(Path(folder), "slow")  # a proxy keeps nothing of a plugin that has no version
            upstreams = [_upstream(ONE_WORKER, 1, folder), _upstream(TWO_WORKERS, 2, folder)]
            with _proxied(upstreams, plan) as (rows, started):
                interleave(rows, measuring(self._measure, started, plan), plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)

    def _measure(self, running: Running, plan: Plan) -> Figures:
        opening = generator(running.address, _handler(self.size, 1), self.connections, 1)
        with pinned(plan.generator_cpu), opening as opened:
            if running.server.name in (ONE_WORKER, TWO_WORKERS):
                return measure_load(opened, running.pid, plan)
            opened.run(_FILL_S)
            misses = _misses(running.address)
            figures = measure_load(opened, running.pid, plan)
            if missed := _misses(running.address) - misses:
                raise WrongAnswer(f"{missed} requests were no hits")
            return figures


@contextlib.contextmanager
def _proxied(upstreams: list[Server], plan: Plan) -> Iterator[tuple[dict[str, Row], list[Running]]]:
    """Start servers, and proxies in front of the first one."""
    rows = {server.name: Row(server.name) for server in upstreams}
    with attrs.evolve(plan, servers={server.name: server for server in upstreams}).running(rows) as started:
        if not started:
            yield rows, started
            return
        proxies = [_proxy(PROXY, started[0].address)]
        if plan.other_checkout is not None:
            proxies.append(of_other_checkout(proxies[0], plan.other_checkout))
        in_front = attrs.evolve(plan, servers={server.name: server for server in proxies})
        rows_in_front = in_front.rows(in_front.servers)
        with in_front.running(rows_in_front) as started_in_front:
            yield rows | rows_in_front, started + started_in_front


def _upstream(name: str, workers: int, folder: str) -> Server:
    command = ("serve", "--port", "0", "--plugins", "slow", "--workers", str(workers), *FOR_EVER)
    environ = with_plugins_of(folder)
    return Server(name, (sys.executable, "-m", "xformd", *command), _handler, environ=environ, without_http=True)


def _proxy(name: str, upstream: Address) -> Server:
    command = ("proxy", "{}:{}".format(*upstream), "--port", "0")
    return Server(name, (sys.executable, "-m", "xformd", *command), _handler)


def _misses(address: Address) -> int:
    """Ask a proxy how often it has had to ask."""
    with open_connection(address, _handler(1, 1)) as connected, connected.makefile("rb") as answer:
        connected.sendall(traffic.netstring(b"1 !list."))
        length = b"".join(iter(partial(answer.read, 1), b":"))
        told = answer.read(int(length)).removeprefix(b"1 ok.")
    return int(json.loads(told)["cache"]["misses"])
