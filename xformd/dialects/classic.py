"""The classic dialect, on the server: one request, one reply, close; an error closes without a reply."""

from functools import partial
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from xformd.dialects.handler import ConnectionHandler
from xformd.errors import XformError
from xformd.runners import Caller
from xformd.service import Service
from xformd.wire import classic, netstring

if TYPE_CHECKING:  # it makes the handlers
    from xformd.protocol import TransformProtocol


class ClassicHandler(ConnectionHandler):
    """Answers one request, ``string``: the inside of the first netstring.

    What follows it is never executed. A client that half-closes still gets its reply, also when the server stops; there
    is no way to tell it that its time is up.
    """

    def __init__(self, connection: "TransformProtocol", string: bytes) -> None:
        self._connection = connection
        self._running: Deferred[bytes] | None = None
        connection.set_deadline(None)  # the service has its own
        if connection.share in connection.service.turns.over:
            connection.call_soon(partial(self._take_turn, string))
        else:
            self._take_turn(string)

    def _take_turn(self, string: bytes) -> None:
        service = self._connection.service
        began_s = service.stopwatch()
        self._answer(service, string)
        service.turns.used(self._connection.share, service.stopwatch() - began_s)

    def _answer(self, service: Service, string: bytes) -> None:
        entry = self._connection.begin_entry()
        try:
            request = classic.decode_request(string)
        except XformError as error:
            self._connection.count_refusal(error.code, entry)
            self._refuse(error)
            return
        try:
            result = service.xform(request.spec, request.poem, caller=Caller(self._connection.share), timing=entry)
        except XformError as error:
            self._refuse(error)
            return
        if isinstance(result, Deferred):
            self._running = result
            result.addCallbacks(self._reply, self._fail)
        else:
            self._reply(result)

    def lost(self) -> None:
        """Cancel the request."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _reply(self, poem: bytes) -> None:
        self._connection.finish(netstring.encode(poem))

    def _fail(self, failure: Failure) -> None:
        error = failure.value
        assert isinstance(error, XformError)  # what a Service promises
        if self._running is not None:
            self._refuse(error)

    def _refuse(self, error: XformError) -> None:
        self._connection.log_refusal(error)
        self._connection.close()
