"""What the upstreams have: whose results may be cached, and since when they come from the same code.

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
from xformd.errors import RequestRefused, TransformTimeout, Unauthorized, XformError
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


@attrs.frozen
class CacheEpoch:
    """A span of time in which a transform's results came from the same code.

    A version that comes back begins a new one: what was cached meanwhile may come from the version between.
    """

    origin: Origin
    since: int  # the number of the change that began it


class Catalog:
    """The latest listing of each upstream."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._fingerprints: dict[str, str] = {}
        self._unlisted: set[str] = set()  # they answer, but have never told what they have
        self._epochs: dict[str, CacheEpoch] = {}
        self._changes = 0

    def learn(self, upstream: str, listing: Listing) -> frozenset[str]:
        """Record an upstream's answer to ``!list``; return the transforms whose cached results are no longer valid."""
        is_new = upstream not in self._listings
        self._unlisted.discard(upstream)
        self._fingerprints[upstream] = fingerprint(listing["transforms"])
        self._listings[upstream] = public(listing)  # older servers tell why a plugin failed
        self._changes += 1
        before, self._epochs = self._epochs, {}
        for name, origin in agreed(self._listings.values()).items():
            epoch = before.get(name)
            # What an upstream answered before its first listing may have come from any version.
            if epoch is None or epoch.origin != origin or is_new:
                epoch = CacheEpoch(origin, self._changes)
            self._epochs[name] = epoch
        return frozenset(name for name, epoch in before.items() if self._epochs.get(name) != epoch)

    def note_unlisted(self, upstream: str) -> None:
        """Record that an upstream answers and does not list: its results may come from any version."""
        if upstream not in self._listings:
            self._unlisted.add(upstream)

    def forget(self, upstream: str) -> None:
        """Forget what an upstream has told, and with that its cached results: it does not know this proxy any more."""
        self.learn(upstream, {"transforms": [], "plugins": [], "conflicts": []})
        del self._listings[upstream], self._fingerprints[upstream]

    def epochs(self, spec: Spec) -> tuple[CacheEpoch, ...] | None:
        """Return the epochs of a spec's transforms; None where its results must not be cached."""
        epochs = [None if self._unlisted else self._epochs.get(step.name) for step in spec.steps]
        found = tuple(epoch for epoch in epochs if epoch is not None)
        return found if len(found) == len(epochs) else None

    def listing(self, upstream: str) -> Listing | None:
        """Return what an upstream has listed last."""
        return self._listings.get(upstream)

    @property
    def fingerprints(self) -> int:
        """How many different sets of transforms the upstreams offer."""
        return len({*self._fingerprints.values()})

    def versions(self, spec: Spec) -> str | None:
        """Return what a reply has to say of its versions to be cached; None where it must not be."""
        epochs = self.epochs(spec)
        if epochs is None:
            return None
        return "+".join(f"{step.name}/{each.origin.version}" for step, each in zip(spec.steps, epochs, strict=True))

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
        self._fingerprints = 1

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
            stale = self._catalog.learn(address, await self._proxies[address].list_transforms(timeout=LIST_TIMEOUT_S))
        except XformError as error:
            self._note_silent(address, error.message)
            if isinstance(error, Unauthorized):
                self._catalog.forget(address)
            has_answered = error.http_status is not None and not isinstance(error, TransformTimeout)
            if has_answered or isinstance(error, RequestRefused):
                self._catalog.note_unlisted(address)
                self._changed()
            return
        if address in self._silent:
            self._silent.discard(address)
            self.log.info("{upstream} lists its transforms again", upstream=address)
        self._changed()
        self._note_differences()
        if stale:
            message = "{upstream} has changed: cached results of {count} transforms are no longer used"
            self.log.info(message, upstream=address, count=len(stale))

    def _note_differences(self) -> None:
        before, self._fingerprints = self._fingerprints, self._catalog.fingerprints
        if self._fingerprints > 1 and before <= 1:
            self.log.warn("the upstreams do not all offer the same: 'xformd ping --all' says how they differ")
        elif self._fingerprints <= 1 < before:
            self.log.info("the upstreams offer the same again")

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
    if described.get("deterministic") is not True or not described["version"]:  # servers before 0.2 do not say
        return None
    return Origin(described["distribution"], described["version"])
