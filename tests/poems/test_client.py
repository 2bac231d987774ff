"""Getting a poem: only a clean close is its end, and every failure names the address."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionRefusedError  # noqa: A004
from twisted.internet.error import ConnectionLost as Lost
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.network import Host, Network
from xformd.poems import get_poem
from xformd.poems.client import find_server


@pytest.fixture
def host() -> Host:
    return Network().silent()


def get(host: Host, clock: Clock, *, address: str | None = "owl:1", **options: Any) -> Deferred[bytes]:
    poem = get_poem(host, address=address, reactor=clock, **options)
    host.network.pump()
    return poem


def test_a_poem_is_all_that_comes_before_the_close(host: Host, clock: Clock) -> None:
    received: list[int] = []
    poem = get(host, clock, progressed=received.append)
    host.say(b"The Owl\r\n")
    host.say(b"\0 and the Pussy-cat")
    assert not has_fired(poem)
    host.lose_connections(ConnectionDone())
    assert result_of(poem) == b"The Owl\r\n\0 and the Pussy-cat"
    assert received == [0, 9, 28]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("address", "received", "end", "says"),
    [
        ("owl:1", b"The Owl", Lost(), f"owl:1 is gone ({Lost()}) after 7 bytes: no whole poem"),
        ("owl:1", b"", ConnectionDone(), "owl:1 closed without sending anything: no poem"),
        (None, b"", ConnectionDone(), "the poem server closed without sending anything: no poem"),
    ],
)
def test_a_reset_or_a_close_without_a_byte_is_a_failure(
    host: Host, clock: Clock, address: str | None, received: bytes, end: Exception, says: str
) -> None:
    poem = get(host, clock, address=address)
    host.say(received)
    host.lose_connections(end)
    assert error_of(poem, xformd.ConnectionLost).message == says


def test_a_refused_connection_names_the_server(clock: Clock) -> None:
    error = error_of(get(Network().host(), clock), xformd.ConnectionFailed)
    assert (isinstance(error, ConnectError), type(error.__cause__)) == (True, ConnectionRefusedError)
    assert error.message == "cannot connect to owl:1: Connection refused; is a poem server running there?"


@pytest.mark.parametrize("drip", [b"", b"x"])
def test_a_server_that_never_ends_fails_at_its_deadline(host: Host, clock: Clock, drip: bytes) -> None:
    poem = get(host, clock, timeout_s=5, connect_timeout_s=1)
    for step_s in (1, 1, 1, 1, 0.9, 0.1):
        assert not has_fired(poem)
        host.say(drip)
        clock.advance(step_s)
    assert error_of(poem, xformd.TransformTimeout).message == "no whole poem from owl:1 within 5 s"
    host.network.pump()
    assert host.wires[0].is_gone


def test_connecting_has_its_own_deadline(host: Host, clock: Clock) -> None:
    host.is_slow = True
    poem = get(host, clock, timeout_s=60, connect_timeout_s=2)
    clock.advance(2)
    assert error_of(poem, xformd.TransformTimeout).message == "no connection to owl:1 within 2 s"
    assert clock.getDelayedCalls() == []


def test_a_poem_that_is_too_long_fails_at_the_first_byte_too_many(host: Host, clock: Clock) -> None:
    poem = get(host, clock, max_bytes=10)
    host.say(b"x" * 10)
    assert not has_fired(poem)
    host.wires[0].write(b"x")
    host.say(b"and on")
    assert error_of(poem, xformd.TooLarge).message == "owl:1 sends more than 10 bytes"
    assert host.wires[0].is_gone


@pytest.mark.parametrize("is_connected", [False, True])
def test_cancelling_closes_the_connection_and_is_twisteds_error(host: Host, clock: Clock, is_connected: bool) -> None:
    host.is_slow = not is_connected
    poem = get(host, clock, timeout_s=5)
    poem.cancel()
    assert isinstance(error_of(poem, xformd.Cancelled), CancelledError)
    host.network.pump()
    assert [wire.is_gone for wire in host.wires] == [True] * is_connected
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(("address", "name"), [(None, "localhost:1"), ("the owl's", "the owl's")])
def test_a_server_is_named_as_the_caller_says_or_by_its_address(address: str | None, name: str) -> None:
    assert find_server(MemoryReactorClock(), "localhost:1", address)[1] == name


def test_an_invalid_address_or_timeout_is_a_failure_like_any_other(host: Host, clock: Clock) -> None:
    for address in ("no:such:endpoint", "10000:1", 0):
        error_of(get_poem(address, reactor=clock), xformd.ConfigError)
    for seconds in (0, -1, float("inf"), float("nan"), "5"):
        error_of(get(host, clock, timeout_s=seconds), (ValueError, TypeError))
        error_of(get(host, clock, connect_timeout_s=seconds), (ValueError, TypeError))
    assert host.wires == []


def test_a_lost_connection_has_its_cause(host: Host, clock: Clock) -> None:
    poem, end = get(host, clock), Lost()
    host.lose_connections(end)
    assert error_of(poem, xformd.ConnectionLost).__cause__ is end
