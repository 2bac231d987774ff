"""xformd's pool in a process of its own, with a reactor and without a network; ``--inline`` for no workers."""

import sys
from collections.abc import Iterator
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from benchmarks import traffic
from benchmarks.pool_jobs import WORKERS, Order, Tally, orders, tell
from xformd import spec
from xformd.limits import Limits
from xformd.net.allocator import keep_freed_memory
from xformd.plugins import loader
from xformd.plugins.selection import Selection
from xformd.runners import Runner
from xformd.runners.calls import prepare
from xformd.runners.inline import InlineRunner
from xformd.runners.launcher import Launcher
from xformd.runners.messages import WorkerSetup
from xformd.runners.pool import WorkerPool

reactor: Any = _reactor
LIMITS = Limits(max_jobs_per_worker=10**9)
"""The CPU time of a worker that is replaced would be lost to whoever measures."""

SELECTION = Selection(distributions=frozenset())


def make_pool() -> WorkerPool:
    setup = WorkerSetup(
        selection=SELECTION,
        max_request_bytes=LIMITS.max_request_bytes,
        max_result_bytes=LIMITS.max_result_bytes,
        memory_bytes=LIMITS.worker_memory_bytes,
    )
    return WorkerPool(
        size=WORKERS,
        launcher=Launcher(
            setup,
            LIMITS.plugin_load_timeout_s,
            {plugin.key: plugin for plugin in loader.find(SELECTION)},
            lambda *_: None,
            reactor,
        ),
        self_test=None,
        limits=LIMITS,
        clock=reactor,
    )


class Driver:
    """Carries out one order after the other; between two of them the reactor stands still.

    Args:
        runner: runs the transform.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        (step,) = spec.parse(traffic.TRANSFORM).steps
        self._calls = (prepare(step, loader.load(SELECTION)),)
        self._orders: Iterator[Order] = orders()
        self._tally: Tally

    def next_order(self) -> None:
        """Begin, or end all where there is nothing more to do."""
        order = next(self._orders, None)
        if order is None:
            reactor.stop()
            return
        self._tally = Tally(order)
        for _ in range(1 if isinstance(self._runner, InlineRunner) else order.outstanding):
            self._call()

    def _call(self) -> None:
        goes_on = True
        while goes_on:
            number, poem = self._tally.begin()
            result = self._runner.run(self._calls, poem)
            if isinstance(result, Deferred):
                result.addCallbacks(self._ended, self._failed, callbackArgs=(number,))
                return
            goes_on = self._tally.end(number, result)
        self._check_finished()

    def _ended(self, result: bytes, number: int) -> None:
        if self._tally.end(number, result):
            self._call()
        else:
            self._check_finished()

    def _failed(self, failure: Any) -> None:
        failure.printTraceback(sys.stderr)
        reactor.stop()

    def _check_finished(self) -> None:
        if self._tally.is_finished:
            tell(self._tally)
            reactor.callLater(0, self.next_order)


def main() -> None:
    keep_freed_memory()  # as a server does
    if "--inline" in sys.argv[1:]:
        reactor.callWhenRunning(Driver(InlineRunner(LIMITS.max_result_bytes, reactor)).next_order)
    else:
        pool = make_pool()
        reactor.callWhenRunning(pool.start)
        reactor.addSystemEventTrigger("before", "shutdown", pool.stop)
        looking = LoopingCall(lambda: looking.stop() if pool.supervisor.states.get("idle", 0) > WORKERS else None)
        reactor.callWhenRunning(lambda: looking.start(0.02).addCallback(lambda _: Driver(pool).next_order()))
    reactor.run()


if __name__ == "__main__":
    main()
