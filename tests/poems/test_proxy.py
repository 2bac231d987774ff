"""The caching poem proxy: only whole poems are cached, and the old one is served while the upstream is down."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock

import xformd
from support.deferreds import error_of, has_fired, outcome_of, result_of
from support.logs import Log
from support.network import Network
from xformd.poems import CachingProxyService


class World:
    """A proxy, and the upstream behind it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.host = Network().silent()

    def proxy(self, **options: Any) -> CachingProxyService:
        return CachingProxyService(self.host, address="owl:1", reactor=self.clock, **options)

    def ask(self, proxy: CachingProxyService) -> Deferred[bytes]:
        poem = proxy.get_poem()
        assert isinstance(poem, Deferred)
        self.host.network.pump()
        return poem

    def fetch(self, proxy: CachingProxyService, poem: bytes) -> Any:
        """Return the outcome of a request that the proxy has to fetch."""
        waiting = self.ask(proxy)
        self.host.say(poem)
        self.host.lose_connections(ConnectionDone())
        return outcome_of(waiting)


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


def test_first_a_deferred_and_then_the_poem_itself(world: World) -> None:
    proxy = world.proxy()
    assert world.fetch(proxy, b"The Owl") == b"The Owl"
    assert proxy.get_poem() == b"The Owl"
    assert len(world.host.wires) == 1


def test_half_a_poem_is_neither_returned_nor_cached(world: World) -> None:
    proxy = world.proxy()
    failed = world.ask(proxy)
    world.host.say(b"The O")
    world.host.lose_connections()
    error_of(failed, xformd.ConnectionLost)
    assert world.fetch(proxy, b"The Owl") == b"The Owl"


def test_a_poem_that_is_too_long_is_neither_returned_nor_cached(world: World) -> None:
    proxy = world.proxy(max_bytes=6)
    for _ in range(2):
        assert world.fetch(proxy, b"The Owl").check(xformd.TooLarge)
    assert world.fetch(proxy, b"An Owl") == proxy.get_poem() == b"An Owl"


@pytest.mark.parametrize(
    ("is_slow", "after_s", "says"),
    [(False, 5, "no whole poem from owl:1 within 5 s"), (True, 2, "no connection to owl:1 within 2 s")],
)
def test_an_upstream_that_never_answers_fails_every_wait_at_the_deadline(
    world: World, is_slow: bool, after_s: float, says: str
) -> None:
    world.host.is_slow = is_slow
    proxy = world.proxy(connect_timeout_s=2, timeout_s=5)
    waiting = [world.ask(proxy) for _ in range(3)]
    world.clock.advance(after_s - 0.1)
    assert not any(map(has_fired, waiting))
    world.clock.advance(0.1)
    for waiter in waiting:
        assert error_of(waiter, xformd.TransformTimeout).message == says


def test_after_its_ttl_a_poem_is_fetched_again(world: World) -> None:
    proxy = world.proxy(ttl_s=10)
    world.fetch(proxy, b"old")
    world.clock.advance(9.9)
    assert proxy.get_poem() == b"old"
    world.clock.advance(0.1)
    assert world.fetch(proxy, b"new") == proxy.get_poem() == b"new"


def test_while_the_upstream_is_down_the_old_poem_is_served_for_a_time(world: World, log: Log) -> None:
    proxy = world.proxy(ttl_s=10, stale_s=5)
    world.fetch(proxy, b"old")
    up, world.host.factory = world.host.factory, None
    world.clock.advance(12)
    for _ in range(2):
        assert result_of(world.ask(proxy)) == b"old"
    assert log.lines == [
        "no fresh poem: connection-failed: cannot connect to owl:1: Connection refused; is a poem server running "
        "there?; the old one, 12.0 s old, is served for another 3.0 s"
    ]
    world.clock.advance(3)
    error_of(world.ask(proxy), xformd.ConnectionFailed)
    world.host.factory = up
    assert world.fetch(proxy, b"new") == b"new"
    assert log.lines[1:] == ["owl:1 answers again"]


def test_each_outage_is_logged_once_and_so_is_its_end(world: World, log: Log) -> None:
    proxy = world.proxy(ttl_s=10, stale_s=100)
    up = world.host.factory
    world.fetch(proxy, b"old")
    for _ in range(2):
        world.host.factory = None
        world.clock.advance(10)
        for _ in range(2):
            world.ask(proxy)
        world.host.factory = up
        for _ in range(2):
            world.fetch(proxy, b"new")
            world.clock.advance(10)
    assert [line.partition(":")[0] for line in log.lines] == ["no fresh poem", "owl"] * 2


def test_an_invalid_address_is_an_error_at_once(clock: Clock) -> None:
    with pytest.raises(xformd.ConfigError, match="write HOST:PORT"):
        CachingProxyService("no:such:endpoint", reactor=clock)
