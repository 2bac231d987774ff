"""The classic dialect on the client: each way to fail has its own exception, with the address."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

import xformd
from support.deferreds import error_of, has_fired, result_of
from xformd.client import classic
from xformd.spec import parse


class Wire(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Endpoint:
    """An endpoint whose one connection the test makes, breaks and answers."""

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

    def ask(self) -> Deferred[bytes]:
        return classic.send_request(self, "there:11000", parse("wrap:width=4"), b"poem", max_result_bytes=100)  # type: ignore[arg-type]


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint()


def test_a_request_and_its_answer_in_single_bytes(endpoint: Endpoint) -> None:
    answer = endpoint.ask()
    server = endpoint.accept()
    assert endpoint.wire.value() == b"17:wrap:width=4.poem,"
    for byte in b"4:poem,":
        assert not has_fired(answer)
        server.dataReceived(bytes([byte]))
    assert result_of(answer) == b"poem"
    assert endpoint.wire.aborted


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (error.ConnectionRefusedError(osError=111), "cannot connect to there:11000: Connection refused; is 'xformd"),
        (error.DNSLookupError("no results for there"), "cannot connect to there:11000: DNS lookup failed: no results"),
    ],
)
def test_no_connection(endpoint: Endpoint, failure: Exception, says: str) -> None:
    answer = endpoint.ask()
    endpoint.connecting.errback(failure)
    assert error_of(answer, xformd.ConnectionFailed).message.startswith(says)


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
    endpoint: Endpoint, received: bytes, reason: Exception, kind: type, says: str
) -> None:
    answer = endpoint.ask()
    server = endpoint.accept()
    if received:
        server.dataReceived(received)
    server.connectionLost(Failure(reason))
    failed = error_of(answer, kind)
    assert says in failed.message
    assert type(failed) is kind


@pytest.mark.parametrize(
    ("received", "kind"), [(b"HTTP/1.1 400", xformd.BadFrame), (b"1:ab", xformd.BadFrame), (b"101:", xformd.TooLarge)]
)
def test_an_answer_that_cannot_be_read(endpoint: Endpoint, received: bytes, kind: type) -> None:
    answer = endpoint.ask()
    endpoint.accept().dataReceived(received)
    assert error_of(answer, kind).message.startswith("there:11000 sent an unreadable answer: ")
    assert endpoint.wire.aborted


def test_cancelling_closes_the_connection(endpoint: Endpoint) -> None:
    answer = endpoint.ask()
    server = endpoint.accept()
    answer.cancel()
    assert isinstance(error_of(answer, xformd.Cancelled), CancelledError)
    assert endpoint.wire.aborted
    server.connectionLost(Failure(error.ConnectionLost()))


def test_cancelling_before_there_is_a_connection_stops_connecting(endpoint: Endpoint) -> None:
    cancelled: list[object] = []
    endpoint.connecting = Deferred(cancelled.append)
    answer = endpoint.ask()
    answer.cancel()
    error_of(answer, xformd.Cancelled)
    assert len(cancelled) == 1


@given(st.lists(st.binary(max_size=20)))
def test_whatever_a_server_sends_the_outcome_is_a_result_or_one_of_our_errors(pieces: list[bytes]) -> None:
    endpoint = Endpoint()
    answer = endpoint.ask().addErrback(lambda failure: failure.value)
    server = endpoint.accept()
    for piece in pieces:
        server.dataReceived(piece)
    server.connectionLost(Failure(error.ConnectionDone()))
    outcome = result_of(answer)
    assert isinstance(outcome, bytes | xformd.XformError)
