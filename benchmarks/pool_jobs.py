"""What a pool is given to do in one measurement, and what it says of it. Pools run in processes of their own.

A process with a pool prints a line when its workers are ready. Then each line that it reads is an ``Order``, and each
line that it prints tells what came of that. It ends when there is nothing more to read.
"""

import functools
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import attrs

from benchmarks import traffic
from benchmarks.answers import WrongAnswer

WORKERS = 2
READY = "ready"


@attrs.frozen
class Order:
    """One measurement: poems of so many bytes, so many calls in flight, for so many seconds."""

    size: int
    outstanding: int
    seconds: float


class Tally:
    """Hands out poems, and compares every byte of what comes back.

    Args:
        order: what to measure; time runs from here on.
    """

    def __init__(self, order: Order) -> None:
        self._poems, self._results = _poems_and_results(order.size, order.outstanding)
        self._begun_ns: dict[int, int] = {}
        self._latencies_ns: list[int] = []
        self._calls = 0
        self._start_ns = time.perf_counter_ns()
        self._until_ns = self._start_ns + int(order.seconds * 1e9)

    def begin(self) -> tuple[int, bytes]:
        """Return the number of a call, and its poem."""
        number = self._calls
        self._calls += 1
        self._begun_ns[number] = time.perf_counter_ns()
        return number, self._poems[number % len(self._poems)]

    def end(self, number: int, result: bytes) -> bool:
        """Note what a call gave; say whether there is time for another."""
        now_ns = time.perf_counter_ns()
        self._latencies_ns.append(now_ns - self._begun_ns.pop(number))
        if result != self._results[number % len(self._results)]:
            raise WrongAnswer(f"call {number} gave {result[:80]!r}")
        return now_ns < self._until_ns

    @property
    def is_finished(self) -> bool:
        """Whether no call is in flight."""
        return not self._begun_ns

    def told(self) -> dict[str, Any]:
        """Return what was done."""
        wall_s = (time.perf_counter_ns() - self._start_ns) / 1e9
        return {"calls": self._calls, "wall_s": wall_s, "latencies_ns": self._latencies_ns}


@functools.cache  # the run that warms up makes them
def _poems_and_results(size: int, outstanding: int) -> tuple[list[bytes], list[bytes]]:
    poems = traffic.poems(size, outstanding)
    return poems, [traffic.cummingsify(poem) for poem in poems]


def orders() -> Iterator[Order]:
    """Report that all is ready, then yield each order as it arrives on standard input."""
    print(READY, flush=True)
    for line in sys.stdin:
        yield Order(**json.loads(line))


def tell(tally: Tally) -> None:
    """Answer an order."""
    print(json.dumps(tally.told()), flush=True)


def carry_out_with_futures(submit: Callable[[bytes], "Future[bytes]"]) -> None:
    """Do what is asked for with a pool that gives futures, in the way that costs it least: wait for the oldest."""
    for order in orders():
        tally = Tally(order)
        waiting: deque[tuple[int, Future[bytes]]] = deque()

        def begin(tally: Tally = tally, waiting: deque[tuple[int, Future[bytes]]] = waiting) -> None:
            number, poem = tally.begin()
            waiting.append((number, submit(poem)))

        for _ in range(order.outstanding):
            begin()
        while waiting:
            number, future = waiting.popleft()
            if tally.end(number, future.result()):
                begin()
        tell(tally)
