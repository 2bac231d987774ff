"""The classic dialect on the client: each way to fail has its own exception, with the address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

import xformd
from support.deferreds import error_of, has_fired, result_of
from support.network import Host, Network
from xformd import TransformProxy
from xformd.spec import parse


@pytest.fixture
def host() -> Host:
    return Network().silent()


def ask(host: Host, *, is_slow: bool = False) -> Deferred[bytes]:
    """Send a poem to a server that closes where a session is opened; then it is silent, or slow to connect to."""
    proxy = TransformProxy(host, reactor=Clock(), address="there:11000", max_result_bytes=100)
    answer = proxy.forward(parse("wrap:width=4"), b"poem", None)
    host.network.pump()
    host.is_slow = is_slow
    host.lose_connections(error.ConnectionDone())
    host.wires.clear()
    host.network.pump()
    return answer


def test_a_request_and_its_answer_in_single_bytes(host: Host) -> None:
    answer = ask(host)
    assert host.sent == b"17:wrap:width=4.poem,"
    for byte in b"4:poem,":
        assert not has_fired(answer)
        host.say(bytes([byte]))
    assert result_of(answer) == b"poem"
    assert host.wires[0].is_gone


def test_no_connection() -> None:
    says = "cannot connect to there:11000: Connection refused; is 'xformd"
    assert error_of(ask(Network().host()), xformd.ConnectionFailed).message.startswith(says)


@pytest.mark.parametrize(
    ("received", "reason", "kind", "says"),
    [
        (b"", error.ConnectionDone(), xformd.RequestRefused, "there:11000 refused wrap:width=4 without an answer"),
        (b"", error.ConnectionLost(), xformd.ConnectionLost, "there:11000 is gone"),
        (b"5:half", error.ConnectionDone(), xformd.ConnectionLost, "closed the connection before the whole answer"),
        (b"5:half", error.ConnectionLost(), xformd.ConnectionLost, "there:11000 is gone"),
    ],
)
def test_a_connection_that_ends_without_an_answer(
    host: Host, received: bytes, reason: Exception, kind: type, says: str
) -> None:
    answer = ask(host)
    host.say(received)
    host.lose_connections(reason)
    failed = error_of(answer, kind)
    assert says in failed.message
    assert type(failed) is kind


@pytest.mark.parametrize(
    ("received", "kind"), [(b"HTTP/1.1 400", xformd.BadFrame), (b"1:ab", xformd.BadFrame), (b"101:", xformd.TooLarge)]
)
def test_an_answer_that_cannot_be_read(host: Host, received: bytes, kind: type) -> None:
    answer = ask(host)
    host.say(received)
    assert error_of(answer, kind).message.startswith("there:11000 sent an unreadable answer: ")
    assert host.wires[0].is_gone


@pytest.mark.parametrize("is_connected", [False, True])
def test_cancelling_stops_connecting_or_closes_the_connection(host: Host, is_connected: bool) -> None:
    answer = ask(host, is_slow=not is_connected)
    answer.cancel()
    assert isinstance(error_of(answer, xformd.Cancelled), CancelledError)
    host.network.pump()
    assert [wire.is_gone for wire in host.wires] == [True] * is_connected
    assert host.cancelled == (not is_connected)


@given(st.lists(st.binary(max_size=20)))
def test_whatever_a_server_sends_the_outcome_is_a_result_or_one_of_our_errors(pieces: list[bytes]) -> None:
    host = Network().silent()
    answer = ask(host).addErrback(lambda failure: failure.value)
    for piece in pieces:
        host.wires[0].write(piece)
    host.network.pump()
    host.lose_connections(error.ConnectionDone())
    assert isinstance(result_of(answer), bytes | xformd.XformError)
