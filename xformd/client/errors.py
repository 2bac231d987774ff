"""Errors that only a client meets."""

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from xformd import errors
from xformd.errors import Cancelled
from xformd.net.endpoints import failure_reason
from xformd.net.tls import TlsFailed
from xformd.wire.client import NotSent as NotSent


class RequestCancelled(Cancelled, CancelledError):
    """The caller cancelled the Deferred: both Twisted's error and one of ours."""


class ConnectionFailed(errors.ConnectionFailed, ConnectError):
    """There is no connection: both Twisted's error and one of ours. ``__cause__`` is what the endpoint raised."""

    osError: int | None = None
    __str__ = Exception.__str__


def connection_failed(address: str, failure: Failure, server: str = "'xformd serve'") -> ConnectionFailed:
    """Return the error for a failure of an endpoint; ``server`` is what should run there."""
    advice = "" if failure.check(TlsFailed) else f"; is {server} running there?"  # it has its own
    error = ConnectionFailed(f"cannot connect to {address}: {failure_reason(failure)}{advice}")
    error.__cause__ = failure.value
    error.osError = getattr(failure.value, "osError", None)
    return error


def why_lost(failure: Failure) -> str:
    """Return why a connection was lost, if it was neither closed nor broken off."""
    return "" if failure.check(ConnectionDone, ConnectionLost, ConnectionAborted) else failure_reason(failure)
