"""Errors that only a client meets."""

import copy

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError
from twisted.python.failure import Failure

from xformd import errors
from xformd.errors import Cancelled, XformError
from xformd.net.endpoints import failure_reason


class RequestCancelled(Cancelled, CancelledError):
    """The caller cancelled the Deferred: both Twisted's error and one of ours."""


class ConnectionFailed(errors.ConnectionFailed, ConnectError):
    """There is no connection: both Twisted's error and one of ours. ``__cause__`` is what the endpoint raised."""

    osError: int | None = None
    __str__ = Exception.__str__


def connection_failed(address: str, failure: Failure, server: str = "'xformd serve'") -> ConnectionFailed:
    """Return the error for a failure of an endpoint; ``server`` is what should run there."""
    error = ConnectionFailed(f"cannot connect to {address}: {failure_reason(failure)}; is {server} running there?")
    error.__cause__ = failure.value
    error.osError = getattr(failure.value, "osError", None)
    return error


class NotSent(Exception):
    """The server is known not to have run the request, so it may be sent to another server.

    Args:
        error: what the caller gets if there is no other server.
        may_reconnect: whether to try the same server again on a new connection.
    """

    def __init__(self, error: XformError, *, may_reconnect: bool = False) -> None:
        super().__init__(str(error))
        self.may_reconnect = may_reconnect
        self._error = error

    @property
    def error(self) -> XformError:
        """What the caller gets: a copy of its own, which carries its own poem."""
        error = copy.copy(self._error)
        error.__cause__ = self._error.__cause__
        return error
