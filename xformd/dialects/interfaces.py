"""How a connection is spoken on: the two forms of the protocol, each from its first string to its last byte.

A form says what happens; the connection under it owns the transport and the deadlines.
"""

from collections.abc import Callable
from typing import Protocol

from xformd.errors import XformError
from xformd.limits import Limits
from xformd.service import Service


class Connection(Protocol):
    """What a form needs of its connection."""

    @property
    def service(self) -> Service:
        """What answers requests."""
        ...

    @property
    def limits(self) -> Limits:
        """What the peer may do."""
        ...

    @property
    def unread_bytes(self) -> int:
        """How much output waits for the peer."""
        ...

    def write(self, data: bytes) -> None:
        """Send."""
        ...

    def finish(self, data: bytes) -> None:
        """Send the last there is, then close."""
        ...

    def close(self) -> None:
        """Send what is left, then close; the peer may finish what it is sending."""
        ...

    def abort(self) -> None:
        """Close now, whatever is on its way."""
        ...

    def has_input(self) -> bool:
        """Whether something has arrived that has not been read yet."""
        ...

    def pause_reading(self) -> None:
        """Let the peer wait."""
        ...

    def resume_reading(self) -> None:
        """Let the peer go on."""
        ...

    def set_deadline(self, seconds: float | None) -> None:
        """Abort the connection unless something else is expected within so many seconds; None expects nothing."""
        ...

    def hint_read_size(self, count: int) -> None:
        """Be told how long the string is that is being read, or the last one: the next may be as long."""
        ...

    def call_soon(self, go_on: Callable[[], None]) -> None:
        """Call this in the reactor's next turn, after everybody else's, unless the connection is gone by then."""
        ...

    def count_refusal(self, error: XformError) -> None:
        """Count a request that never reached the service."""
        ...

    def log_refusal(self, error: XformError) -> None:
        """Tell the operator why a peer was refused."""
        ...


class ConnectionHandler(Protocol):
    """What a connection needs of its form."""

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        ...

    def receive_end(self) -> None:
        """Note that the peer will send nothing more."""
        ...

    def output_drained(self) -> None:
        """Note that the peer has taken everything."""
        ...

    def expire(self) -> bool:
        """What was expected has not come in its time: end in good order, or say that this must be cut off."""
        ...

    def stop(self) -> None:
        """The server is stopping: answer what has been accepted, then close."""
        ...

    def lost(self) -> None:
        """The connection is gone: give up what runs for it."""
        ...
