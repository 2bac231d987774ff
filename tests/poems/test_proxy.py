"""The caching proxy: one download for all who wait, whole poems alone, and the old one while the upstream is down."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost as Lost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.logs import Log
from support.network import Host, Network
from xformd.poems import CachingProxyService


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def host(network: Network) -> Host:
    return network.host(Factory.forProtocol(Protocol))


@pytest.fixture
def proxy(host: Host, clock: Clock) -> CachingProxyService:
    return make(host, clock)


def make(host: Host, clock: Clock, **options: Any) -> CachingProxyService:
    return CachingProxyService(host, address="owl:1", reactor=clock, **options)


def ask(proxy: CachingProxyService) -> Deferred[bytes]:
    poem = proxy.get_poem()
    assert isinstance(poem, Deferred)
    return poem


def answer(network: Network, host: Host, poem: bytes) -> None:
    """Let the upstream answer the last connection."""
    network.pump()
    host.wires[-1].write(poem)
    host.wires[-1].loseConnection()
    network.pump()


def test_first_a_deferred_and_then_the_poem_itself(network: Network, host: Host, proxy: CachingProxyService) -> None:
    first = ask(proxy)
    answer(network, host, b"The Owl")
    assert result_of(first) == b"The Owl"
    assert proxy.get_poem() == b"The Owl"
    assert len(host.wires) == 1


def test_a_hundred_simultaneous_misses_are_one_upstream_call_and_one_that_leaves_harms_nobody(
    network: Network, host: Host, proxy: CachingProxyService
) -> None:
    first, *others = (ask(proxy) for _ in range(100))
    network.pump()
    first.cancel()
    error_of(first, CancelledError)
    answer(network, host, b"The Owl")
    assert [result_of(other) for other in others] == [b"The Owl"] * 99
    assert len(host.wires) == 1


def test_the_last_that_leaves_ends_the_connection(network: Network, host: Host, proxy: CachingProxyService) -> None:
    waiting = [ask(proxy), ask(proxy)]
    network.pump()
    for waiter in waiting:
        assert not host.wires[0].is_gone
        waiter.cancel()
        error_of(waiter, CancelledError)
        network.pump()
    assert host.wires[0].is_gone


def test_half_a_poem_is_neither_given_nor_kept(network: Network, host: Host, proxy: CachingProxyService) -> None:
    failed = ask(proxy)
    network.pump()
    host.wires[0].write(b"The O")
    network.pump()
    host.wires[0].peer.lose(Lost())
    error_of(failed, xformd.ConnectionLost)
    again = ask(proxy)
    answer(network, host, b"The Owl")
    assert result_of(again) == b"The Owl"


def test_a_poem_that_is_too_long_is_neither_given_nor_kept(network: Network, host: Host, clock: Clock) -> None:
    proxy = make(host, clock, max_bytes=6)
    for _ in range(2):
        failed = ask(proxy)
        answer(network, host, b"The Owl")
        error_of(failed, xformd.TooLarge)
    fits = ask(proxy)
    answer(network, host, b"An Owl")
    assert result_of(fits) == proxy.get_poem() == b"An Owl"


def test_an_upstream_that_never_answers_fails_all_at_its_deadline(network: Network, host: Host, clock: Clock) -> None:
    proxy = make(host, clock, timeout_s=5)
    waiting = [ask(proxy) for _ in range(3)]
    network.pump()
    clock.advance(4.9)
    assert not any(map(has_fired, waiting))
    clock.advance(0.1)
    for waiter in waiting:
        error_of(waiter, xformd.TransformTimeout)


def test_an_upstream_that_cannot_be_reached_fails_at_the_connections_deadline(host: Host, clock: Clock) -> None:
    host.is_slow = True
    failed = ask(make(host, clock, connect_timeout_s=2, timeout_s=60))
    clock.advance(2)
    assert "no connection to owl:1 within 2 s" in str(error_of(failed, xformd.TransformTimeout))


def test_after_its_time_a_poem_is_fetched_again(network: Network, host: Host, clock: Clock) -> None:
    proxy = make(host, clock, ttl_s=10)
    ask(proxy)
    answer(network, host, b"old")
    clock.advance(9.9)
    assert proxy.get_poem() == b"old"
    clock.advance(0.1)
    fresh = ask(proxy)
    answer(network, host, b"new")
    assert result_of(fresh) == proxy.get_poem() == b"new"


def test_while_the_upstream_is_down_the_old_poem_is_served_for_a_time_and_the_log_says_so_once(
    network: Network, host: Host, clock: Clock, log: Log
) -> None:
    proxy = make(host, clock, ttl_s=10, stale_s=5)
    ask(proxy)
    answer(network, host, b"old")
    up, host.factory = host.factory, None
    for _ in range(2):
        clock.advance(6)
        stale = proxy.get_poem()
        network.pump()
        assert (result_of(stale) if isinstance(stale, Deferred) else stale) == b"old"
    stale = ask(proxy)
    network.pump()
    assert result_of(stale) == b"old"
    assert log.lines == [
        "no fresh poem: connection-failed: cannot connect to owl:1: Connection refused; is a poem server running "
        "there?; the old one, 12.0 s old, is served for another 3.0 s"
    ]
    clock.advance(3)
    gone = ask(proxy)
    network.pump()
    error_of(gone, xformd.ConnectionFailed)
    host.factory = up
    fresh = ask(proxy)
    answer(network, host, b"new")
    assert result_of(fresh) == b"new"
    assert log.lines[1:] == ["owl:1 answers again"]


def test_each_outage_is_said_once_and_so_is_its_end(network: Network, host: Host, clock: Clock, log: Log) -> None:
    proxy = make(host, clock, ttl_s=10, stale_s=100)
    up = host.factory
    ask(proxy)
    answer(network, host, b"old")
    for _ in range(2):
        host.factory = None
        clock.advance(10)
        for _ in range(2):
            assert isinstance(proxy.get_poem(), Deferred)
            network.pump()
        host.factory = up
        for _ in range(2):
            ask(proxy)
            answer(network, host, b"new")
            clock.advance(10)
    assert [line.partition(":")[0] for line in log.lines] == ["no fresh poem", "owl"] * 2


def test_an_address_that_is_none_is_said_at_once(clock: Clock) -> None:
    with pytest.raises(xformd.ConfigError, match="write HOST:PORT"):
        CachingProxyService("no:such:endpoint", reactor=clock)
