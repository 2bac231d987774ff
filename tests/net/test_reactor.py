"""The server's reactor: every event is handled, every delayed call is on time, alone and on an asyncio loop."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from support.logs import Log

pytest.importorskip("twisted.internet.epollreactor", reason="this system has no epoll")

from xformd.net.reactor import LoopReactor, MonotonicEPollReactor, install

DEADLINE_S = 10


class Reader(FileDescriptor):
    """One end of a socket pair with something to read, which raises when it is read and when it is lost."""

    def __init__(self, reactor: MonotonicEPollReactor, events: list[str]) -> None:
        super().__init__(reactor)
        self._events = events
        self._ours, self._theirs = socket.socketpair()
        self._theirs.sendall(b"x")
        self.startReading()

    def fileno(self) -> int:
        return self._ours.fileno()

    def doRead(self) -> None:
        self._events.append("read")
        raise ValueError("while it is read")

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._events.append("lost")
        self._ours.close()
        self._theirs.close()
        raise ValueError("while it is lost")


def remove_all(reactor: MonotonicEPollReactor) -> None:
    for selectable in reactor.removeAll():
        selectable.connectionLost(None)
    reactor._poller.close()


def test_an_event_that_raises_is_logged_and_the_others_are_handled(log: Log) -> None:
    reactor = MonotonicEPollReactor()
    events: list[str] = []
    for _ in range(3):
        Reader(reactor, events)
    reactor.doPoll(10)
    assert events == ["read", "lost"] * 3
    assert len(log.tracebacks) == 3  # of how they end; Twisted logs the rest in its older form
    remove_all(reactor)


def test_a_process_keeps_the_reactor_that_it_has() -> None:
    from twisted.internet import reactor  # noqa: F401

    assert [install(), install(with_asyncio=True)] == [False, False]


SET_CLOCK = """
import time
with_asyncio, step_s = {with_asyncio}, {step_s}
real_time, offset_s = time.time, [0]
time.time = lambda: real_time() + offset_s[0]
from xformd.net.reactor import LoopReactor, MonotonicEPollReactor, install
assert install(with_asyncio=with_asyncio)
from twisted.internet import reactor
assert type(reactor) is (LoopReactor if with_asyncio else MonotonicEPollReactor)
called = []
reactor.callLater(30, called.append, "late")
reactor.callLater(0.01, called.append, "soon")
offset_s[0] = step_s
reactor.callLater(0.1, reactor.stop)
reactor.run()
assert called == ["soon"], called
"""


@pytest.mark.parametrize(("with_asyncio", "step_s"), [(False, -3_600), (True, 3_600)])
def test_setting_the_clock_moves_no_deadline(with_asyncio: bool, step_s: int) -> None:
    code = SET_CLOCK.format(with_asyncio=with_asyncio, step_s=step_s)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Loop:
    """A loop, and a reactor on it alone."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.reactor = LoopReactor(self.loop)
        self.is_late = False

    def run(self, begin: Callable[[], object]) -> None:
        """Run ``begin`` outside of the reactor's turns, and wait until the reactor stops; fail if it takes too long."""
        self.loop.call_later(0.01, begin)
        self.loop.call_later(DEADLINE_S, self._stop_late)
        self.reactor.run(installSignalHandlers=False)
        assert not self.is_late

    def close(self) -> None:
        remove_all(self.reactor)
        self.loop.close()

    def _stop_late(self) -> None:
        self.is_late = True
        self.loop.stop()


@pytest.fixture
def site() -> Iterator[Loop]:
    child, wakeup = signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)
    site = Loop()
    yield site
    site.close()
    signal.signal(signal.SIGCHLD, child)
    signal.set_wakeup_fd(wakeup)


def test_delayed_calls_run_in_order(site: Loop) -> None:
    called: list[str] = []
    reactor = site.reactor

    def begin() -> None:
        reactor.callLater(0.03, called.append, "second")
        reactor.callLater(0.01, called.append, "first")
        reactor.callLater(0.05, reactor.stop)

    site.run(begin)
    assert called == ["first", "second"]


def test_a_call_scheduled_before_the_start_runs(site: Loop) -> None:
    site.reactor.callLater(0, site.reactor.stop)
    site.run(lambda: None)


@pytest.mark.parametrize(
    "begin",
    [
        lambda site, far: far.reset(0.01),
        lambda site, far: site.reactor.callLater(0.01, site.reactor.stop),
        lambda site, far: site.loop.run_in_executor(None, site.reactor.callFromThread, site.reactor.stop),
    ],
    ids=["moved nearer", "before another", "from a thread"],
)
def test_a_call_wakes_the_reactor(site: Loop, begin: Callable[[Loop, Any], object]) -> None:
    far = site.reactor.callLater(3_600, site.reactor.stop)
    site.run(lambda: begin(site, far))


def test_a_turn_that_raises_is_logged_and_others_follow(site: Loop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = iter([OSError("broken")])

    def poll(timeout: float | None) -> None:
        for error in polls:
            raise error

    monkeypatch.setattr(site.reactor, "doPoll", poll)
    site.run(lambda: site.reactor.callLater(0.01, site.reactor.stop))
    assert len(log.tracebacks) == 1


def test_the_exit_of_a_child_is_noticed(site: Loop) -> None:
    class Child(ProcessProtocol):
        def processEnded(self, reason: object) -> None:
            site.reactor.stop()

    def begin() -> None:  # without a pipe, whose end would wake the reactor too
        reactor: Any = site.reactor
        reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "sleep 0.1"], env=dict(os.environ), childFDs={})

    site.run(begin)


def test_a_task_can_stop_the_reactor_and_end_its_shutdown(site: Loop) -> None:
    last: Deferred[None] = Deferred()
    site.reactor.addSystemEventTrigger("before", "shutdown", lambda: last)

    async def stop() -> None:
        site.reactor.stop()
        await asyncio.sleep(0.05)
        last.callback(None)

    tasks = []
    site.run(lambda: tasks.append(site.loop.create_task(stop())))


def test_unfinished_async_generators_are_closed_at_the_end(site: Loop) -> None:
    closed = []

    async def verses() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    unfinished = verses()

    async def read_one() -> None:
        await anext(unfinished)
        site.reactor.stop()

    tasks = []
    site.run(lambda: tasks.append(site.loop.create_task(read_one())))
    assert closed == [True]
