"""What the upstreams have: whose results may be kept, and from when on they are those of the same code. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from xformd.spec import Spec

Listing = Mapping[str, Any]
"""What a server answers to ``!list``."""


@attrs.frozen
class Origin:
    """Which code gives a result: a distribution, and its version."""

    distribution: str
    version: str


@attrs.frozen
class CacheEpoch:
    """The code behind a name since something about it has changed.

    Args:
        origin: which code.
        since: the number of the change. A version that comes back is another edition: what was kept meanwhile may be
            that of the version between.
    """

    origin: Origin
    since: int


class Catalog:
    """What each upstream has said last."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}
        self._epochs: dict[str, CacheEpoch] = {}
        self._changes = 0

    def learn(self, upstream: str, listing: object) -> frozenset[str]:
        """Take in what an upstream has.

        Args:
            upstream: its address.
            listing: what it has answered.

        Returns:
            The names whose results from before are not to be used any more.

        Raises:
            ValueError: it is no listing.
        """
        checked = check(listing)
        is_new = upstream not in self._listings
        self._listings[upstream] = checked
        self._changes += 1
        before, self._epochs = self._epochs, {}
        for name, origin in agreed(self._listings.values()).items():
            epoch = before.get(name)
            # Nobody knows what an upstream has answered before it has said for the first time what it has.
            if epoch is None or epoch.origin != origin or is_new:
                epoch = CacheEpoch(origin, self._changes)
            self._epochs[name] = epoch
        return frozenset(name for name, epoch in before.items() if self._epochs.get(name) != epoch)

    def epochs(self, spec: Spec) -> tuple[CacheEpoch, ...] | None:
        """Give the editions of a spec's transforms; None where its results are not to be kept."""
        epochs = [self._epochs.get(step.name) for step in spec.steps]
        found = tuple(epoch for epoch in epochs if epoch is not None)
        return found if len(found) == len(epochs) else None

    def describe(self) -> dict[str, list[Any]]:
        """Give the listings as one; where several upstreams have the same, the one that spoke first speaks for all."""
        return {
            "transforms": sorted(self._merge("transforms", "name"), key=lambda each: str(each["name"])),
            "plugins": self._merge("plugins", "name", "distribution", "version", "state"),
            "conflicts": self._merge("conflicts", "name"),
        }

    def _merge(self, part: str, *identity: str) -> list[Any]:
        found: dict[tuple[object, ...], Any] = {}
        for listing in self._listings.values():
            for each in listing[part]:
                found.setdefault(tuple(str(each.get(key)) for key in identity), each)
        return [*found.values()]


def agreed(listings: Iterable[Listing]) -> dict[str, Origin]:
    """Say whose results may be kept.

    Args:
        listings: of every upstream that has given one.

    Returns:
        The names that are deterministic, of one version of one distribution, wherever there is such a name. A loose
        file has no version: nobody would notice that it has changed.
    """
    origins: dict[str, set[Origin | None]] = {}
    for listing in listings:
        for described in listing["transforms"]:
            origins.setdefault(str(described["name"]), set()).add(_origin(described))
    return {name: origin for name, (origin, *others) in origins.items() if origin is not None and not others}


def check(listing: object) -> Listing:
    """See to it that a listing is one, whoever sent it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(listing, Mapping):
        raise ValueError("it is no listing")
    for part in ("transforms", "plugins", "conflicts"):
        rows = listing.get(part)
        if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) and "name" in row for row in rows):
            raise ValueError(f"its {part} are none")
    return listing


def _origin(described: Mapping[str, Any]) -> Origin | None:
    version = str(described.get("version") or "")
    if described.get("deterministic") is not True or not version:  # servers before 0.2 do not say
        return None
    return Origin(str(described.get("distribution")), version)
