"""``python -m benchmarks.scale``: 3 to 300 simulated servers, balanced by the client's own code and by other rules.

The clock is simulated and every draw is seeded: the same arguments print the same figures. Each server has two workers
and a queue. Work is heavy-tailed: mostly about 25 ms, one request of 200 takes 3 s. Every client chooses by what it
alone knows. Meanwhile a tenth of the servers, at least one of each kind, get into trouble: some are ten times slower,
some answer ``internal`` at once, some die and come back, some vanish without a word. Under all rules
the half of the requests that may run twice is repeated elsewhere, and a server that refuses connections is left out, so
what differs is the rule alone. A request that fails, or takes 20 s, is lost; the percentiles are those of the others.
"""

import argparse
import functools
import heapq
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from xformd.client.balancer import Balancer, Node, kind_of, offers_of
from xformd.errors import ConnectionLost, InternalError
from xformd.spec import Spec, Step

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "pictures" / "balancing.svg"
SIZES, WORKERS, BUSY = (3, 10, 30, 100, 300), 2, 0.5
TYPICAL_S, SIGMA, LONG_S, LONG_SHARE = 0.025, 1.0, 3.0, 0.005
MEAN_S = 0.0412 * (1 - LONG_SHARE) + LONG_S * LONG_SHARE
TRIP_S, LOST_AFTER_S, SILENT_AFTER_S, REDIAL_S, TIMEOUT_S, TRIES = 0.0005, 4.0, 3.0, 0.5, 20.0, 4
MANY_CLIENTS = 10
TROUBLE = ("slow", "sick", "dead", "vanished")
SPEC = Spec((Step("work"),))
OFFERS = offers_of({"transforms": [{"name": "work", "deterministic": True, "distribution": "x", "version": "1"}]})


class World:
    """What happens when."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something after this time."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), act))

    def run(self) -> None:
        """Run until nothing is left to happen."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


class Server:
    """A server with its workers and its queue."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._queue: deque[Attempt] = deque()
        self._running: set[Attempt] = set()
        self.trouble = ""

    @property
    def is_away(self) -> bool:
        """Whether it can be reached no more."""
        return self.trouble in ("dead", "vanished")

    def take(self, attempt: "Attempt") -> None:
        """Queue a request."""
        if self.trouble == "sick":
            self._world.later(TRIP_S, lambda: attempt.end(InternalError("sick")))
        elif self.is_away:
            self._world.later(LOST_AFTER_S, lambda: attempt.end(ConnectionLost("gone")))
        else:
            self._queue.append(attempt)
            self._run_next()

    def get_into(self, trouble: str, seconds: float) -> None:
        """Be in trouble for some time."""
        self.trouble = trouble
        if self.is_away:
            lost = [*self._running, *self._queue]
            self._running.clear()
            self._queue.clear()
            for attempt in lost:
                delay_s = TRIP_S if trouble == "dead" else LOST_AFTER_S
                self._world.later(delay_s, lambda attempt=attempt: attempt.end(ConnectionLost("gone")))  # type: ignore[misc]
        self._world.later(seconds, lambda: setattr(self, "trouble", ""))

    def _run_next(self) -> None:
        while self._queue and len(self._running) < WORKERS:
            attempt = self._queue.popleft()
            self._running.add(attempt)
            self._world.later(attempt.work_s * (10 if self.trouble == "slow" else 1), lambda a=attempt: self._done(a))  # type: ignore[misc]

    def _done(self, attempt: "Attempt") -> None:
        if attempt in self._running:
            self._running.remove(attempt)
            attempt.end(None)
            self._run_next()


class Known(Node):
    """A server, as one client knows it: the client's own code decides by this."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.in_flight = 0
        self.unreachable_until = 0.0
        self.offers, self.workers = OFFERS, WORKERS

    @property
    def load(self) -> int:
        """See ``Node``."""
        return self.in_flight


class Rule(Protocol):
    """What chooses."""

    def choose(self, nodes: Sequence[Known], tried: Sequence[Known]) -> Known:
        """Return one of them."""

    def note(self, node: Known, seconds: float, error: Exception | None) -> None:
        """Learn from an answer."""

    def has_room(self, nodes: Sequence[Known]) -> bool:
        """Whether a request need not wait in the client."""


@attrs.define
class Simple:
    """A rule that learns nothing."""

    pick: Callable[[Sequence[Known]], Known]

    def choose(self, nodes: Sequence[Known], tried: Sequence[Known]) -> Known:
        """See ``Rule``."""
        return self.pick([node for node in nodes if node not in tried] or nodes)

    def note(self, node: Known, seconds: float, error: Exception | None) -> None:
        """See ``Rule``."""

    def has_room(self, _: Sequence[Known]) -> bool:
        """See ``Rule``."""
        return True


class Ours:
    """The client's own code."""

    def __init__(self, world: World, nodes: Sequence[Known]) -> None:
        self._balancer = Balancer(lambda: world.now, random.Random(world.rng.random()))
        self._balancer.nodes.extend(nodes)
        self._kind = kind_of(SPEC, 1_000)

    def choose(self, nodes: Sequence[Known], tried: Sequence[Known]) -> Known:
        """See ``Rule``."""
        return self._balancer.choose(nodes, SPEC, tried)

    def note(self, node: Known, seconds: float, error: Exception | None) -> None:
        """See ``Rule``."""
        self._balancer.note(node, self._kind, seconds, error)

    def has_room(self, nodes: Sequence[Known]) -> bool:
        """See ``Rule``."""
        return self._balancer.has_room(nodes, SPEC, self._kind)


def _random(world: World, _: Sequence[Known]) -> Rule:
    return Simple(world.rng.choice)


def _round_robin(world: World, nodes: Sequence[Known]) -> Rule:
    turn = itertools.count(world.rng.randrange(len(nodes)))
    return Simple(lambda ready: ready[next(turn) % len(ready)])


def _least(world: World, _: Sequence[Known]) -> Rule:
    return Simple(lambda ready: min(ready, key=lambda node: (node.in_flight, world.rng.random())))


def _two_choices(world: World, _: Sequence[Known]) -> Rule:
    def pick(ready: Sequence[Known]) -> Known:
        return min(world.rng.sample(ready, min(2, len(ready))), key=lambda node: node.in_flight)

    return Simple(pick)


RULES: dict[str, Callable[[World, Sequence[Known]], Rule]] = {
    "random": _random,
    "round robin": _round_robin,
    "least connections": _least,
    "power of two": _two_choices,
    "xformd": Ours,
}


@attrs.define(eq=False)
class Attempt:
    """A request at one server."""

    request: "Request"
    node: Known
    sent_at: float

    @property
    def work_s(self) -> float:
        """How long a worker takes."""
        return self.request.work_s

    def end(self, error: Exception | None) -> None:
        """Be answered."""
        self.node.in_flight -= 1
        self.request.client.answered(self, error)


@attrs.define(eq=False)
class Request:
    """What a caller waits for."""

    client: "Client"
    work_s: float
    asked_at: float
    may_run_twice: bool
    tried: list[Known] = attrs.field(factory=list)


class Client:
    """A program with a connection to each server."""

    def __init__(self, world: World, servers: Sequence[Server], rule: Callable[[World, Sequence[Known]], Rule]) -> None:
        self._world = world
        self._nodes = [Known(server) for server in servers]
        self._rule = rule(world, self._nodes)
        self._waiting: deque[Request] = deque()
        self.waits_s: list[float] = []
        self.lost = 0

    def ask(self, work_s: float, *, may_run_twice: bool) -> None:
        """Send a request."""
        self._send(Request(self, work_s, self._world.now, may_run_twice))

    def _send(self, request: Request) -> None:
        now = self._world.now
        ready = [node for node in self._nodes if node.unreachable_until <= now]
        if len(request.tried) >= TRIES or not ready:
            self.lost += 1
            return
        if not self._rule.has_room(ready):
            self._waiting.append(request)
            return
        node = self._rule.choose(ready, request.tried)
        request.tried.append(node)
        if node.server.trouble == "dead":
            node.unreachable_until = now + REDIAL_S
            self._world.later(TRIP_S, lambda: self._send(request))
            return
        if node.server.trouble == "vanished":  # the session notices, as wire/client.py does
            self._world.later(SILENT_AFTER_S, lambda: self._leave(node))
        node.in_flight += 1
        node.server.take(Attempt(request, node, now))

    def _leave(self, node: Known) -> None:
        if node.server.is_away:
            node.unreachable_until = self._world.now + REDIAL_S
            self._world.later(REDIAL_S - 0.001, lambda: self._leave(node))

    def answered(self, attempt: Attempt, error: Exception | None) -> None:
        """Take an answer."""
        now, request = self._world.now, attempt.request
        self._rule.note(attempt.node, now - attempt.sent_at, error)
        if error is not None and request.may_run_twice:
            self._send(request)
        elif error is None and now - request.asked_at <= TIMEOUT_S:
            self.waits_s.append(now - request.asked_at)
        else:
            self.lost += 1
        if self._waiting:
            self._send(self._waiting.popleft())


@attrs.frozen
class Outcome:
    """What became of the requests under one rule."""

    rule: str
    p50_ms: float
    p99_ms: float
    requests: int
    lost: int


def simulate(rule: str, size: int, clients: int, seconds: float, *, troubled: bool = True, seed: int = 1) -> Outcome:
    """Run so many servers and clients for some time.

    Args:
        rule: a key of ``RULES``.
        size: how many servers there are.
        clients: how many programs ask them, each without knowing of the others.
        seconds: for how long requests arrive.
        troubled: whether servers get into trouble.
        seed: of every draw: two rules are asked the same at the same times.
    """
    world = World(seed)
    servers = [Server(world) for _ in range(size)]
    asking = [Client(world, servers, RULES[rule]) for _ in range(clients)]
    arrivals = random.Random(seed)
    rate = size * WORKERS * BUSY / MEAN_S
    at = 0.0
    while (at := at + arrivals.expovariate(rate)) < seconds:
        work_s = LONG_S if arrivals.random() < LONG_SHARE else arrivals.lognormvariate(0, SIGMA) * TYPICAL_S
        client = arrivals.choice(asking)
        world.later(at, functools.partial(client.ask, work_s, may_run_twice=arrivals.random() < 0.5))
    if troubled:
        each = max(1, size // 40)
        chosen = arrivals.sample(servers, min(size, each * len(TROUBLE)))
        for number, server in enumerate(chosen):
            trouble = TROUBLE[number * len(TROUBLE) // len(chosen)] if size > 3 else TROUBLE[number]
            start_s = seconds * (0.15 + 0.6 * number / len(chosen))  # one after the other
            world.later(start_s, lambda server=server, trouble=trouble: server.get_into(trouble, seconds / 5))  # type: ignore[misc]
    world.run()
    lost = sum(client.lost for client in asking)
    waits = sorted(itertools.chain.from_iterable(client.waits_s for client in asking))
    p50, p99 = (1000 * waits[len(waits) * share // 100] for share in (50, 99))
    return Outcome(rule, p50, p99, len(waits) + lost, lost)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what becomes of the requests under each rule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N", help="how many servers")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long requests arrive, simulated [30]")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=(1, MANY_CLIENTS), help="how many programs ask [1 10]"
    )
    parser.add_argument("--rules", nargs="+", default=[*RULES], choices=[*RULES], metavar="RULE", help=", ".join(RULES))
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE.name} too")
    options = parser.parse_args(arguments)
    print("servers  clients  rule                requests   p50 ms   p99 ms   lost")
    rows: list[tuple[int, int, Outcome]] = []
    for size in options.sizes:
        for clients in options.clients:
            for rule in options.rules:
                found = simulate(rule, size, clients, options.seconds)
                rows.append((size, clients, found))
                figures = f"{found.requests:9,}{found.p50_ms:9.0f}{found.p99_ms:9.0f}{found.lost:7,}"
                print(f"{size:7}{clients:9}  {rule:18}{figures}", flush=True)
    if options.picture:
        print(f"written: {draw(rows)}")
    return 0


def draw(rows: Sequence[tuple[int, int, Outcome]]) -> Path:
    """Draw the 99th percentile and the share of lost requests of each rule by the number of servers."""
    from benchmarks import pictures  # here, since matplotlib takes a second to import

    lines: dict[str, list[Any]] = {}
    for size, clients, found in rows:
        if clients == MANY_CLIENTS:
            lines.setdefault(found.rule, []).append((size, found.p99_ms / 1000, 100 * found.lost / found.requests))
    return pictures.draw_rules(lines, PICTURE)


if __name__ == "__main__":
    sys.exit(main())
