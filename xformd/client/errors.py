"""What only a client can meet."""

import copy

from twisted.internet.defer import CancelledError

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
