"""What a connection calls to have a dialect spoken, and how those take turns that have many requests at hand.

A handler speaks one dialect from its first byte to its last. Invariant: the connection alone owns the transport and the
deadlines.
"""

from typing import Any

from xformd.errors import XformError
from xformd.net.turns import TURN_S
from xformd.service import Service


class ConnectionHandler:
    """Speaks a dialect on a connection, which calls it. What a dialect has no use for does nothing."""

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
        return False

    def stop(self) -> None:
        """Answer what has been accepted, then close, because the server stops."""

    def lost(self) -> None:
        """Cancel what runs, because the connection is lost."""


class TurnTaker:
    """Does its work step by step, in the turns of its share, and sends what comes of a turn together.

    Each kind of work has its ``_take_step``, its ``_has_more``, and an ``_await_more`` for when nothing can be done.
    """

    _connection: Any  # where to write; it calls back after the other connections' turn

    _takes_turns = True

    def __init__(self, service: Service, share: str) -> None:
        self._service, self._share = service, share
        self._turn_ends_s = 0.0  # by the service's stopwatch
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._is_working = False
        self._has_next_turn = False  # its turn was over, and work is left
        self._is_closed = False

    def _take_step(self) -> bool:
        """Do a part of the work; return False if nothing can be done now."""
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Return whether there is work for another turn."""
        raise NotImplementedError

    def _await_more(self) -> None:
        """See to what comes next, after each turn."""
        raise NotImplementedError

    def _work(self) -> None:
        """Take a turn, unless one is being taken or waited for, and send what comes of it."""
        if self._is_working or self._is_closed:
            return
        self._is_working = True
        if not self._has_next_turn:
            self._take_turn()
        self._is_working = False
        if not self._is_closed:
            self._flush()
        if not self._is_closed:
            self._await_more()

    def _take_turn(self) -> None:
        turns, share, stopwatch = self._service.turns, self._share, self._service.stopwatch
        began_s = stopwatch()
        ends_s = self._turn_ends_s = began_s + TURN_S
        is_over = self._takes_turns and share in turns.over
        while not is_over and self._take_step():
            is_over = stopwatch() > ends_s
        turns.used(share, stopwatch() - began_s)
        if is_over and self._has_more():
            self._has_next_turn = True
            self._connection.call_soon(self._take_next_turn)

    def _take_next_turn(self) -> None:
        self._has_next_turn = False
        self._work()

    def _send(self, data: bytes) -> None:
        self._output.append(data)
        self._output_bytes += len(data)

    def _flush(self) -> None:
        if self._output:
            data = self._output[0] if len(self._output) == 1 else b"".join(self._output)
            self._output.clear()
            self._output_bytes = 0
            self._connection.write(data)
