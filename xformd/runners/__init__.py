"""Where transforms run: in the reactor or in worker processes. Nothing above this package knows which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

import attrs

from xformd.runners.calls import Call
from xformd.telemetry.timing import RequestTiming

if TYPE_CHECKING:  # a worker imports this package too, and needs no Twisted
    from twisted.internet.defer import Deferred


class Reader(Protocol):
    """What gets several results: a session, or a batch of lines."""

    @property
    def takes_results(self) -> bool:
        """Whether it has room for another result. When it has room again, it calls ``Service.has_room``."""


@attrs.frozen
class Caller:
    """Whom a request is for.

    Args:
        share: whose part of the server it takes: that of its peer, or of whoever a trusted proxy names.
        reader: gets the result, and others; None for a request on its own, for whose result there is always room.
    """

    share: str = ""
    reader: Reader | None = None


PROGRAM = Caller()
"""What a program asks of its own service."""


class Runner(Protocol):
    """A place where transforms run."""

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,
        caller: Caller = PROGRAM,
        *,
        is_admitted: bool = False,
        timing: RequestTiming | None = None,
    ) -> Union[bytes, "Deferred[bytes]"]:
        """Run a poem through one transform after the other.

        Args:
            calls: the transforms with their options, in order.
            poem: the poem, undecoded.
            caller: whose turn it has to be; a queued call does not start while its reader has no room for a result.
            is_admitted: whether an earlier part of the request has run already: then it cannot be busy any more.
            timing: measures its waiting and running; None if the request is not timed.

        Returns:
            The result, or a Deferred of it. Cancelling the Deferred ends the work.

        Raises:
            XformError: and nothing else, also as the failure of the Deferred.
        """

    def has_room(self, reader: Reader) -> None:
        """Start what waited for room."""
