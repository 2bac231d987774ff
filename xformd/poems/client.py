"""The poem client: returns a Deferred of a whole poem, or of the reason why there is none.

Invariant: only a clean close after at least one byte is the end of a poem; a reset, a truncated TLS stream, a
deadline or too many bytes are failures. A server that has no poem closes without a byte.
"""

import io
import math
from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from xformd.client.errors import RequestCancelled, connection_failed
from xformd.errors import ConnectionLost, TooLarge, TransformTimeout, XformError
from xformd.limits import MIB
from xformd.net.defaults import DEFAULT_POEM_PORT
from xformd.net.endpoints import connect, failure_reason, named_client

MAX_POEM_BYTES = 100 * MIB  # the default limit: a poem is held in memory whole, and a server may never stop sending


def get_poem(
    server: str | int | IStreamClientEndpoint,
    *,
    address: str | None = None,
    timeout_s: float | None = None,
    connect_timeout_s: float | None = None,
    max_bytes: int = MAX_POEM_BYTES,
    progressed: Callable[[int], None] | None = None,
    reactor: Any = None,
) -> Deferred[bytes]:
    """Get a poem from a server.

    Args:
        server: ``HOST:PORT``, a port on 127.0.0.1, a Twisted client endpoint string, or any Twisted client endpoint.
        address: the server's name in messages; by default, as given in ``server``.
        timeout_s: how long all of it may take, whether bytes arrive or not.
        connect_timeout_s: how long connecting may take.
        max_bytes: the longest poem to accept.
        progressed: is called with the number of bytes so far, first with 0 once there is a connection.
        reactor: the reactor; the global one if None.

    Returns:
        A Deferred of the whole poem, never of a part. It fails with ``ConnectionFailed``, ``ConnectionLost`` (also
        if the server closes without a byte), ``TransformTimeout``, ``TooLarge``, or ``Cancelled``; each message names
        the server. It fails with ``ConfigError`` if the address is invalid, and with ``ValueError`` if a timeout is not
        a number of seconds above 0. Cancelling it closes the connection.
    """
    if reactor is None:
        from twisted.internet import reactor
    try:
        for seconds in (timeout_s, connect_timeout_s):
            if seconds is not None and not 0 < seconds < math.inf:
                raise ValueError(f"a timeout must be a number of seconds above 0, not {seconds!r}")
        endpoint, name = find_server(reactor, server, address)
    except Exception:
        return fail()
    reader = PoemReader(name, max_bytes, progressed or (lambda _: None))
    connecting: Deferred[Any] = connect(endpoint, reader)
    if connect_timeout_s is not None:
        _limit(connecting, connect_timeout_s, reactor, f"no connection to {name} within {connect_timeout_s:g} s")
    poem = Deferred.fromCoroutine(_read(connecting, reader, name))
    if timeout_s is not None:
        _limit(poem, timeout_s, reactor, f"no whole poem from {name} within {timeout_s:g} s")
    return poem


def find_server(
    reactor: Any, server: str | int | IStreamClientEndpoint, address: str | None
) -> tuple[IStreamClientEndpoint, str]:
    """Return a poem server's endpoint, and its name in messages; raise ``ConfigError`` if the address is invalid."""
    return named_client(reactor, server, address, DEFAULT_POEM_PORT, 30, unnamed="the poem server")


async def _read(connecting: Deferred[Any], reader: "PoemReader", name: str) -> bytes:
    try:
        await connecting
        return await reader.poem
    except CancelledError:
        raise RequestCancelled(f"the download from {name} was cancelled") from None
    except XformError:
        raise
    except Exception:  # each kind of endpoint fails as it likes
        error = connection_failed(name, Failure(), "a poem server")
        raise error from error.__cause__


def _limit(work: Deferred[Any], timeout_s: float, clock: Any, message: str) -> None:
    def expired(*_: object) -> NoReturn:
        raise TransformTimeout(message)

    if not work.called:
        work.addTimeout(timeout_s, clock, onTimeoutCancel=expired)


class PoemReader(Protocol):
    """One connection to a poem server. ``poem`` fires with the whole poem; cancelling it closes the connection."""

    transport: Any

    def __init__(self, address: str, max_bytes: int, progressed: Callable[[int], None]) -> None:
        self.poem: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())
        self._address = address
        self._max_bytes = max_bytes
        self._progressed = progressed
        self._poem = io.BytesIO()  # one that grows: in a list, segments of two bytes would cost thirty times as much

    def connectionMade(self) -> None:
        """Report that there is a connection, and wait: the server speaks first."""
        self._progressed(0)

    def dataReceived(self, data: bytes) -> None:
        """Collect the poem."""
        if self.poem.called:
            return
        if self._poem.tell() + len(data) > self._max_bytes:
            self._settle(Failure(TooLarge(f"{self._address} sends more than {self._max_bytes} bytes")))
            self.transport.abortConnection()
            return
        self._poem.write(data)
        self._progressed(self._poem.tell())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Treat a clean close as the end of the poem, and any other end as a failure."""
        if not reason.check(ConnectionDone):
            how = failure_reason(reason)
            lost = ConnectionLost(f"{self._address} is gone ({how}) after {self._poem.tell()} bytes: no whole poem")
            lost.__cause__ = reason.value
            self._settle(Failure(lost))
        elif not self._poem.tell():
            self._settle(Failure(ConnectionLost(f"{self._address} closed without sending anything: no poem")))
        else:
            self._settle(self._poem.getvalue())

    def _settle(self, outcome: bytes | Failure) -> None:
        if not self.poem.called:
            self.poem.callback(outcome)
