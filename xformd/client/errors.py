"""Errors that only a client meets."""

import copy

from twisted.internet.defer import CancelledError

from xformd.errors import Cancelled, XformError


class RequestCancelled(Cancelled, CancelledError):
    """The caller cancelled the Deferred: both Twisted's error and one of ours."""


class NotSent(Exception):
    """The server is known not to have run the request, so it may be sent to another server.

    Args:
        error: what the caller gets if there is no other server.
        may_reconnect: whether to try the same server again on a new connection.
    """

    def __init__(self, error: XformError, *, may_reconnect: bool = False) -> None:
        super().__init__(str(error))
        self.may_reconnect = may_reconnect
        self.error = copy.copy(error)  # each caller gets its own copy, which carries its own poem
