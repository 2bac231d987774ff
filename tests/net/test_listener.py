"""Where a server listens, in memory: it rests where no descriptors are left, and stops in good order from there."""

from typing import Any

import pytest
from twisted.internet.defer import succeed
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger

from support.deferreds import has_fired
from support.logs import Log
from xformd.net.listener import REST_S, AcceptErrors, Listening
from xformd.telemetry.rate_limited import RateLimitedLog

TWISTED = Logger(namespace="twisted.internet.tcp.Port")


class Factory(ServerFactory):
    def __init__(self, clock: Any) -> None:
        self.refusals = RateLimitedLog(clock)

    def drain(self) -> Any:
        return succeed(None)


class Site:
    """A server on a port that notes when it reads, and when it does not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reactor = MemoryReactorClock()  # type: ignore[no-untyped-call]
        self.done: list[str] = []
        self.listening = Listening(("tcp:1",), Factory(self.reactor), self.reactor)
        self.listening.startService()
        assert has_fired(self.listening.listening)
        (port,) = self.listening._ports
        for name in ("stopReading", "startReading", "stopListening"):
            monkeypatch.setattr(port, name, lambda name=name: self.done.append(name), raising=False)

    def run_out(self) -> None:
        """Be told by Twisted that there is no descriptor for a new connection."""
        TWISTED.error("Could not accept new connection ({acceptError})", acceptError="EMFILE")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def test_new_connections_wait_while_there_is_no_descriptor(site: Site, log: Log) -> None:
    for _ in range(3):
        site.run_out()
    assert site.done == ["stopReading"]
    assert len([line for line in log.lines if line.startswith("new connections wait for 1.0 s")]) == 1
    site.reactor.advance(REST_S)
    assert site.done == ["stopReading", "startReading"]
    site.run_out()
    assert site.done[2:] == ["stopReading"]
    assert has_fired(site.listening.stopService())


def test_a_server_that_rests_can_be_stopped_and_does_not_wake_up_again(site: Site) -> None:
    site.run_out()
    assert has_fired(site.listening.stopService())
    assert site.done == ["stopReading", "stopListening"]
    assert site.reactor.getDelayedCalls() == []


def test_one_that_has_stopped_heeds_no_other_servers_trouble(site: Site, log: Log) -> None:
    assert has_fired(site.listening.stopService())
    TWISTED.info("EMFILE recovery: Closed socket from {address}", address="a client of another")
    site.run_out()
    assert [line for line in log.lines if "max_connections" in line] == []


def test_only_errors_of_accepting_that_would_come_again_matter() -> None:
    heard: list[str] = []
    observer = AcceptErrors(lambda: heard.append("closed"), heard.append)
    port = TWISTED.namespace
    observer({"log_namespace": port, "log_format": "EMFILE encountered; releasing reserved file descriptor."})
    observer({"log_namespace": port})
    observer({"log_namespace": "xformd", "acceptError": "EMFILE"})
    observer({"log_namespace": port, "log_format": "Could not accept", "acceptError": "ECONNABORTED"})
    observer({})
    assert heard == []
    observer({"log_namespace": port, "log_format": "EMFILE recovery: Closed socket from {address}"})
    observer({"log_namespace": port, "log_format": "Could not accept", "acceptError": "ENFILE"})
    assert heard == ["closed", "ENFILE"]


def test_one_that_listens_nowhere_yet_has_nothing_to_rest_from(log: Log) -> None:
    reactor = MemoryReactorClock()  # type: ignore[no-untyped-call]
    listening = Listening((), Factory(reactor), reactor)
    listening.startService()
    TWISTED.error("Could not accept new connection ({acceptError})", acceptError="EMFILE")
    assert reactor.getDelayedCalls() == []
    assert len(log.lines) == 1
    assert has_fired(listening.stopService())
