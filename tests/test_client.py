"""TransformProxy over memory: each way to fail is an exception of its own, with the address and the poem."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

import xformd
from deferreds import error_of, has_fired, result_of
from xformd import TransformProxy


class Wire(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Endpoint:
    """An endpoint whose connections the test makes, breaks and answers."""

    def __init__(self) -> None:
        self.factory: Factory | None = None
        self.connecting: Deferred[IProtocol] = Deferred()
        self.wire = Wire()

    def connect(self, factory: Factory) -> Deferred[IProtocol]:
        self.factory = factory
        return self.connecting

    def accept(self) -> Any:
        assert self.factory is not None
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        protocol.makeConnection(self.wire)
        self.connecting.callback(protocol)
        return protocol


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture
def proxy(endpoint: Endpoint, clock: Clock) -> TransformProxy:
    return TransformProxy(endpoint, reactor=clock, address="there:11000", max_result_bytes=100)  # type: ignore[arg-type]


@pytest.mark.parametrize(("poem", "result"), [("Dé", "dé"), ("Dé".encode(), "dé".encode())])
def test_a_result_is_of_the_poems_own_kind(endpoint: Endpoint, proxy: TransformProxy, poem: Any, result: Any) -> None:
    answer = proxy.xform("cummingsify", poem)
    server = endpoint.accept()
    assert endpoint.wire.value() == "15:cummingsify.Dé,".encode()
    for byte in "3:dé,".encode():
        assert not has_fired(answer)
        server.dataReceived(bytes([byte]))
    assert result_of(answer) == result
    assert endpoint.wire.disconnecting


def test_options_travel_in_the_spec(endpoint: Endpoint, proxy: TransformProxy) -> None:
    proxy.xform("wrap:indent=2", b"x", width=40, fill=False, ratio=1.5)
    endpoint.accept()
    assert endpoint.wire.value() == b"47:wrap:fill=false,indent=2,ratio=1%2E5,width=40.x,"


def test_the_fallback_of_the_tutorial_is_one_line(endpoint: Endpoint, proxy: TransformProxy) -> None:
    answer = proxy.xform("cummingsify", "The Owl").addErrback(lambda failure: failure.value.poem)
    endpoint.connecting.errback(error.ConnectionRefusedError())
    assert result_of(answer) == "The Owl"


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (
            error.ConnectionRefusedError(osError=111),
            "cannot connect to there:11000: Connection refused; is 'xformd serve'",
        ),
        (error.DNSLookupError("no results for there"), "cannot connect to there:11000: DNS lookup failed: no results"),
    ],
)
def test_no_connection(endpoint: Endpoint, proxy: TransformProxy, failure: Exception, says: str) -> None:
    answer = proxy.xform("upper", "poem")
    endpoint.connecting.errback(failure)
    failed = error_of(answer, xformd.ConnectionFailed)
    assert failed.message.startswith(says)
    assert failed.poem == "poem"


@pytest.mark.parametrize(
    ("received", "reason", "kind", "says"),
    [
        (b"", error.ConnectionDone(), xformd.RequestRefused, "there:11000 refused wrap:width=4 without a word"),
        (b"", error.ConnectionLost(), xformd.ConnectionLost, "there:11000 is gone"),
        (b"5:half", error.ConnectionDone(), xformd.ConnectionLost, "closed the connection before the whole answer"),
        (b"5:half", error.ConnectionLost(), xformd.ConnectionLost, "there:11000 is gone"),
    ],
)
def test_a_connection_that_ends_without_an_answer(
    endpoint: Endpoint, proxy: TransformProxy, received: bytes, reason: Exception, kind: type, says: str
) -> None:
    answer = proxy.xform("wrap", b"poem", width=4)
    server = endpoint.accept()
    if received:
        server.dataReceived(received)
    server.connectionLost(Failure(reason))
    failed = error_of(answer, kind)
    assert says in failed.message
    assert type(failed) is kind
    assert failed.poem == b"poem"


@pytest.mark.parametrize(
    ("received", "kind"), [(b"HTTP/1.1 400", xformd.BadFrame), (b"1:ab", xformd.BadFrame), (b"101:", xformd.TooLarge)]
)
def test_an_answer_that_cannot_be_read(endpoint: Endpoint, proxy: TransformProxy, received: bytes, kind: type) -> None:
    answer = proxy.xform("upper", "poem")
    endpoint.accept().dataReceived(received)
    failed = error_of(answer, kind)
    assert failed.message.startswith("there:11000 sent no answer that can be read: ")
    assert failed.poem == "poem"
    assert endpoint.wire.aborted


def test_a_text_that_comes_back_as_no_text(endpoint: Endpoint, proxy: TransformProxy) -> None:
    answer = proxy.xform("zip", "poem")
    endpoint.accept().dataReceived(b"1:\xff,")
    assert error_of(answer, xformd.GibberishError).poem == "poem"


def test_a_request_that_makes_no_sense_is_never_sent(endpoint: Endpoint, proxy: TransformProxy) -> None:
    assert error_of(proxy.xform("No Such", "poem"), xformd.BadRequest).poem == "poem"
    assert error_of(proxy.xform("upper", "\ud800"), xformd.GibberishError).poem == "\ud800"
    assert endpoint.factory is None


def test_cancelling_closes_the_connection(endpoint: Endpoint, proxy: TransformProxy) -> None:
    answer = proxy.xform("upper", "poem")
    server = endpoint.accept()
    answer.cancel()
    cancelled = error_of(answer, xformd.Cancelled)
    assert isinstance(cancelled, CancelledError)
    assert cancelled.poem == "poem"
    assert endpoint.wire.aborted
    server.connectionLost(Failure(error.ConnectionLost()))


def test_cancelling_before_there_is_a_connection_stops_connecting(endpoint: Endpoint, proxy: TransformProxy) -> None:
    cancelled: list[object] = []
    endpoint.connecting = Deferred(cancelled.append)
    answer = proxy.xform("upper", "poem")
    answer.cancel()
    error_of(answer, xformd.Cancelled)
    assert len(cancelled) == 1


def test_a_timeout_closes_the_connection(endpoint: Endpoint, proxy: TransformProxy, clock: Clock) -> None:
    answer = proxy.xform("upper", "poem", timeout=2.5)
    endpoint.accept()
    clock.advance(2.5)
    failed = error_of(answer, xformd.TransformTimeout)
    assert failed.message == "no answer from there:11000 within 2.5 s"
    assert failed.poem == "poem"
    assert endpoint.wire.aborted


def test_a_timeout_that_is_not_needed_leaves_no_timer(endpoint: Endpoint, proxy: TransformProxy, clock: Clock) -> None:
    answer = proxy.xform("upper", "poem", timeout=2.5)
    endpoint.accept().dataReceived(b"1:A,")
    assert result_of(answer) == "A"
    assert clock.getDelayedCalls() == []


@given(st.lists(st.binary(max_size=20)))
def test_whatever_a_server_sends_the_outcome_is_a_result_or_one_of_our_errors(pieces: list[bytes]) -> None:
    endpoint = Endpoint()
    proxy = TransformProxy(endpoint, reactor=Clock(), max_result_bytes=10)  # type: ignore[arg-type]
    answer = proxy.xform("upper", b"poem").addErrback(lambda failure: failure.value)
    server = endpoint.accept()
    for piece in pieces:
        server.dataReceived(piece)
    server.connectionLost(Failure(error.ConnectionDone()))
    outcome = result_of(answer)
    assert isinstance(outcome, bytes | xformd.XformError)
