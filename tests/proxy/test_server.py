"""The caching proxy for transforms as a service: it asks before it listens, and closes what it has opened."""

from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import MemoryReactorClock

from support.deferreds import has_fired, result_of
from xformd.limits import Limits
from xformd.net import listener
from xformd.proxy import service as services
from xformd.proxy.service import ProxyServer


class Service:
    """A service whose upstreams say what they have when the test says so."""

    xform = None  # nobody asks

    def __init__(self) -> None:
        self.asked: Deferred[None] = Deferred()
        self.is_closed = False

    def start(self) -> Deferred[None]:
        return self.asked

    def close(self) -> Deferred[None]:
        self.is_closed = True
        return succeed(None)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ports whose answers are sent at once."""
    ports: list[Any] = []
    monkeypatch.setattr(listener, "make_eager", ports.append)
    return ports


def start(service: Service, reactor: MemoryReactorClock) -> ProxyServer:
    server = ProxyServer(service, ("tcp:1:interface=127.0.0.1",), Limits(), reactor)  # type: ignore[arg-type]
    server.startService()
    assert not has_fired(server.listening)
    return server


def test_it_listens_once_the_upstreams_have_answered_and_closes_at_the_end(eager: list[Any]) -> None:
    service, reactor = Service(), MemoryReactorClock()
    server = start(service, reactor)
    service.asked.callback(None)
    assert len(result_of(server.listening)) == len(eager) == len(reactor.tcpServers) == 1
    assert has_fired(server.stopService())
    assert service.is_closed


def test_a_proxy_that_is_stopped_before_never_listens() -> None:
    service, reactor = Service(), MemoryReactorClock()
    server = start(service, reactor)
    assert has_fired(server.stopService())
    service.asked.callback(None)
    assert (result_of(server.listening), reactor.tcpServers) == ((), [])


def test_it_allows_no_more_connections_than_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[Limits] = []
    monkeypatch.setattr(services, "within_descriptors", lambda limits, workers: attrs.evolve(limits, max_connections=3))

    def make(upstreams: object, limits: Limits, reactor: object) -> Service:
        allowed.append(limits)
        return Service()

    monkeypatch.setattr(services, "CachingTransformService", make)
    services.make_proxy((), (), Limits(), MemoryReactorClock())
    assert allowed == [Limits(max_connections=3)]
