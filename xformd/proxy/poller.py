"""Asks the upstreams what they have: at the start, every so often, and when an answer makes one wonder."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.client import TransformProxy
from xformd.errors import XformError
from xformd.proxy.catalog import Catalog

LIST_TIMEOUT_S = 5.0
"""Whoever does not say by then what it has, is asked again."""

LEAST_GAP_S = 1.0
"""Clients that ask for what is not there, and upstreams that do not say it, must not keep anybody busy with lists."""


class CatalogPoller:
    """Keeps a catalogue up to date.

    Args:
        upstreams: their addresses.
        catalog: what to keep up to date.
        refresh_s: how many seconds after an answer to ask again; after none it is a second.
        longest_delay_s: how long to wait, at most, before another attempt to connect.
        changed: is called when results from before are not to be used any more.
        reactor: what it runs on.

    Raises:
        ConfigError: an address is none.
    """

    log = Logger()

    def __init__(
        self,
        upstreams: Sequence[str],
        catalog: Catalog,
        *,
        refresh_s: float,
        longest_delay_s: float,
        changed: Callable[[], None],
        reactor: Any,
    ) -> None:
        self._catalog = catalog
        self._refresh_s = refresh_s
        self._changed = changed
        self._reactor = reactor
        self._proxies = {
            address: TransformProxy(address, reactor=reactor, longest_delay_s=longest_delay_s) for address in upstreams
        }
        self._next: dict[str, IDelayedCall] = {}
        self._silent: set[str] = set()
        self._is_stopped = False

    def start(self) -> Deferred[Any]:
        """Begin; fires when each upstream has been asked once, whatever came of it."""
        return DeferredList([self._look(address) for address in self._proxies])

    def look_soon(self) -> None:
        """Ask again without waiting for the usual time."""
        for call in self._next.values():
            if call.active() and call.getTime() - self._reactor.seconds() > LEAST_GAP_S:
                call.reset(LEAST_GAP_S)

    def stop(self) -> Deferred[Any]:
        """Ask nothing more; fires when the connections are closed."""
        self._is_stopped = True
        for call in self._next.values():
            if call.active():
                call.cancel()
        return DeferredList([proxy.close() for proxy in self._proxies.values()], consumeErrors=True)

    def _look(self, address: str) -> Deferred[None]:
        looking = Deferred.fromCoroutine(self._ask(address))
        return looking.addBoth(self._wait, address)

    async def _ask(self, address: str) -> None:
        try:
            changed = self._catalog.learn(address, await self._proxies[address].list_transforms(timeout=LIST_TIMEOUT_S))
        except XformError as error:
            self._say_silent(address, error.message)
        except ValueError as error:
            self._say_silent(address, f"what it says is no listing: {error}")
        else:
            if address in self._silent:
                self._silent.discard(address)
                self.log.info("{upstream} says again what it has", upstream=address)
            self._note_changes(address, changed)

    def _note_changes(self, address: str, changed: frozenset[str]) -> None:
        self._changed()
        if changed:
            self.log.info(
                "{upstream} has changed: what was kept of {count} transforms is not used any more",
                upstream=address,
                count=len(changed),
            )

    def _say_silent(self, address: str, reason: str) -> None:
        if address not in self._silent and not self._is_stopped:
            self._silent.add(address)
            self.log.warn("{upstream} does not say what it has: {reason}", upstream=address, reason=reason)

    def _wait(self, outcome: Failure | None, address: str) -> None:
        if isinstance(outcome, Failure):  # a fault in here must not end the looking
            self.log.failure("cannot tell what {upstream} has", outcome, upstream=address)
        if not self._is_stopped:
            # Whoever was down may come back with something new, and until it says what it has, nothing of it is kept.
            pause_s = min(LEAST_GAP_S, self._refresh_s) if address in self._silent else self._refresh_s
            self._next[address] = self._reactor.callLater(pause_s, functools.partial(self._look, address))
