"""The reactor of a server: every event of a turn is handled, whatever the one before did."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from support.logs import Log

pytest.importorskip("twisted.internet.epollreactor", reason="this system has no epoll")

from xformd.net.reactor import MonotonicEPollReactor, install

INSTALLED = """
from xformd.net.reactor import MonotonicEPollReactor, install
assert install()
from twisted.internet import reactor
assert isinstance(reactor, MonotonicEPollReactor)
reactor.callLater(0.01, reactor.stop)
reactor.run()
"""


class Reader:
    """One end of a pipe, which has something to read."""

    def __init__(self, reactor: MonotonicEPollReactor, events: list[str]) -> None:
        self._reactor = reactor
        self._events = events
        self._read, self._write = os.pipe()
        os.write(self._write, b"x")
        reactor.addReader(self)  # type: ignore[no-untyped-call]

    def fileno(self) -> int:
        return self._read

    def doRead(self) -> None:
        self._events.append("read")
        os.read(self._read, 1)
        raise ValueError("while it reads")

    def connectionLost(self, _: object) -> None:
        self._events.append("lost")
        self._reactor.removeReader(self)  # type: ignore[no-untyped-call]
        os.close(self._read)
        os.close(self._write)
        raise ValueError("while it ends")

    def readConnectionLost(self, reason: object) -> None:
        self.connectionLost(reason)

    def logPrefix(self) -> str:
        return "-"


@pytest.fixture
def reactor() -> Iterator[MonotonicEPollReactor]:
    reactor = MonotonicEPollReactor()  # type: ignore[no-untyped-call]
    yield reactor
    for selectable in reactor.removeAll():  # type: ignore[no-untyped-call]
        selectable.connectionLost(None)
    reactor._poller.close()


def test_what_fails_is_logged_and_the_rest_of_the_turn_goes_on(reactor: MonotonicEPollReactor, log: Log) -> None:
    events: list[str] = []
    for _ in range(3):
        Reader(reactor, events)
    reactor.doPoll(10)
    assert events == ["read", "lost"] * 3
    assert len(log.tracebacks) == 3  # of how they end; Twisted logs the rest in its older form


def test_it_is_installed_where_there_is_no_other() -> None:
    subprocess.run([sys.executable, "-c", INSTALLED], check=True, timeout=60)


def test_a_process_keeps_the_reactor_that_it_has() -> None:
    from twisted.internet import reactor  # noqa: F401

    assert install() is False


STEPPED = """
import time
true_time, offset_s = time.time, [0]
time.time = lambda: true_time() + offset_s[0]
from xformd.net.reactor import install
install()
from twisted.internet import reactor
called = []
reactor.callLater(30, called.append, "late")
reactor.callLater(0.01, called.append, "soon")
offset_s[0] = step
reactor.callLater(0.1, reactor.stop)
reactor.run()
assert called == ["soon"], called
"""


@pytest.mark.parametrize("step", [-3_600, 3_600])
def test_a_clock_that_is_set_moves_no_deadline(step: int) -> None:
    subprocess.run([sys.executable, "-c", f"step = {step}{STEPPED}"], check=True, timeout=10)
