"""Listening in memory: accepting pauses where no descriptors are left, and a stop is in good order also then."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IListeningPort
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import Logger, globalLogPublisher

from support.certificates import tls_endpoint
from support.deferreds import has_fired
from support.http_front import Front
from support.logs import Log
from support.memory import MemoryServer
from support.reactors import FakeReactor
from xformd.limits import Limits
from xformd.net.factory import DrainingFactory
from xformd.net.listener import ACCEPT_PAUSE_S, ListeningService
from xformd.poems.server import PoemFactory, PoemService

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
    says = "new connections wait for 1 s: the machine has no descriptors (fs.file-max) or no memory left for sockets"
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


class RealPorts(FakeReactor):
    """Listens on real ports, and reads from none."""

    seconds = staticmethod(time.monotonic)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        listening = Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening


FRONTS: dict[str, tuple[Callable[[], DrainingFactory[Any]], int]] = {
    "netstring": (lambda: MemoryServer().factory, 30),
    "http": (lambda: Front(write_timeout_s=7.5).factory, 8),
    "endless": (lambda: MemoryServer(write_timeout_s=1e9).factory, 32_767),
    "poem": (lambda: PoemFactory(PoemService(b"a"), MemoryReactorClock()), 300),
}


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("kind", ["tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1", "ssl"])
def test_the_system_ends_connections_whose_client_has_vanished(front: str, kind: str, tmp_path: Path) -> None:
    factory, seconds = FRONTS[front]
    endpoint = tls_endpoint(tmp_path)[0] if kind == "ssl" else kind
    listening = ListeningService((endpoint,), factory(), RealPorts())
    listening.startService()
    assert has_fired(listening.listening)
    (port,) = listening._ports
    listener = port.socket  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, timeout_ms = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)
            )
    assert (idle, timeout_ms) == (seconds // 2, 0)
    port._closeSocket(True)  # type: ignore[attr-defined]
