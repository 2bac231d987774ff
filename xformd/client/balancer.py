"""The choice among servers: which one gets a request, which are left out, when a second one is asked too.

Pure: no I/O, and a clock that is passed in; ``python -m benchmarks.scale`` holds this code against other rules, and
``docs/balancing.md`` shows what came of it. Invariant: for what they answer, at most half of the servers are left out
at a time, and a single request decides whether one comes back.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from xformd.errors import (
    BadFrame,
    Busy,
    Cancelled,
    ConnectionFailed,
    ConnectionLost,
    InternalError,
    RequestRefused,
    ShuttingDown,
    Unavailable,
)
from xformd.net.plain import backoff_s
from xformd.spec import Spec

FAULTS = (BadFrame, Busy, ConnectionFailed, ConnectionLost, InternalError, ShuttingDown, Unavailable)
"""What says more about a server than about a request, if others answer it less often."""

HALF_LIFE_S = 10.0  # of what a server has answered
LEAST_FAULTS, FAULTY_SHARE, TIMES_OTHERS = 3.0, 0.1, 3.0
"""A server is left out after 3 faults, if they are a tenth of its answers, and 3 times the share of the others'."""

LAST_ANSWERS = 0.1  # the weight of one answer in how slow a server is
MUCH_SLOWER, NOT_SLOWER, PROBE_MAY_TAKE = 8.0, 2.0, 4.0
"""A server is left out that takes 8 times as long as is typical, if most others do not take twice as long; it comes
back once a request takes less than 4 times as long. Asking it less, for less, made half of the answers later."""
SLOW_SHARE = 0.25  # of the servers: where more are left out for that, the others get too much to do
DOUBT_FACTOR, SILENT_S = 4.0, 0.5  # a server that owes answers and sends none counts as having 4 times the requests

FIRST_REST_S, LONGEST_REST_S, FORGIVEN_S = 1.0, 30.0, 60.0
UNREPEATABLE_PROBE_S = 1.0  # before a request that cannot be repeated has to be the probe
MOST_COMPARED = 16  # comparing more servers finds no better one: python -m benchmarks.scale

RECENT, ENOUGH, SORT_EVERY = 256, 30, 16  # durations of a kind of request: kept, and needed to judge by them
MAX_KINDS = 512
WAITS_HERE_S = 0.005  # what takes longer waits in the client, not at a server whose workers are busy; a trip is shorter
HEDGED_SHARE, MAX_HEDGES_SAVED = 0.05, 10.0

Kind = tuple[str, int]
"""Requests that take about as long: the names of the transforms, and the size of the poem within a factor of 8."""


class Offer(NamedTuple):
    """What a server says of one of its transforms."""

    is_deterministic: bool
    distribution: str
    version: str
    at_once: int = 1  # in one worker; the server itself runs any number of what is inline


Offers = Mapping[str, Offer]
ANY_NUMBER = 1_000_000
ANYTHING: Offers = {}
"""What a server may have that does not list its transforms."""


def offers_of(listing: Mapping[str, Any]) -> Offers:
    """Return what a server's answer to ``!list`` offers."""
    return {
        each["name"]: Offer(each.get("deterministic") is True, each["distribution"], each["version"], _at_once(each))
        for each in listing["transforms"]
    }


def _at_once(described: Mapping[str, Any]) -> int:
    if described.get("inline") is True:
        return ANY_NUMBER
    found = described.get("concurrency") if described.get("asynchronous") is True else described.get("batch")
    return found if isinstance(found, int) and found > 0 else 1


def workers_of(listing: Mapping[str, Any]) -> int:
    """Return how many requests a server runs at a time; 0 if it does not say."""
    workers = listing.get("workers")
    return workers if isinstance(workers, int) and workers > 0 else 0


class Node:
    """What a client knows of a server at one address. A subclass says how many requests it has, in ``load``."""

    offers: Offers | None = None  # None until it has listed them
    workers = 0  # 0 if it has not said so
    answers = faults = 0.0  # lately
    noted_at = 0.0
    slowness = 0.0  # the binary logarithm of its time by the typical one
    busy_until = 0.0
    silent_since = math.inf
    left_out = 0  # how often
    is_out = is_probed = False
    out_until = 0.0

    def __init__(self) -> None:
        self.turn = random.random()  # when it was chosen last; at first, any order

    @property
    def load(self) -> int:
        """How many requests it has of this client's."""
        raise NotImplementedError

    def lacks(self, spec: Spec) -> bool:
        """Whether it is known not to have a transform of the spec."""
        if offers := self.offers:
            for step in spec.steps:  # not all(): every request asks each server
                if step.name not in offers:
                    return True
        return False

    def may_run_twice(self, spec: Spec) -> bool:
        """Whether it has said that all transforms of the spec are deterministic."""
        offers = self.offers or ANYTHING
        return all((offer := offers.get(step.name)) is not None and offer.is_deterministic for step in spec.steps)


N = TypeVar("N", bound=Node)


class Durations:
    """How long the last requests of a kind took, wherever they ran."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._since_sorted = 0
        self.median_s = self.p95_s = math.nan  # until there are enough

    def add(self, seconds: float) -> None:
        """Take one more into account."""
        self._recent.append(seconds)
        self._since_sorted += 1
        if len(self._recent) >= ENOUGH and self._since_sorted >= SORT_EVERY:
            ordered = sorted(self._recent)
            self.median_s, self.p95_s = ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]
            self._since_sorted = 0


class Balancer:
    """Chooses among ``nodes``, and learns from what they answer."""

    def __init__(self, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        self.nodes: list[Node] = []
        self._clock = clock
        self._rng = rng or random.Random()
        self._durations: dict[Kind, Durations] = {}
        self._turns = 0
        self._hedges = 0.0

    def choose(self, nodes: Sequence[N], spec: Spec, tried: Collection[Node] = ()) -> N:
        """Return the server for a request, and count it as asked.

        Of those that have the transforms, are untried and are not left out, that is the one with the fewest requests
        for its workers; where these are equal, the one that was chosen the longest time ago.
        """
        now = self._clock()
        compared = self._rng.sample(nodes, MOST_COMPARED) if len(nodes) > MOST_COMPARED else nodes
        best = min((*self._rank(node, spec, tried, now), node.turn, node) for node in compared)
        if best[0] > 0 and compared is not nodes:
            best = min((*self._rank(node, spec, tried, now), node.turn, node) for node in nodes)
        chosen = best[3]
        self._turns += 1
        chosen.turn = self._turns
        chosen.is_probed |= chosen.is_out
        if not chosen.load:
            chosen.silent_since = now
        return chosen

    def _rank(self, node: Node, spec: Spec, tried: Collection[Node], now: float) -> tuple[int, float]:
        rank = 8 * node.lacks(spec) + 4 * (node in tried) + 2 * (node.offers is None)
        if node.is_out:
            waits_s = 0.0 if node.may_run_twice(spec) else UNREPEATABLE_PROBE_S
            is_probe = not node.is_probed and node.out_until + waits_s <= now
            rank += -1 if is_probe else 1
        load = node.load
        is_doubtful = now < node.busy_until or (load and node.silent_since + SILENT_S < now)
        return rank, (load + 1) / (node.workers or 1) * (DOUBT_FACTOR if is_doubtful else 1.0)

    def has_room(self, nodes: Iterable[Node], spec: Spec, kind: Kind) -> bool:
        """Return whether a server could begin with a request at once, or this is short enough to wait there."""
        if not self._durations_of(kind).median_s >= WAITS_HERE_S:
            return True
        having = [node for node in nodes if not node.lacks(spec) and not (node.is_out and node.is_probed)]
        return not having or not all(_is_full(node, spec) for node in having)

    def note(self, node: Node, kind: Kind, seconds: float, error: Exception | None = None) -> None:
        """Learn from an answer, or from an error, that came this long after the request was sent; NaN if unknown."""
        now = self._clock()
        durations = self._durations_of(kind)
        typical_s = durations.median_s
        if not isinstance(error, Cancelled):
            node.silent_since = now
        elif not seconds > typical_s:  # given up before it could have been answered
            node.is_probed = False
            return
        is_fault = isinstance(error, FAULTS) and not isinstance(error, RequestRefused)
        fade = 0.5 ** ((now - node.noted_at) / HALF_LIFE_S)
        node.answers, node.faults, node.noted_at = node.answers * fade + 1, node.faults * fade + is_fault, now
        times = 1.0
        if not math.isnan(seconds) and (error is None or isinstance(error, Cancelled)):
            durations.add(seconds)
            times = seconds / typical_s if typical_s > 0 else 1.0
            node.slowness += LAST_ANSWERS * (math.log2(max(times, 0.01)) - node.slowness)
        elif isinstance(error, Busy | Unavailable) and error.retry_after_ms:
            node.busy_until = now + min(error.retry_after_ms / 1000, FIRST_REST_S)
        if node.is_probed:
            self._judge(node, now, has_failed=is_fault or times > PROBE_MAY_TAKE)
        elif not node.is_out and (is_fault or node.slowness > math.log2(MUCH_SLOWER)) and self._is_outlier(node):
            self._leave_out(node, now)

    def _judge(self, node: Node, now: float, *, has_failed: bool) -> None:
        """Leave a server out once more, or use it again: this was the request that decides."""
        node.is_probed = False
        if has_failed:
            self._leave_out(node, now)
        else:
            node.is_out = False
            node.answers = node.faults = node.slowness = 0.0

    def _is_outlier(self, node: Node) -> bool:
        others = [other for other in self.nodes if other is not node and not other.is_out]
        left_share = len(others) / len(self.nodes)
        if node.slowness > math.log2(MUCH_SLOWER) and left_share >= 1 - SLOW_SHARE:
            return sum(other.slowness < math.log2(NOT_SLOWER) for other in others) * 2 > len(others)
        share = sum(other.faults for other in others) / max(1.0, sum(other.answers for other in others))
        needed = FAULTY_SHARE + TIMES_OTHERS * share
        return left_share >= 0.5 and node.faults > LEAST_FAULTS - 0.5 and node.faults > needed * node.answers

    def _leave_out(self, node: Node, now: float) -> None:
        if now > node.out_until + FORGIVEN_S:
            node.left_out = 0
        node.left_out += 1
        node.is_out = True
        node.out_until = now + backoff_s(node.left_out, first_s=FIRST_REST_S, longest_s=LONGEST_REST_S)

    def may_run_twice(self, spec: Spec) -> bool:
        """Return whether all that are known to have the transforms say that they are deterministic."""
        having = [node for node in self.nodes if node.offers and not node.lacks(spec)]
        return bool(having) and all(node.may_run_twice(spec) for node in having)

    def hedge_after_s(self, kind: Kind) -> float | None:
        """Return after how long to send a request of this kind to a second server too; None for not at all."""
        self._hedges = min(MAX_HEDGES_SAVED, self._hedges + HEDGED_SHARE)
        p95_s = self._durations_of(kind).p95_s
        return None if math.isnan(p95_s) else p95_s

    def may_hedge(self) -> bool:
        """Return whether one more request may be sent twice now; then count it."""
        may = self._hedges >= 1
        self._hedges -= may
        return may

    def _durations_of(self, kind: Kind) -> Durations:
        found = self._durations.get(kind)
        if found is None:
            if len(self._durations) >= MAX_KINDS:
                self._durations.pop(next(iter(self._durations)))
            found = self._durations[kind] = Durations()
        return found


def _is_full(node: Node, spec: Spec) -> bool:
    if not 0 < node.workers <= node.load:
        return False
    offers = node.offers or ANYTHING
    at_once = min((offers[step.name].at_once for step in spec.steps if step.name in offers), default=1)
    return node.load >= node.workers * at_once


def kind_of(spec: Spec, poem_bytes: int) -> Kind:
    """Return what is known of how long a request takes by."""
    steps = spec.steps
    name = steps[0].name if len(steps) == 1 else "+".join(step.name for step in steps)
    return name, poem_bytes.bit_length() // 3
