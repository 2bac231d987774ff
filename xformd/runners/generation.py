"""One generation of plugins: a Registry, the runners that go with it, and the requests that it still has to answer.

A reload makes a new one. What an old one has begun, it ends.
"""

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from xformd.plugins import listing
from xformd.plugins.definition import Transform
from xformd.plugins.registry import Registry
from xformd.runners import Caller, Runner
from xformd.runners.calls import Call, prepare
from xformd.runners.inline import InlineRunner, Outcome, Run
from xformd.runners.placement import Placement
from xformd.runners.quarantine import Quarantine
from xformd.spec import SHORT_CHARACTERS, Spec
from xformd.telemetry.metrics import BatchedCounts

MAX_PLANS = 1_024
"""How many specs are remembered with their transforms and options."""


@attrs.frozen
class Stage:
    """One step in the reactor, or neighbouring steps in one worker."""

    runner: Runner
    calls: tuple[Call, ...]


@attrs.frozen(eq=False)
class PreparedCall:
    """A request's words, looked up and converted: one transform that runs at once.

    Args:
        run: gives it a poem; whatever comes of that is for ``finish_call``, unless it is bytes of a fair length.
        finish_call: takes what ``run`` gave, or the failure with what it raised. It does what ``xform`` does then.
        on_slow_call: is to be told when it has run for more than ``SLOW_CALL_S``, and for how many seconds.
        name: the transform's.
        batched_counts: takes down what it runs, and how long that takes; None where nobody counts.
        counted: the same with a tally, by whose it is.
    """

    run: Run
    finish_call: Callable[[Outcome], bytes | Deferred[bytes]]
    on_slow_call: Callable[[float], None]
    name: str = ""
    batched_counts: BatchedCounts | None = None
    counted: dict[object, "PreparedCall"] = attrs.field(factory=dict)


class Generation:
    """What can be run, and what is running.

    Args:
        registry: which transforms there are. It never changes.
        inline: runs what belongs into the reactor.
        workers: runs the rest; None where the reactor runs all.
        placement: what the operator overrules.
        quarantine: which transforms may not run for a while.
    """

    def __init__(
        self,
        registry: Registry,
        inline: InlineRunner,
        workers: Runner | None = None,
        placement: Placement | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.registry = registry
        self._quarantine = quarantine or Quarantine()
        self.inline = inline
        self.ready: dict[bytes, PreparedCall | None] = {}
        """What ``TransformService.ready`` has found out, by the words of a request."""
        self._listing: tuple[frozenset[str], bytes] | None = None  # who was in quarantine then, and what was told
        self._workers = workers
        self._placement = placement or Placement()
        self._plans: dict[Spec, list[Stage]] = {}
        self._in_flight: dict[Deferred[Any], None] = {}  # in the order in which they came
        self._finished: Deferred[None] | None = None

    def plan(self, spec: Spec) -> list[Stage]:
        """Look up a spec's transforms and convert its options, once for as many requests as come.

        Args:
            spec: of a request.

        Returns:
            What to run, in turn; at least one stage.

        Raises:
            XformError: the spec means nothing here.
        """
        return self._plans.get(spec) or self._make_plan(spec)

    def describe(self) -> dict[str, Any]:
        """Give what ``xformd list-transforms --json`` prints."""
        return listing.to_json(self.registry, self._quarantine.names)

    def listing(self) -> bytes:
        """Give the same, as JSON: made once for as many as ask until something changes."""
        quarantined = self._quarantine.names
        if self._listing is None or self._listing[0] != quarantined:
            self._listing = (quarantined, json.dumps(self.describe()).encode())
        return self._listing[1]

    @functools.cached_property
    def needs_workers(self) -> bool:
        """Whether some of its transforms run in workers."""
        return any(self._is_isolated(entry.transform) for entry in self.registry.entries.values())

    @property
    def in_flight(self) -> int:
        """How many requests wait for something."""
        return len(self._in_flight)

    @property
    def quarantined(self) -> frozenset[str]:
        """Which transforms are in quarantine."""
        return self._quarantine.names

    def caller_has_room(self, caller: Caller) -> None:
        """Go on with work that waited until its caller had room for a result."""
        if self._workers is not None:
            self._workers.caller_has_room(caller)

    def note(self, request: Deferred[bytes]) -> None:
        """Remember a request until it has its outcome."""
        self._in_flight[request] = None
        request.addBoth(self._forget, request)

    def finished(self) -> Deferred[None]:
        """Give a Deferred that fires when no request is in flight. Nothing is noted any more once this is called."""
        self._finished = Deferred()
        self._check_finished()
        return self._finished

    def cancel_all(self) -> None:
        """Give up every request in flight; the last comes first, lest it begins when one before it ends."""
        for request in [*reversed(self._in_flight)]:
            request.cancel()

    def _make_plan(self, spec: Spec) -> list[Stage]:
        calls = [prepare(step, self.registry) for step in spec.steps]
        stages: list[Stage] = []
        for workers, group in itertools.groupby(calls, self._workers_for):
            if workers is None:
                stages.extend(Stage(self.inline, (call,)) for call in group)
            else:
                stages.append(Stage(workers, tuple(group)))
        if len(str(spec)) <= SHORT_CHARACTERS:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[spec] = stages
        return stages

    def _workers_for(self, call: Call) -> Runner | None:
        return self._workers if self._is_isolated(call.entry.transform) else None

    def _is_isolated(self, transform: Transform) -> bool:
        return self._workers is not None and self._placement.is_isolated(transform)

    def _forget(self, outcome: Any, request: Deferred[bytes]) -> Any:
        self._in_flight.pop(request, None)
        self._check_finished()
        return outcome

    def _check_finished(self) -> None:
        if self._finished is not None and not self._in_flight and not self._finished.called:
            self._finished.callback(None)
