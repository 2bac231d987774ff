"""The client's side of the classic dialect: one connection for each request, to a server that speaks nothing else.

Invariant: a request has one outcome, and its connection is closed with it.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import RequestCancelled, connection_failed, why_lost
from xformd.net.endpoints import connect
from xformd.spec import Spec
from xformd.wire.client import ClassicExchange


def send_request(
    endpoint: IStreamClientEndpoint, address: str, spec: Spec, poem: bytes, *, max_result_bytes: int
) -> Deferred[bytes]:
    """Send one request, and return a Deferred of its result. Cancelling it closes the connection."""
    exchange = _Exchange(ClassicExchange(address, spec, poem, max_result_bytes), address)
    connecting = connect(endpoint, exchange, also_unread=True)  # it cannot ask whether the server is there
    answer: Deferred[bytes] = Deferred(lambda _: exchange.cancel(connecting))
    exchange.answer = answer
    connecting.addErrback(exchange.connection_failed)
    return answer


class _Exchange(Protocol):
    """One connection: a request goes out, a result or an error comes in."""

    answer: Deferred[bytes] | None = None

    def __init__(self, core: ClassicExchange, address: str) -> None:
        self._core = core
        self._address = address

    def connectionMade(self) -> None:
        """Send the request."""
        assert self.transport is not None
        self.transport.write(self._core.data_to_send())

    def dataReceived(self, data: bytes) -> None:
        """Collect the result."""
        self._core.receive(data, 0.0)
        self._follow()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail with the reason, unless there is a result."""
        self._core.lose(why_lost(reason), is_clean=bool(reason.check(ConnectionDone)))
        self._follow()

    def connection_failed(self, failure: Failure) -> None:
        """Fail with the reason why there is no connection."""
        self._settle(connection_failed(self._address, failure))

    def cancel(self, connecting: Deferred[IProtocol]) -> None:
        """Close the connection, or stop connecting."""
        self._settle(RequestCancelled(f"the request to {self._address} was cancelled"))
        connecting.cancel()

    def _follow(self) -> None:
        for _, value in self._core.outcomes():
            self._settle(value)

    def _settle(self, value: Any) -> None:
        answer, self.answer = self.answer, None
        self._core.abort()
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it
        if answer is not None:
            answer.callback(Failure(value) if isinstance(value, Exception) else value)
