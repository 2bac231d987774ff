"""Poems from several servers, all at once: each through a transform as it arrives, delivered as soon as it is whole.

The law: one that fails never stops the rest, and where the transform fails the original takes its place.
"""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.python.failure import Failure

from xformd.client.files import WRITE_FAILED
from xformd.errors import XformError

SOME_CAME = 1


@attrs.frozen
class Arrival:
    """What became of one server's poem.

    Args:
        address: of the server.
        poem: what to deliver; None if nothing came.
        reason: why there is none, or why it is the original; empty if all went well.
        status: with which a command would end that wanted this poem alone.
    """

    address: str
    poem: bytes | None = None
    reason: str = ""
    status: int = 0

    @classmethod
    def failed(cls, address: str, poem: bytes | None, error: XformError) -> "Arrival":
        """Say why a poem did not come, or was not transformed."""
        return cls(address, poem, f"{error.code}: {error.message}", error.exit_status)


def exit_status(arrivals: Sequence[Arrival]) -> int:
    """Say how it went: 0 if all came, 1 if some did, the first failure's own status if none did.

    A poem that came and was not transformed came, and was not all that was asked for.
    """
    if not any(arrival.reason for arrival in arrivals):
        return 0
    if any(arrival.poem is not None for arrival in arrivals):
        return SOME_CAME
    return next(arrival.status for arrival in arrivals)


class Watcher(Protocol):
    """Is told how each poem gets on; it may show it."""

    def says(self, address: str, state: str) -> None:
        """Note a poem's state."""
        ...


@attrs.frozen(kw_only=True)
class Gathering:
    """What to do with several servers.

    Args:
        fetch: gets the poem of an address.
        transform: gives the result for a poem, or raises an ``XformError``; None to leave poems as they are.
        transform_name: how a person calls the transform.
        deliver: takes an address, its poem, whole or not at all, and what to say first of it, if there is anything.
            May raise ``OSError``.
        complain: is told, on one line, of what did not come.
        watcher: is told how each poem gets on.
        ordered: whether poems are delivered in the order of the addresses, not in that of their arrival.
    """

    fetch: Callable[[str], Awaitable[bytes]]
    transform: Callable[[bytes], Awaitable[bytes]] | None
    transform_name: str
    deliver: Callable[[str, bytes, str], Awaitable[None]]
    complain: Callable[[str], None]
    watcher: Watcher
    ordered: bool = False

    async def run(self, addresses: Sequence[str]) -> int:
        """Get every poem, and deliver it.

        Args:
            addresses: of the servers.

        Returns:
            The exit status (``exit_status``).
        """
        name_it = len(addresses) > 1
        return exit_status([await self._deliver(arrival, name_it) async for arrival in self._arrivals(addresses)])

    async def _arrivals(self, addresses: Sequence[str]) -> AsyncIterator[Arrival]:
        started = [Deferred.fromCoroutine(self._get(address)) for address in addresses]
        if self.ordered:
            for arriving in started:
                yield await arriving
            return
        queue: DeferredQueue[tuple[Arrival | Failure]] = DeferredQueue()  # which cannot hand on a Failure by itself
        for arriving in started:
            arriving.addBoth(lambda outcome: queue.put((outcome,)))
        for _ in started:
            (arrival,) = await queue.get()
            if isinstance(arrival, Failure):
                arrival.raiseException()
            yield arrival

    async def _get(self, address: str) -> Arrival:
        tell = functools.partial(self.watcher.says, address)
        tell("connecting")
        try:
            poem = await self.fetch(address)
        except XformError as error:
            tell(f"failed: {error.code}")
            return Arrival.failed(address, None, error)
        if self.transform is None:
            tell(f"{len(poem):,} bytes, whole")
            return Arrival(address, poem)
        tell(f"{len(poem):,} bytes, {self.transform_name} is at work")
        try:
            result = await self.transform(poem)
        except XformError as error:
            tell(f"{len(poem):,} bytes, {self.transform_name} failed")
            return Arrival.failed(address, poem, error)
        tell(f"{len(poem):,} bytes, {len(result):,} after {self.transform_name}")
        return Arrival(address, result)

    async def _deliver(self, arrival: Arrival, name_it: bool) -> Arrival:
        if arrival.poem is None:
            self.complain(arrival.reason)
            return arrival
        warning = ""
        if arrival.reason:
            whose = f" (the poem of {arrival.address})" if name_it else ""
            warning = f"{self.transform_name} failed: {arrival.reason}{whose}; original poem follows"
        try:
            await self.deliver(arrival.address, arrival.poem, warning)
        except BrokenPipeError:
            raise  # nobody reads any more: there is no rest to go on with
        except OSError as error:
            reason = f"cannot write the poem of {arrival.address}: {error.strerror or error}"
            self.complain(reason)
            return Arrival(arrival.address, None, reason, WRITE_FAILED)
        return arrival
