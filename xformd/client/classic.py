"""The client's side of the classic dialect: one connection for each request, to a server that speaks nothing else.

Invariant: a request has one outcome, and its connection is closed with it.
"""

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import RequestCancelled, connection_failed
from xformd.errors import ConnectionLost, RequestRefused
from xformd.net.endpoints import connect, failure_reason
from xformd.spec import Spec
from xformd.wire import classic, netstring


def send_request(
    endpoint: IStreamClientEndpoint, address: str, spec: Spec, poem: bytes, *, max_result_bytes: int
) -> Deferred[bytes]:
    """Send one request, and return a Deferred of its result. Cancelling it closes the connection."""
    exchange = _Exchange(address, classic.Request(spec, poem), max_result_bytes)
    connecting = connect(endpoint, exchange, also_unread=True)  # it cannot ask whether the server is there
    answer: Deferred[bytes] = Deferred(lambda _: exchange.cancel(connecting))
    exchange.answer = answer
    connecting.addErrback(exchange.connection_failed)
    return answer


class _Exchange(Protocol):
    """One connection: a request goes out, a result or an error comes in."""

    answer: Deferred[bytes] | None = None

    def __init__(self, address: str, request: classic.Request, max_result_bytes: int) -> None:
        self._address = address
        self._request = classic.encode_request(request)
        self._spec = request.spec
        self._decoder = netstring.Decoder(max_result_bytes)
        self._has_received = False

    def connectionMade(self) -> None:
        """Send the request."""
        assert self.transport is not None
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        """Collect the result."""
        self._has_received = True
        try:
            strings = self._decoder.decode(data, max_strings=1)
        except netstring.NetstringError as violation:
            error = violation.wire_error
            self._settle(Failure(type(error)(f"{self._address} sent an unreadable answer: {error.message}")))
        else:
            if strings:
                self._settle(strings[0])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail with the reason, unless there is a result."""
        if self._has_received or not reason.check(ConnectionDone):
            how = "closed the connection" if reason.check(ConnectionDone) else f"is gone ({failure_reason(reason)})"
            self._settle(Failure(ConnectionLost(f"{self._address} {how} before the whole answer had arrived")))
        else:
            refused = (
                f"{self._address} refused {self._spec} without an answer, as the classic dialect does: check the "
                "transform's name and options (xformd list-transforms), that the poem is what it takes (UTF-8 text?) "
                "and its size; the server's log has the reason"
            )
            self._settle(Failure(RequestRefused(refused, log_message=f"{self._address} refused a request")))

    def connection_failed(self, failure: Failure) -> None:
        """Fail with the reason why there is no connection."""
        self._settle(Failure(connection_failed(self._address, failure)))

    def cancel(self, connecting: Deferred[IProtocol]) -> None:
        """Close the connection, or stop connecting."""
        self._settle(Failure(RequestCancelled(f"the request to {self._address} was cancelled")))
        connecting.cancel()

    def _settle(self, outcome: bytes | Failure) -> None:
        answer, self.answer = self.answer, None
        if self.transport is not None:
            # Also after an answer: a server that answered early may never read the rest of the request.
            self.transport.abortConnection()  # type: ignore[attr-defined]  # every stream transport has it
        if answer is not None:
            answer.callback(outcome)
