"""The reactor on an asyncio loop: whatever happens, in a turn or beside one, it is seen to when it is due."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol

from support.logs import Log

pytest.importorskip("twisted.internet.epollreactor", reason="this system has no epoll")

from xformd.net.loop_reactor import LoopReactor, install

DEADLINE_S = 10


class Loop:
    """A loop, and a reactor on it that is nobody else's."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.reactor = LoopReactor(self.loop)
        self.is_late = False

    def run(self, begin: Callable[[], object]) -> None:
        """Run until the reactor is stopped, with something that begins beside its turns; fail if it takes too long."""
        self.loop.call_later(0.01, begin)
        self.loop.call_later(DEADLINE_S, self._too_late)
        self.reactor.run(installSignalHandlers=False)  # type: ignore[no-untyped-call]
        assert not self.is_late

    def close(self) -> None:
        """Leave nothing open."""
        for selectable in self.reactor.removeAll():  # type: ignore[no-untyped-call]
            selectable.connectionLost(None)
        self.reactor._poller.close()
        self.loop.close()

    def _too_late(self) -> None:
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


def test_what_is_called_later_is_called_then(site: Loop) -> None:
    called: list[str] = []
    reactor = site.reactor

    def begin() -> None:
        reactor.callLater(0.01, called.append, "first")
        reactor.callLater(0.03, called.append, "second")
        reactor.callLater(0.05, reactor.stop)

    site.run(begin)
    assert called == ["first", "second"]


def test_what_was_asked_for_before_it_runs_is_called_too(site: Loop) -> None:
    site.reactor.callLater(0, site.reactor.stop)
    site.run(lambda: None)


def test_a_call_that_is_moved_or_comes_before_others_is_not_late(site: Loop) -> None:
    far = site.reactor.callLater(3_600, site.reactor.stop)
    site.run(lambda: far.reset(0.01))
    again = Loop()
    again.reactor.callLater(3_600, print)
    again.run(lambda: again.reactor.callLater(0.01, again.reactor.stop))
    again.close()


def test_a_thread_is_heard(site: Loop) -> None:
    site.run(lambda: site.loop.run_in_executor(None, site.reactor.callFromThread, site.reactor.stop))


def test_a_turn_that_fails_is_logged_and_others_follow(site: Loop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = iter([OSError("a fault")])

    def poll(timeout: float | None) -> None:
        for error in polls:
            raise error

    monkeypatch.setattr(site.reactor, "doPoll", poll)
    site.run(lambda: site.reactor.callLater(0.01, site.reactor.stop))
    assert len(log.tracebacks) == 1


def test_a_child_that_ends_is_noticed(site: Loop) -> None:
    class Child(ProcessProtocol):
        def processEnded(self, reason: object) -> None:
            site.reactor.stop()

    def begin() -> None:  # without a pipe, whose end would tell the same
        site.reactor.spawnProcess(Child(), "/bin/sh", ["sh", "-c", "sleep 0.1"], env=dict(os.environ), childFDs={})

    site.run(begin)


def test_it_stops_whoever_asks_and_whoever_it_has_to_wait_for(site: Loop) -> None:
    last: Deferred[None] = Deferred()
    site.reactor.addSystemEventTrigger("before", "shutdown", lambda: last)

    async def stop() -> None:
        site.reactor.stop()
        await asyncio.sleep(0.05)
        last.callback(None)

    tasks = []
    site.run(lambda: tasks.append(site.loop.create_task(stop())))


def test_generators_that_nobody_finished_are_closed_at_the_end(site: Loop) -> None:
    closed: list[bool] = []

    async def verses() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(True)

    given = verses()

    async def read_one() -> None:
        await anext(given)
        site.reactor.stop()

    tasks = []
    site.run(lambda: tasks.append(site.loop.create_task(read_one())))
    assert closed == [True]


INSTALLED = """
import asyncio
from xformd.net.loop_reactor import LoopReactor, install
assert install()
from twisted.internet import reactor
assert isinstance(reactor, LoopReactor)
async def end():
    reactor.stop()
asyncio.get_event_loop().create_task(end())
reactor.run()
"""


def test_it_is_installed_where_there_is_no_other() -> None:
    subprocess.run([sys.executable, "-c", INSTALLED], check=True, timeout=60)


def test_a_process_keeps_the_reactor_that_it_has() -> None:
    from twisted.internet import reactor  # noqa: F401

    assert install() is False
