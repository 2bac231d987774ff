"""What a dialect and its connection need of each other.

A handler speaks one dialect from its first byte to its last. Invariant: the connection alone owns the transport and the
deadlines.
"""

from collections.abc import Callable
from typing import Protocol

from xformd.errors import XformError
from xformd.limits import Limits
from xformd.service import Service
from xformd.telemetry.access_log import AccessEntry


class Connection(Protocol):
    """What a handler needs of its connection."""

    @property
    def service(self) -> Service:
        """Answers the requests."""

    @property
    def limits(self) -> Limits:
        """What the peer may do."""

    @property
    def peer(self) -> str | None:
        """IP address of the peer; None where it has none, or a PROXY header does not name it."""

    @property
    def share(self) -> str:
        """Whose part of the server its requests take."""

    @property
    def is_trusted(self) -> bool:
        """Whether the peer is a proxy that may say for whom it asks."""

    @property
    def unread_bytes(self) -> int:
        """How much output waits for the peer to read it."""

    def write(self, data: bytes) -> None:
        """Send, or keep until the peer has read what was sent before."""

    def finish(self, data: bytes) -> None:
        """Send the last data, then close."""

    def close(self) -> None:
        """Send what is left, then close; what else arrives is dropped."""

    def abort(self) -> None:
        """Close now, whatever is unsent."""

    def has_input(self) -> bool:
        """Return whether something has arrived that has not been read yet."""

    def pause_reading(self) -> None:
        """Read no more, so that TCP slows the peer down."""

    def resume_reading(self) -> None:
        """Read again."""

    def set_deadline(self, seconds: float | None) -> None:
        """Call the handler's ``expire`` after this many seconds, unless it is set again; None clears it."""

    def hint_read_size(self, count: int) -> None:
        """Read more at a time while single strings are as long as this one, where the transport can."""

    def note_arrival(self, count: int, share: str | None = None) -> None:
        """Note how long the request is that arrives, 0 once it is here; ``share`` is the connection's if not given.

        Where others need the room of a long one, the handler's ``reject`` is called.
        """

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call a function after the other connections' turn, unless this one is lost by then."""

    def begin_entry(self, request_id: str | None = None, session_id: int | None = None) -> AccessEntry | None:
        """Begin a request's entry in the access log, if there is one."""

    def count_refusal(self, code: str, entry: AccessEntry | None = None) -> None:
        """Count a request that never reached the service, and finish its entry."""

    def log_refusal(self, error: XformError, client: str | None = None) -> None:
        """Log why a peer was refused, or the client that it stands for."""


class ConnectionHandler(Protocol):
    """What a connection needs of its handler."""

    def receive(self, data: bytes) -> None:
        """Handle what has arrived."""

    def receive_end(self) -> None:
        """Note that the peer will send nothing more."""

    def output_drained(self) -> None:
        """Note that the peer has read everything."""

    def reject(self, error: XformError) -> None:
        """Answer what arrives with an error, then close."""

    def expire(self) -> bool:
        """Close in good order because the deadline has passed; return False to have the connection aborted."""

    def stop(self) -> None:
        """Answer what has been accepted, then close, because the server stops."""

    def lost(self) -> None:
        """Cancel what runs, because the connection is lost."""
