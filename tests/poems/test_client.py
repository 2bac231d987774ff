"""Getting a poem: only a close in order is its end, and every failure names the address."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost as Lost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.network import Host, Network
from xformd.poems import get_poem
from xformd.poems.client import find_server


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def host(network: Network) -> Host:
    return network.host(Factory.forProtocol(Protocol))


def get(host: Host, clock: Clock, **options: Any) -> Deferred[bytes]:
    return get_poem(host, address="owl:1", reactor=clock, **options)


def test_a_poem_is_all_that_comes_before_the_close(network: Network, host: Host, clock: Clock) -> None:
    received: list[int] = []
    poem = get(host, clock, progressed=received.append)
    network.pump()
    (wire,) = host.wires
    wire.write(b"The Owl\r\n")
    wire.write(b"\0 and the Pussy-cat")
    network.pump()
    assert not has_fired(poem)
    wire.loseConnection()
    network.pump()
    assert result_of(poem) == b"The Owl\r\n\0 and the Pussy-cat"
    assert received == [0, 9, 28]
    assert clock.getDelayedCalls() == []


def test_a_reset_is_never_the_end_of_a_poem(network: Network, host: Host, clock: Clock) -> None:
    poem = get(host, clock)
    network.pump()
    host.wires[0].write(b"The Owl")
    network.pump()
    host.wires[0].peer.lose(Lost())
    error = error_of(poem, xformd.ConnectionLost)
    assert error.message == (
        "owl:1 is gone (Connection to the other side was lost in a non-clean fashion.) after 7 bytes: no whole poem"
    )


def test_a_close_without_a_byte_is_a_failure(network: Network, host: Host, clock: Clock) -> None:
    poem = get(host, clock)
    network.pump()
    host.wires[0].loseConnection()
    network.pump()
    assert error_of(poem, xformd.ConnectionLost).message == "owl:1 closed without sending anything: no poem"


def test_a_refused_connection_names_the_server(network: Network, clock: Clock) -> None:
    poem = get(network.host(), clock)
    network.pump()
    error = error_of(poem, xformd.ConnectionFailed)
    assert error.message == "cannot connect to owl:1: Connection refused; is a poem server running there?"


def test_a_server_that_never_answers_fails_at_its_deadline(network: Network, host: Host, clock: Clock) -> None:
    poem = get(host, clock, timeout_s=5, connect_timeout_s=1)
    network.pump()
    clock.advance(4.9)
    assert not has_fired(poem)
    clock.advance(0.1)
    assert error_of(poem, xformd.TransformTimeout).message == "no whole poem from owl:1 within 5 s"
    network.pump()
    assert host.wires[0].is_gone


def test_a_server_that_drips_for_ever_does_not_move_the_deadline(network: Network, host: Host, clock: Clock) -> None:
    poem = get(host, clock, timeout_s=5)
    network.pump()
    for _ in range(5):
        assert not has_fired(poem)
        host.wires[0].write(b"x")
        network.pump()
        clock.advance(1)
    error_of(poem, xformd.TransformTimeout)


def test_connecting_has_its_own_deadline(network: Network, host: Host, clock: Clock) -> None:
    host.is_slow = True
    poem = get(host, clock, timeout_s=60, connect_timeout_s=2)
    clock.advance(2)
    assert error_of(poem, xformd.TransformTimeout).message == "no connection to owl:1 within 2 s"
    assert clock.getDelayedCalls() == []


def test_a_poem_that_is_too_long_fails_at_the_first_byte_too_many(network: Network, host: Host, clock: Clock) -> None:
    poem = get(host, clock, max_bytes=10)
    network.pump()
    host.wires[0].write(b"x" * 10)
    network.pump()
    assert not has_fired(poem)
    host.wires[0].write(b"x")
    host.wires[0].write(b"and on")
    network.pump()
    assert error_of(poem, xformd.TooLarge).message == "owl:1 sends more than 10 bytes"
    assert host.wires[0].is_gone


@pytest.mark.parametrize("is_connected", [False, True])
def test_cancelling_closes_the_connection_and_is_twisteds_error(
    network: Network, host: Host, clock: Clock, is_connected: bool
) -> None:
    host.is_slow = not is_connected
    poem = get(host, clock, timeout_s=5)
    network.pump()
    poem.cancel()
    assert isinstance(error_of(poem, xformd.Cancelled), CancelledError)
    network.pump()
    assert [wire.is_gone for wire in host.wires] == [True] * is_connected
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(("address", "name"), [(None, "localhost:1"), ("the owl's", "the owl's")])
def test_a_server_is_named_as_the_caller_says_or_by_its_address(address: str | None, name: str) -> None:
    assert find_server(MemoryReactorClock(), "localhost:1", address)[1] == name


def test_an_endpoint_without_a_name_is_the_poem_server(network: Network, host: Host, clock: Clock) -> None:
    poem = get_poem(host, reactor=clock)
    network.pump()
    host.wires[0].loseConnection()
    network.pump()
    assert error_of(poem, xformd.ConnectionLost).message == "the poem server closed without sending anything: no poem"


def test_an_invalid_address_or_timeout_is_an_error_at_once(host: Host, clock: Clock) -> None:
    with pytest.raises(xformd.ConfigError, match="write HOST:PORT"):
        get_poem("no:such:endpoint", reactor=clock)
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            get(host, clock, timeout_s=seconds)
