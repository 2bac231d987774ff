"""What the upstreams have: whose results may be cached, and which code they come from.

Invariant: a result is cached only where every upstream that has the transform says that it is deterministic and comes
from the same version of the same distribution.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.client import TransformProxy
from xformd.errors import Unauthorized, XformError
from xformd.plugins.listing import fingerprint, public
from xformd.spec import Spec

LIST_TIMEOUT_S = 5.0  # an upstream that has not answered by then counts as one that failed, and is asked again
LEAST_GAP_S = 1.0  # between two requests for a list: unknown transforms and failing upstreams cause no flood
LONGEST_DELAY_S = 1.0  # the longest wait before another attempt to connect: clients are waiting

Listing = Mapping[str, Any]
"""What a server answers to ``!list``."""


@attrs.frozen
class Origin:
    """The code that a result comes from: a distribution and its version."""

    distribution: str
    version: str


class Catalog:
    """The latest listing of each upstream."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._origins: dict[str, Origin] = {}  # of the transforms whose results may be cached

    def learn(self, upstream: str, listing: Listing) -> None:
        """Record an upstream's answer to ``!list``."""
        self._listings[upstream] = public(listing)
        self._origins = agreed(self._listings.values())

    def forget(self, upstream: str) -> None:
        """Forget what an upstream has told: it does not know this proxy any more."""
        self._listings.pop(upstream, None)
        self._origins = agreed(self._listings.values())

    def origins(self, spec: Spec) -> tuple[Origin, ...] | None:
        """Return where a spec's transforms come from; None where its results must not be cached."""
        found = [self._origins.get(step.name) for step in spec.steps]
        known = tuple(origin for origin in found if origin is not None)
        return known if len(known) == len(found) else None

    def listing(self, upstream: str) -> Listing | None:
        """Return what an upstream has listed last."""
        return self._listings.get(upstream)

    @property
    def fingerprints(self) -> int:
        """How many different sets of transforms the upstreams offer."""
        return len({fingerprint(each["transforms"]) for each in self._listings.values()})

    def versions(self, spec: Spec) -> str | None:
        """Return what a reply has to say of its versions to be cached; None where it must not be."""
        if (origins := self.origins(spec)) is None:
            return None
        return "+".join(f"{step.name}/{each.version}" for step, each in zip(spec.steps, origins, strict=True))

    def describe(self) -> dict[str, Any]:
        """Return the listings merged; of what several upstreams have, the first one's description is shown."""
        transforms = sorted(self._merge("transforms", "name"), key=lambda each: str(each["name"]))
        return {
            "fingerprint": fingerprint(transforms),
            "transforms": transforms,
            "plugins": self._merge("plugins", "name", "distribution", "version", "state"),
            "conflicts": self._merge("conflicts", "name"),
            "upstreams": {"listed": len(self._listings), "fingerprints": self.fingerprints},
        }

    def _merge(self, part: str, *identity: str) -> list[Any]:
        found: dict[tuple[object, ...], Any] = {}
        for listing in self._listings.values():
            for each in listing[part]:
                found.setdefault(tuple(str(each.get(key)) for key in identity), each)
        return [*found.values()]


@attrs.define(eq=False, slots=False)
class CatalogPoller:
    """Keeps a catalog up to date: asks each upstream at the start, then periodically, and sooner on ``look_soon``.

    ``refresh_s`` is the time from an answer to the next question; after a failure it is at most a second. ``changed``
    is called after each answer: what was derived from the catalog may be out of date.
    """

    log = Logger()

    _upstreams: Sequence[str]
    _catalog: Catalog
    _refresh_s: float
    _changed: Callable[[], None]
    _reactor: Any
    _client: Mapping[str, Any]  # more for ``TransformProxy``

    def __attrs_post_init__(self) -> None:
        self._proxies = {
            address: TransformProxy(address, reactor=self._reactor, longest_delay_s=LONGEST_DELAY_S, **self._client)
            for address in self._upstreams
        }
        self._next: dict[str, IDelayedCall] = {}
        self._silent: set[str] = set()
        self._is_stopped = False

    def start(self) -> Deferred[Any]:
        """Start polling; fires when each upstream has answered or failed once."""
        return DeferredList([self._poll(address) for address in self._proxies])

    def look_soon(self) -> None:
        """Poll every upstream within a second."""
        for call in self._next.values():
            if call.active() and call.getTime() - self._reactor.seconds() > LEAST_GAP_S:
                call.reset(LEAST_GAP_S)

    def stop(self) -> Deferred[Any]:
        """Stop polling; fires when the connections are closed."""
        self._is_stopped = True
        for call in self._next.values():
            if call.active():
                call.cancel()
        return DeferredList([proxy.close() for proxy in self._proxies.values()], consumeErrors=True)

    def _poll(self, address: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._ask(address)).addBoth(self._schedule, address)

    async def _ask(self, address: str) -> None:
        try:
            listing = await self._proxies[address].list_transforms(timeout=LIST_TIMEOUT_S)
        except XformError as error:
            self._note_silent(address, error.message)
            if isinstance(error, Unauthorized):
                self._catalog.forget(address)
                self._changed()
            return
        self._catalog.learn(address, listing)
        if address in self._silent:
            self._silent.discard(address)
            self.log.info("{upstream} lists its transforms again", upstream=address)
        self._changed()

    def _note_silent(self, address: str, reason: str) -> None:
        if address not in self._silent and not self._is_stopped:
            self._silent.add(address)
            self.log.warn("{upstream} does not list its transforms: {reason}", upstream=address, reason=reason)

    def _schedule(self, outcome: Failure | None, address: str) -> None:
        if isinstance(outcome, Failure):  # a defect in here must not end the polling
            self.log.failure("cannot tell what {upstream} has", outcome, upstream=address)
        if not self._is_stopped:
            # An upstream that was down may come back upgraded, and until it has listed what it has, nothing is cached.
            pause_s = min(LEAST_GAP_S, self._refresh_s) if address in self._silent else self._refresh_s
            self._next[address] = self._reactor.callLater(pause_s, functools.partial(self._poll, address))


def agreed(listings: Iterable[Listing]) -> dict[str, Origin]:
    """Return the transforms whose results may be cached, with their origin.

    Those are deterministic, and of one version of one distribution at every upstream that has them. A loose file has no
    version: nobody would notice that it has changed.
    """
    origins: dict[str, set[Origin | None]] = {}
    for listing in listings:
        for described in listing["transforms"]:
            origins.setdefault(str(described["name"]), set()).add(_origin(described))
    return {name: origin for name, (origin, *others) in origins.items() if origin is not None and not others}


def _origin(described: Mapping[str, Any]) -> Origin | None:
    if described.get("deterministic") is not True or not described["version"]:
        return None
    return Origin(described["distribution"], described["version"])
