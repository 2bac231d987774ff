"""The works with connections: what is asked of the servers, how it is shaped, and who takes part."""

import contextlib
import functools
import http.client
import time
from collections.abc import Callable
from typing import Protocol

import attrs

from benchmarks import servers, traffic
from benchmarks.answers import WrongAnswer
from benchmarks.classic_load import ClassicGenerator
from benchmarks.crowd import Crowd
from benchmarks.grpc_load import GrpcGenerator
from benchmarks.in_process import TRANSFORM_ALONE, transform_alone
from benchmarks.kernel import cpu_seconds, pinned, private_kib
from benchmarks.load import PATIENCE_S, Address, generator
from benchmarks.plan import Plan, interleave, measuring
from benchmarks.samples import STEADY_COLUMNS, Column, Figures, Load, Result, Row, row_key
from benchmarks.servers import Running

PIPELINING_PEERS = ("xformd", "tutorial", "uvloop", "grpc", "asgi", "fastapi", "echo-c")
HTTP_PEERS = (servers.OVER_HTTP, "fastapi", "starlette", "asgi", "granian", "twisted-httptools")
CACHING_PEERS = (servers.OVER_HTTP, "fastapi")
CROWD_PEERS = ("xformd", "tutorial", "uvloop", "fastapi")
IDLE_PEERS = (*CROWD_PEERS, servers.OVER_HTTP)
_PING_PONG = (32, 1)
_SETTLE_S = 0.5
_ROUNDS_IN_ONE = 3  # in (n), whose limit is 5 % above 1: one round differs from the next by as much


class Loading(Protocol):
    """What applies a load."""

    def run(self, seconds: float) -> Load:
        """Apply it for some time."""
        ...


def measure_load(loading: Loading, pid: int, plan: Plan) -> Figures:
    """Warm up, then put what the generator saw beside what the kernel charged the server for it."""
    loading.run(plan.warm_up_s)
    before = cpu_seconds(pid)
    load = loading.run(plan.seconds)
    return load.figures(cpu_seconds(pid) - before)


@attrs.frozen
class Steady:
    """Connections that stay open, each with some requests in flight.

    Over HTTP there is one in flight on a connection: clients do not pipeline.
    """

    key: str
    title: str
    size: int
    connections: int
    outstanding: int
    names: tuple[str, ...] = PIPELINING_PEERS
    with_transform: bool = False

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = plan.rows(self.names)
        with plan.running(rows) as started:
            measures = measuring(self.measure, started, plan)
            if self.with_transform:
                rows[TRANSFORM_ALONE] = Row(TRANSFORM_ALONE)
                measures[TRANSFORM_ALONE] = lambda: transform_alone(self.size, plan)
            for each in started:
                rows[each.server.name].shape = "{} x {}".format(*self._shape(each.server))
            interleave(rows, measures, plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)

    def _shape(self, server: servers.Server) -> tuple[int, int]:
        return (self.connections, self.outstanding) if server.pipelines or self.outstanding == 1 else _PING_PONG

    def measure(self, running: Running, plan: Plan) -> Figures:
        """Measure one server once."""
        connections, outstanding = self._shape(running.server)
        with pinned(plan.generator_cpu):
            loading: contextlib.AbstractContextManager[Loading]
            if running.server.dialect is None:
                loading = GrpcGenerator(running.address, self.size, connections, outstanding)
            else:
                messages = running.server.dialect(self.size, outstanding)
                loading = generator(running.address, messages, connections, outstanding)
            with loading as opened:
                return measure_load(opened, running.pid, plan)


@attrs.frozen
class Beside:
    """Netstrings on a server that has something besides, such as an HTTP port or an access file; and on one without."""

    key: str
    title: str
    works: tuple[Steady, ...]
    names: tuple[str, ...]

    def run(self, plan: Plan) -> Result:
        """Measure it, one work after the other, so that what is compared is measured within seconds."""
        wanted = plan.rows(self.names)
        rows: dict[str, Row] = {}
        with plan.running(wanted) as started:
            for work in self.works:
                keys = {name: row_key(name, work.key) for name in wanted}
                rows |= {keys[name]: Row(name, f"({work.key})", error=row.error) for name, row in wanted.items()}
                measures = {keys[each.server.name]: functools.partial(work.measure, each, plan) for each in started}
                interleave(rows, measures, _ROUNDS_IN_ONE * plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)


@attrs.frozen
class Cached:
    """GETs of clients that have the results already: ``If-None-Match``, answered 304."""

    key: str
    title: str
    size: int
    connections: int
    names: tuple[str, ...] = CACHING_PEERS

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = plan.rows(self.names)
        with plan.running(rows) as started:
            interleave(rows, {each.server.name: self._measuring(each, plan) for each in started}, plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)

    def _measuring(self, running: Running, plan: Plan) -> Callable[[], Figures]:
        assert running.server.dialect is not None
        posts = running.server.dialect(self.size, 1)
        messages = functools.cache(lambda: traffic.revalidating(posts, _tags(running.address, posts)))

        def measure() -> Figures:
            loading = generator(running.address, messages(), self.connections, 1)
            with pinned(plan.generator_cpu), loading as opened:
                return measure_load(opened, running.pid, plan)

        return measure


def _tags(address: Address, posts: traffic.Traffic) -> tuple[bytes, ...]:
    """GET the result of each poem once, and return their tags."""
    tags = []
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=PATIENCE_S)) as client:
        for url, expected in zip(traffic.urls(posts), posts.replies, strict=True):
            client.request("GET", url.decode())
            response = client.getresponse()
            if response.read() != expected or not response.headers["etag"]:
                raise WrongAnswer(f"a GET was answered {response.status}, or without a tag, or with another result")
            tags.append(response.headers["etag"].encode())
    return tuple(tags)


@attrs.frozen
class Classic:
    """A connection for each poem."""

    key: str
    title: str
    size: int
    concurrency: int
    names: tuple[str, ...] = ("xformd-classic", "tutorial-classic")

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = plan.rows(self.names)
        with plan.running(rows) as started:
            interleave(rows, measuring(self._measure, started, plan), plan.rounds)
        return Result(self.key, self.title, STEADY_COLUMNS, rows)

    def _measure(self, running: Running, plan: Plan) -> Figures:
        messages = traffic.classic(self.size, self.concurrency)
        with pinned(plan.generator_cpu):
            return measure_load(ClassicGenerator(running.address, messages, self.concurrency), running.pid, plan)


@attrs.frozen
class Idle:
    """Connections that have had one request answered, and stay open: the memory that each takes in the server."""

    key: str
    title: str
    size: int
    names: tuple[str, ...] = IDLE_PEERS
    columns: tuple[Column, ...] = (Column("kib_each", "KiB for each", has_range=True),)

    def run(self, plan: Plan) -> Result:
        """Measure it, on a fresh server each time: memory that was used once does not all go back."""
        rows = plan.rows(self.names)
        measures: dict[str, Callable[[], Figures]] = {
            name: lambda row=row: self._measure(row, plan)  # type: ignore[misc]
            for name, row in rows.items()
        }
        interleave(rows, measures, min(plan.rounds, 3))
        return Result(self.key, f"{self.title} of {plan.crowd:,}", self.columns, rows)

    def _measure(self, row: Row, plan: Plan) -> Figures:
        with plan.running({row.name: row}) as started, pinned(plan.generator_cpu):
            if not started:
                raise RuntimeError(row.error)
            (running,) = started
            assert running.server.dialect is not None
            with Crowd(running.address, running.server.dialect(self.size, 1)) as crowd:
                crowd.grow(1)
                crowd.run(plan.warm_up_s)
                before = private_kib(running.pid)
                crowd.grow(1 + plan.crowd)
                time.sleep(_SETTLE_S)
                return {"kib_each": (private_kib(running.pid) - before) / plan.crowd}


@attrs.frozen
class Crowded:
    """One request in flight at a time, on each of the open connections in turn."""

    key: str
    title: str
    size: int
    names: tuple[str, ...] = CROWD_PEERS

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        rows = plan.rows(self.names)
        with plan.running(rows) as started:
            interleave(rows, measuring(self._measure, started, plan), plan.rounds)
        crowds = _crowds(plan)
        columns = [Column(crowd_key(crowd), f"CPU µs/request at {crowd:,}", has_range=True) for crowd in crowds]
        return Result(self.key, self.title, tuple(columns), rows)

    def _measure(self, running: Running, plan: Plan) -> Figures:
        assert running.server.dialect is not None
        figures = {}
        with pinned(plan.generator_cpu), Crowd(running.address, running.server.dialect(self.size, 1)) as crowd:
            for size in _crowds(plan):
                crowd.grow(size)
                figures[crowd_key(size)] = measure_load(crowd, running.pid, plan)["cpu_us"]
        return figures


def _crowds(plan: Plan) -> tuple[int, ...]:
    return 1, 100, plan.crowd


def crowd_key(size: int) -> str:
    """Return the key of the figure for so many open connections."""
    return f"cpu_us_at_{size}"
