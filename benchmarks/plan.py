"""What a run is to do: how often, how long, on which CPUs, with which servers. And how rounds are interleaved."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import attrs

from benchmarks import servers
from benchmarks.answers import WrongAnswer
from benchmarks.samples import Figures, Result, Row
from benchmarks.servers import OTHER_CHECKOUT, Running, Server, why_not

CANNOT = (ConnectionError, TimeoutError, RuntimeError)
"""What says that a server does not do a work."""


@attrs.frozen(kw_only=True)
class Plan:
    """How a run goes about its works.

    Attributes:
        rounds: measurements of each server for each work.
        seconds: how long one lasts.
        warm_up_s: how long a server is loaded before it.
        server_cpu: where servers run; None where there is only one CPU.
        generator_cpu: where generators run.
        crowd: how many connections are many.
        servers: all that there are.
        peers: names of those to measure; none stands for all. Ours is always measured.
        other_checkout: a folder with another version of xformd, each of whose servers is measured beside ours.
    """

    rounds: int
    seconds: float
    warm_up_s: float
    server_cpu: int | None
    generator_cpu: int | None
    crowd: int
    servers: dict[str, Server]
    peers: frozenset[str] = frozenset()
    other_checkout: Path | None = None

    def wants(self, name: str) -> bool:
        """Return whether a row of a table is wanted: of a server, or of what is compared with one."""
        return not self.peers or name in self.peers or name.startswith("xformd")

    def rows(self, names: Iterable[str]) -> dict[str, Row]:
        """Return a row for each server that is wanted; it says why not, where the server cannot be started."""
        wanted = [name for name in names if self.wants(name)]
        wanted += [name + OTHER_CHECKOUT for name in wanted if name + OTHER_CHECKOUT in self.servers]
        return {name: Row(name, error=why_not(self.servers[name])) for name in wanted}

    @contextlib.contextmanager
    def running(self, rows: dict[str, Row]) -> Iterator[list[Running]]:
        """Start those servers that rows are for, and end them again; a row says why not, where one does not start."""
        wanted = [self.servers[name] for name, row in rows.items() if not row.error]
        with servers.running(wanted, self.server_cpu) as (started, failed):
            for name, reason in failed.items():
                rows[name].error = reason
            yield started


class Work(Protocol):
    """One kind of work. ``key`` and ``title`` are what the issue and the tables call it."""

    @property
    def key(self) -> str:
        """Its letter."""
        ...

    @property
    def title(self) -> str:
        """What is done."""
        ...

    def run(self, plan: Plan) -> Result:
        """Measure it."""
        ...


def interleave(rows: dict[str, Row], measures: dict[str, Callable[[], Figures]], rounds: int) -> None:
    """Take measurements in turns, so that what disturbs the machine for a while disturbs all of them.

    Where one fails, its row says so and gets no more of them; the others go on.

    Args:
        rows: where the figures go.
        measures: for each row, what measures it once. Each round starts with another one.
        rounds: how many.
    """
    names = list(measures)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if rows[name].error:
                continue
            try:
                rows[name].rounds.append(measures[name]())
            except WrongAnswer as error:
                rows[name].error, rows[name].is_wrong = f"WRONG ANSWER: {error}", True
            except CANNOT as error:
                rows[name].error = str(error) or type(error).__name__


def measuring(
    measure: Callable[[Running, Plan], Figures], started: Iterable[Running], plan: Plan
) -> dict[str, Callable[[], Figures]]:
    """Return for each server what measures it once."""
    return {each.server.name: lambda each=each: measure(each, plan) for each in started}  # type: ignore[misc]
