"""Listening in memory: accepting pauses where no descriptors are left, and a stop is in good order also then."""

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, globalLogPublisher

from support.deferreds import has_fired
from support.logs import Log
from xformd.limits import Limits
from xformd.net.factory import DrainingFactory
from xformd.net.listener import ACCEPT_PAUSE_S, ListeningService

TWISTED = Logger(namespace="twisted.internet.tcp.Port")


def run_out(error: str = "EMFILE") -> None:
    """Log what Twisted logs when there is no descriptor for a new connection."""
    TWISTED.error("Could not accept new connection ({acceptError})", acceptError=error)


class Site:
    """A server on a port that notes when it starts and stops accepting."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reactor = MemoryReactorClock()
        self.done: list[str] = []
        self.factory: DrainingFactory[Any] = DrainingFactory(Limits(), self.reactor)
        self.listening = ListeningService(("tcp:1",), self.factory, self.reactor)
        self.listening.startService()
        assert has_fired(self.listening.listening)
        (port,) = self.listening._ports
        for name in ("stopReading", "startReading", "stopListening"):
            monkeypatch.setattr(port, name, lambda name=name: self.done.append(name), raising=False)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(monkeypatch)
    yield made
    assert has_fired(made.listening.stopService())


def test_accepting_pauses_while_there_is_no_descriptor(site: Site, log: Log) -> None:
    for _ in range(3):
        run_out()
    assert site.done == ["stopReading"]
    says = "new connections wait for 1 s: no file descriptors are left; raise ulimit -n (LimitNOFILE)"
    assert len([line for line in log.lines if line.startswith(says)]) == 1
    site.reactor.advance(ACCEPT_PAUSE_S)
    assert site.done == ["stopReading", "startReading"]
    run_out()
    assert site.done[2:] == ["stopReading"]


def test_a_server_can_be_stopped_while_accepting_is_paused(site: Site) -> None:
    run_out()
    assert has_fired(site.listening.stopService())
    assert site.done == ["stopReading", "stopListening"]
    assert site.reactor.getDelayedCalls() == []
    TWISTED.info("EMFILE recovery: Closed socket from {address}", address="a client of another server")
    run_out()
    assert not site.factory.refusals.counts  # a server of another test may still listen, and log


def test_only_accept_errors_that_would_repeat_pause(site: Site, log: Log) -> None:
    TWISTED.error("EMFILE encountered; releasing reserved file descriptor.")
    TWISTED.error("Could not accept", acceptError="ECONNABORTED")
    Logger(namespace="xformd").error("of somebody else", acceptError="EMFILE")
    globalLogPublisher({})
    globalLogPublisher({"log_namespace": TWISTED.namespace})
    assert site.done == []
    run_out("ENFILE")
    assert site.done == ["stopReading"]
    says = "new connections wait for 1 s: no file descriptors are left on the machine; raise fs.file-max"
    assert any(line.startswith(says) for line in log.lines)


def test_a_connection_closed_for_want_of_a_descriptor_is_counted(site: Site) -> None:
    TWISTED.info("EMFILE recovery: Closed socket from {address}", address="a client")
    assert site.factory.refusals.counts == {"descriptors": 1}


def test_a_server_without_ports_has_nothing_to_pause(log: Log) -> None:
    reactor = MemoryReactorClock()
    listening = ListeningService((), DrainingFactory(Limits(), reactor), reactor)
    listening.startService()
    run_out()
    assert reactor.getDelayedCalls() == []
    assert len(log.lines) == 1
    assert has_fired(listening.stopService())
