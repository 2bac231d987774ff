"""What only a client can meet."""

import copy
import os

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from xformd.errors import Cancelled, XformError


class RequestCancelled(Cancelled, CancelledError):
    """The caller cancelled the Deferred: Twisted's own error, and one of ours."""


class NotSent(Exception):
    """The server is known not to have run the request, so that it may be sent elsewhere.

    Args:
        error: what the caller is told if there is no elsewhere.
        may_reconnect: whether a new connection to the same server is worth a try.
    """

    def __init__(self, error: XformError, *, may_reconnect: bool = False) -> None:
        super().__init__(str(error))
        self.may_reconnect = may_reconnect
        self.error = copy.copy(error)  # each caller gets one of its own, which carries its own poem


def why(failure: Failure) -> str:
    """Say what happened to a connection, in the system's words."""
    error = failure.value
    number = getattr(error, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(error) or type(error).__name__
