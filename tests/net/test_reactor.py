"""The server's reactor: every event is handled, every delayed call is on time, alone and on an asyncio loop."""

import socket
import subprocess
import sys

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.python.failure import Failure

from support.logs import Log

pytest.importorskip("twisted.internet.epollreactor", reason="this system has no epoll")

from xformd.net.reactor import MonotonicEPollReactor, install

DEADLINE_S = 90


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

    assert not install()


SET_CLOCK = """
import time
real_time, offset_s = time.time, [0]
time.time = lambda: real_time() + offset_s[0]
from xformd.net.deadline import use_monotonic_clock
from xformd.net.reactor import MonotonicEPollReactor, install
assert {is_ours} is False or install()
from twisted.internet import reactor
assert (type(reactor) is MonotonicEPollReactor) is {is_ours}
called = []
reactor.callLater(30, called.append, "late")
reactor.callLater(20, called.append, "never").cancel()
reactor.callLater(0.01, called.append, "soon")
reactor.timeout()
use_monotonic_clock(reactor)
offset_s[0] = {step_s}
reactor.callLater(0.1, reactor.stop)
reactor.run()
assert called == ["soon"], called
"""


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("step_s", [-3_600, 3_600])
def test_setting_the_clock_moves_no_deadline(step_s: int, is_ours: bool) -> None:
    code = SET_CLOCK.format(step_s=step_s, is_ours=is_ours)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=90)
