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
    """Whom a request is for."""

    share: str = ""  # whose part of the server it takes: its peer's, or that of whoever a trusted proxy names
    reader: Reader | None = None  # gets the result, and others; None for a single one, for which there is room


PROGRAM = Caller()
"""What a program asks of its own service."""


class Runner(Protocol):
    """A place where transforms run."""

    def run(
        self,
        calls: Sequence[Call],
        poem: bytes,  # undecoded
        caller: Caller = PROGRAM,  # whose turn it has to be; nothing starts while its reader has no room for a result
        *,
        is_admitted: bool = False,  # an earlier part of the request has run already: it cannot be busy any more
        timing: RequestTiming | None = None,  # measures its waiting and running
        timeout_s: float | None = None,  # how long anybody waits for it; None for the server's limit
    ) -> Union[bytes, "Deferred[bytes]"]:
        """Run a poem through one transform after the other.

        Cancelling a Deferred ends the work. What is raised, also by the Deferred, is an ``XformError``.
        """

    def has_room(self, reader: Reader) -> None:
        """Start what waited for room."""


class Workers(Runner, Protocol):
    """Worker processes, of which ``size`` run at a time."""

    size: int
