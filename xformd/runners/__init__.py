"""Where transforms run: in the reactor or in worker processes. Nothing above this package knows which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

from xformd.runners.calls import Call
from xformd.telemetry.timing import RequestTiming

if TYPE_CHECKING:  # a worker imports this package too, and needs no Twisted
    from twisted.internet.defer import Deferred


class Caller(Protocol):
    """A client connection that sends several requests at once."""

    @property
    def takes_results(self) -> bool:
        """Whether it has room for another result. When it has room again, it calls ``Service.caller_has_room``."""


class Runner(Protocol):
    """A place where transforms run."""

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,
        caller: Caller | None = None,
        *,
        is_admitted: bool = False,
        timing: RequestTiming | None = None,
    ) -> Union[bytes, "Deferred[bytes]"]:
        """Run a poem through one transform after the other.

        Args:
            calls: the transforms with their options, in order.
            poem: the poem, undecoded.
            caller: a queued call does not start while its caller has no room for a result.
            is_admitted: whether an earlier part of the request has run already: then it cannot be busy any more.
            timing: measures its waiting and running; None if the request is not timed.

        Returns:
            The result, or a Deferred of it. Cancelling the Deferred ends the work.

        Raises:
            XformError: and nothing else, also as the failure of the Deferred.
        """

    def caller_has_room(self, caller: Caller) -> None:
        """Start what waited for room."""
