"""A factory that anybody listens with: it drains before the reactor stops, and leaves nothing with the reactor."""

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from support.deferreds import has_fired
from xformd.limits import Limits
from xformd.net.factory import DrainableProtocol, DrainingFactory
from xformd.net.listener import ListeningService


class Reactor(MemoryReactorClock):
    """A reactor whose shutdown the test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.on_shutdown: list[Callable[[], Any]] = []

    def addSystemEventTrigger(self, *arguments: Any) -> Any:  # type: ignore[override]
        *when, act = arguments
        assert when == ["before", "shutdown"]
        self.on_shutdown.append(act)
        return act

    def removeSystemEventTrigger(self, triggerID: Any) -> None:
        self.on_shutdown.remove(triggerID)


class Stoppable(DrainableProtocol):
    """A connection that notes when it is asked to finish."""

    is_stopping = False

    def stop(self) -> None:
        self.is_stopping = True


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def factory(reactor: Reactor) -> DrainingFactory[Any]:
    return DrainingFactory(Limits(), reactor)


def test_it_drains_before_the_reactor_stops(reactor: Reactor, factory: DrainingFactory[Any]) -> None:
    factory.doStart()
    connection = Stoppable(factory)
    factory.connections.add(connection, None)
    (stopping,) = [act() for act in reactor.on_shutdown]
    assert (connection.is_stopping, factory.is_stopping, has_fired(stopping)) == (True, True, False)
    factory.doStop()
    factory.connection_ended(connection)
    assert has_fired(stopping)


def test_whoever_drains_it_again_waits_for_the_same_end(factory: DrainingFactory[Any]) -> None:
    connection = Stoppable(factory)
    factory.connections.add(connection, None)
    first, second = factory.drain(), factory.drain()
    assert not has_fired(first)
    factory.connection_ended(connection)
    assert [has_fired(each) for each in (first, second, factory.drain())] == [True] * 3


def test_the_reactor_forgets_it_with_its_last_port_and_connection(
    reactor: Reactor, factory: DrainingFactory[Any]
) -> None:
    for _ in range(2):
        factory.doStart()
        factory.doStart()
        factory.doStop()
        factory.connections.add(Stoppable(factory), None)
        assert len(reactor.on_shutdown) == 1
        factory.doStop()
        assert len(reactor.on_shutdown) == 1
        factory.connection_ended(*factory.connections)
        assert reactor.on_shutdown == []


def test_a_service_that_closes_its_ports_first_drains_it_then(reactor: Reactor, factory: DrainingFactory[Any]) -> None:
    ListeningService(("tcp:1",), factory, reactor)
    factory.doStart()
    assert reactor.on_shutdown == []
