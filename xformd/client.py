"""The client: ``TransformProxy.xform()`` sends a poem to a server and gives a Deferred of the result.

It speaks the classic form: one connection for each poem, and a server that says no by closing. Whatever goes
wrong, the Deferred fails with an ``XformError`` that carries the poem, so that a caller can fall back to it:
``d.addErrback(lambda failure: failure.value.poem)``.

From asyncio, run Twisted on its asyncio reactor and await ``proxy.xform(...).asFuture(loop)``.
"""

import os
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from xformd import address as addresses
from xformd import spec
from xformd.errors import (
    Cancelled,
    ConnectionFailed,
    ConnectionLost,
    GibberishError,
    RequestRefused,
    TransformTimeout,
    XformError,
)
from xformd.limits import Limits
from xformd.options import OptionValue
from xformd.wire import classic

Poem = TypeVar("Poem", str, bytes)


class RequestCancelled(Cancelled, CancelledError):
    """The caller cancelled the Deferred: Twisted's own error, and one of ours."""


class TransformProxy:
    """A transform server, seen from a client.

    Args:
        host: a host name or address; or any Twisted client endpoint, such as one for TLS or a Unix socket.
        port: of the server; left out with an endpoint.
        reactor: what connects; the running one where none is given.
        address: how messages name the server; made from host and port where it is not given.
        max_result_bytes: the longest result to accept.
    """

    def __init__(
        self,
        host: str | IStreamClientEndpoint,
        port: int | None = None,
        *,
        reactor: Any = None,
        address: str | None = None,
        max_result_bytes: int = Limits().max_result_bytes,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        if isinstance(host, str):
            port = addresses.DEFAULT_PORT if port is None else port
            self._address = address or f"{host}:{port}"
            self._endpoint = addresses.tcp_client(reactor, host, port)
        else:
            self._address = address or "the server"
            self._endpoint = host
        self._reactor = reactor
        self._max_result_bytes = max_result_bytes

    def xform(
        self, transform: str, poem: Poem, /, *, timeout: float | None = None, **options: OptionValue
    ) -> Deferred[Poem]:
        """Send a poem to be transformed.

        Args:
            transform: a transform's name, or a whole spec such as ``wrap:width=40+upper``.
            poem: ``str``, sent as UTF-8, or ``bytes``.
            timeout: give up after this many seconds.
            options: of the transform; with a spec of several steps they stand in the spec.

        Returns:
            A Deferred of the result, of the same type as the poem. Cancelling it closes the connection. It fails
            with ``ConnectionFailed``, ``ConnectionLost``, ``RequestRefused`` (the server closed without an
            answer), ``BadFrame`` or ``TooLarge`` (the answer is no netstring, or a longer one than
            ``max_result_bytes``), ``TransformTimeout``, ``RequestCancelled``, or ``BadRequest`` (the spec does
            not parse); each carries the poem.
        """
        try:
            request = classic.Request(spec.build(transform, options), _to_bytes(poem))
        except XformError as error:
            error.poem = poem
            failed: Deferred[Poem] = Deferred()
            failed.errback(error)
            return failed
        exchange = _Exchange(self._address, request, self._max_result_bytes)
        connecting = self._endpoint.connect(_OneConnection(exchange))
        answer: Deferred[bytes] = Deferred(lambda _: exchange.give_up(connecting))
        exchange.answer = answer
        connecting.addErrback(exchange.connection_failed)
        if timeout is not None:
            answer.addTimeout(timeout, self._reactor, onTimeoutCancel=_expired(self._address))
        return answer.addCallbacks(_like, _carrying, callbackArgs=(poem,), errbackArgs=(poem,))


class _Exchange(Protocol):
    """One connection: a request goes out, an answer or an error comes in."""

    answer: "Deferred[bytes] | None" = None

    def __init__(self, address: str, request: classic.Request, max_result_bytes: int) -> None:
        self._address = address
        self._request = classic.encode_request(request)
        self._spec = request.spec
        self._reader = classic.OneString(max_result_bytes)
        self._has_received = False

    def connectionMade(self) -> None:
        """Send the request."""
        assert self.transport is not None
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        """Collect the answer."""
        self._has_received = True
        try:
            poem = self._reader.receive(data)
        except XformError as error:
            self._settle(Failure(type(error)(f"{self._address} sent no answer that can be read: {error.message}")))
        else:
            if poem is not None:
                self._settle(poem)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say why there is no answer, if there is none."""
        if self._has_received or not reason.check(ConnectionDone):
            how = "closed the connection" if reason.check(ConnectionDone) else f"is gone ({_why(reason)})"
            self._settle(Failure(ConnectionLost(f"{self._address} {how} before the whole answer was there")))
        else:
            self._settle(Failure(RequestRefused(self._refused())))

    def connection_failed(self, failure: Failure) -> None:
        """Say that there is no connection."""
        message = f"cannot connect to {self._address}: {_why(failure)}; is 'xformd serve' running there?"
        self._settle(Failure(ConnectionFailed(message)))

    def give_up(self, connecting: Deferred[IProtocol]) -> None:
        """Close: nobody waits for the answer any more."""
        self._settle(Failure(RequestCancelled(f"the request to {self._address} was given up")))
        connecting.cancel()

    def _settle(self, outcome: bytes | Failure) -> None:
        answer, self.answer = self.answer, None
        if self.transport is not None:
            if isinstance(outcome, bytes):
                self.transport.loseConnection()
            else:
                self.transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it
        if answer is not None:
            answer.callback(outcome)

    def _refused(self) -> str:
        return (
            f"{self._address} refused {self._spec} without a word, as the classic form does: check the transform's "
            "name and options (xformd list-transforms), that the poem is what it takes (UTF-8 text?) and its size; "
            "the server's log has the reason"
        )


class _OneConnection(Factory):
    """Connects one exchange, and says nothing of it in the log."""

    noisy = False

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def buildProtocol(self, addr: IAddress | None) -> _Exchange:  # noqa: ARG002 - Twisted's signature
        """Give the exchange."""
        return self._exchange


def _to_bytes(poem: str | bytes) -> bytes:
    if isinstance(poem, bytes):
        return poem
    try:
        return poem.encode()
    except UnicodeEncodeError:
        raise GibberishError("the poem has a lone surrogate in it: it is no text that can be sent") from None


def _like(result: bytes, poem: Poem) -> Poem:
    if isinstance(poem, bytes):
        return result
    try:
        return result.decode()
    except UnicodeDecodeError:
        message = "the answer is not UTF-8: send the poem as bytes to get bytes"
        raise GibberishError(message, poem=poem) from None


def _carrying(failure: Failure, poem: str | bytes) -> Failure:
    if isinstance(failure.value, XformError):
        failure.value.poem = poem
    return failure


def _expired(address: str) -> Any:
    def convert(result: object, timeout: float) -> object:
        if isinstance(result, Failure) and result.check(CancelledError):
            raise TransformTimeout(f"no answer from {address} within {timeout:g} s")
        return result

    return convert


def _why(failure: Failure) -> str:
    error = failure.value
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__
