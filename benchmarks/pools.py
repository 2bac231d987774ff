"""The works with worker processes: the pool by itself beside other pools, and the price of isolation in a server."""

import contextlib
import importlib.util
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks import traffic
from benchmarks.answers import WrongAnswer
from benchmarks.load import PATIENCE_S, generator
from benchmarks.plan import Plan, interleave
from benchmarks.pool_jobs import Order
from benchmarks.samples import MICROSECONDS, STEADY_COLUMNS, Column, Figures, Load, Result, Row, row_key
from benchmarks.servers import OTHER_CHECKOUT, ROOT, Running
from benchmarks.works import measure_load

KIB = 1024
SIZES = {"1 KB": KIB, "50 KB": 50 * KIB, "2 MB": 2 * KIB * KIB}
WORKERS, INLINE, EXECUTOR, PEBBLE = "xformd-workers", "xformd-inline", "ProcessPoolExecutor", "pebble"
ISOLATED_SERVER, INLINE_SERVER = "xformd --isolate", "xformd --inline"
_STOP_S = 10.0


@attrs.frozen
class Host:
    """A process with a pool: the module that it runs, and what must be installed."""

    module: str
    arguments: tuple[str, ...] = ()
    needs: str = "xformd"
    folder: Path = ROOT


HOSTS = {
    WORKERS: Host("pool_xformd"),
    INLINE: Host("pool_xformd", ("--inline",)),
    EXECUTOR: Host("pool_executor"),
    PEBBLE: Host("pool_pebble", needs="pebble"),
}


def _hosts(other: Path | None) -> dict[str, Host]:
    if other is None:
        return HOSTS
    return HOSTS | {name + OTHER_CHECKOUT: attrs.evolve(HOSTS[name], folder=other) for name in (WORKERS, INLINE)}


_COLUMNS = (
    Column("overhead_us", "µs/call without the transform", ",.0f", has_range=True),
    Column("cpu_us", "CPU µs/call, all processes", ",.0f", has_range=True),
    Column("per_s", "calls/s", ",.0f", has_range=True),
    Column("p50_us", "p50 µs", ",.0f"),
    Column("p99_us", "p99 µs", ",.0f"),
)


@attrs.frozen
class Pools:
    """A pool of two workers in one process, without a network. Nothing is pinned: the workers need the other CPU."""

    key: str
    title: str
    outstanding: int

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows: dict[str, Row] = {}
        measures: dict[str, Callable[[], Figures]] = {}
        with contextlib.ExitStack() as stack:
            for name, host in _hosts(plan.other_checkout).items():
                if not plan.wants(name):
                    continue
                for size in SIZES:
                    rows[row_key(name, size)] = Row(name, size)
                try:
                    process = stack.enter_context(_running(host))
                except RuntimeError as error:
                    for size in SIZES:
                        rows[row_key(name, size)].error = str(error)
                else:
                    measures |= {row_key(name, size): self._measure(process, size, plan) for size in SIZES}
            interleave(rows, measures, plan.rounds)
        by_size = sorted(rows, key=lambda key: [*SIZES].index(rows[key].shape))
        columns = _COLUMNS if self.outstanding == 1 else _COLUMNS[1:]  # else a call's time is mostly waiting
        return Result(self.key, self.title, columns, {key: rows[key] for key in by_size})

    def _measure(self, process: subprocess.Popen[str], size: str, plan: Plan) -> Callable[[], Figures]:
        def measure() -> Figures:
            alone_us = MICROSECONDS * _seconds_alone(SIZES[size], plan.seconds / 8)
            figures = measure_load(_Jobs(process, SIZES[size], self.outstanding), process.pid, plan)
            return figures | {"overhead_us": figures["p50_us"] - alone_us}

        return measure


@attrs.frozen
class Isolation:
    """A server whose transform runs in a worker, beside one whose transform runs in the reactor. Nothing is pinned."""

    key: str
    title: str
    connections: int

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        servers = plan.rows([ISOLATED_SERVER, INLINE_SERVER])
        unpinned = attrs.evolve(plan, server_cpu=None)
        measures: dict[str, Callable[[], Figures]] = {}
        with unpinned.running(servers) as started:
            rows = {
                row_key(name, size): Row(name, size, error=server.error)
                for size in SIZES
                for name, server in servers.items()
            }
            for size in SIZES:
                for each in started:
                    measures[row_key(each.server.name, size)] = self._measure(each, SIZES[size], unpinned)
            interleave(rows, measures, plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)

    def _measure(self, running: Running, size: int, plan: Plan) -> Callable[[], Figures]:
        def measure() -> Figures:
            # One request in flight on each: a worker that waits for a CPU can be overtaken by a whole cycle of ids.
            with generator(running.address, traffic.session(size, 1), self.connections, 1) as opened:
                return measure_load(opened, running.pid, plan)

        return measure


@attrs.frozen
class _Jobs:
    """Loads a pool in another process."""

    process: subprocess.Popen[str]
    size: int
    outstanding: int

    def run(self, seconds: float) -> Load:
        """Have calls made for some time."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(attrs.asdict(Order(self.size, self.outstanding, seconds))) + "\n")
        self.process.stdin.flush()
        line = _read_line(self.process, seconds + PATIENCE_S)
        if not line:
            raise WrongAnswer("the process has ended; what it printed says why")
        told = json.loads(line)
        latencies_s = [latency_ns / 1e9 for latency_ns in told["latencies_ns"]]
        return Load(told["calls"], told["wall_s"], float("nan"), latencies_s)


@contextlib.contextmanager
def _running(host: Host) -> Iterator[subprocess.Popen[str]]:
    if importlib.util.find_spec(host.needs) is None:
        raise RuntimeError(f"not installed: {host.needs}")
    command: Sequence[str] = (sys.executable, "-m", f"benchmarks.peers.{host.module}", *host.arguments)
    process = subprocess.Popen(command, cwd=host.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if not _read_line(process, PATIENCE_S):
            raise RuntimeError("does not start")
        yield process
    finally:
        _end(process)


def _read_line(process: subprocess.Popen[str], patience_s: float) -> str:
    """Read what a process answers: a line at a time, so that nothing waits in a buffer of this side."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], patience_s)
    return process.stdout.readline() if ready else ""


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _seconds_alone(size: int, seconds: float) -> float:
    """Return how long the transform takes by itself: the median, as for the calls that it is compared with."""
    poems = traffic.poems(size, 1)
    times: list[float] = []
    until = time.perf_counter() + seconds
    start = 0.0
    while not times or start < until:
        start = time.perf_counter()
        traffic.cummingsify(poems[len(times) % len(poems)])
        times.append(time.perf_counter() - start)
    return statistics.median(times)
