"""Where a transform runs: in the reactor, or in a worker process. One seam, and nobody above it knows which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

from xformd.runners.calls import Call
from xformd.telemetry.timing import RequestTiming

if TYPE_CHECKING:  # a worker imports this package too, and needs no Twisted
    from twisted.internet.defer import Deferred


class Caller(Protocol):
    """Somebody who asks for several things at once."""

    @property
    def takes_results(self) -> bool:
        """Whether there is room for another result; ``TransformService.caller_has_room`` tells when there is again."""
        ...


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
        """Give a poem to one transform after the other.

        Args:
            calls: the transforms with their options, in turn.
            poem: the poem, as it came.
            caller: who asks; work that waits does not begin while its caller has no room for a result.
            is_admitted: whether a part of the same request has run already, so that it is too late to be busy.
            timing: takes the time that it waits and runs, where somebody wants to know.

        Returns:
            The result, or a Deferred of it. Cancelling the Deferred ends the work.

        Raises:
            XformError: and nothing else. From a Deferred the same come as failures.
        """
        ...

    def caller_has_room(self, caller: Caller) -> None:
        """Begin what waits for this."""
        ...
