"""One generation of plugins: a registry, the runners of its transforms, and the requests that they have in flight.

A reload makes a new generation. Invariant: an old one finishes every request that it has begun.
"""

import functools
import itertools
import json
import uuid
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import Cancelled, InternalError, ShuttingDown, Unavailable, XformError
from xformd.plugins import listing
from xformd.plugins.registry import Registry
from xformd.runners import PROGRAM, Caller, Reader, Runner, Workers
from xformd.runners.calls import Call, check_types, prepare
from xformd.runners.groups import lane_of
from xformd.runners.inline import InlineRunner, Run
from xformd.runners.policy import LONG_POEM_BYTES, Placement, Quarantine
from xformd.runners.shares import ONE_BY_ONE
from xformd.spec import Spec, SpecCache
from xformd.telemetry.metrics import BatchedCounts
from xformd.telemetry.timing import RequestTiming
from xformd.telemetry.tracebacks import SafeTraceback

log = Logger()


@attrs.frozen
class Stage:
    """One step in the reactor, neighbouring steps in one worker, or one step that shares its worker with others'."""

    runner: Runner
    calls: tuple[Call, ...]
    long_runner: Runner  # runs them if an earlier stage has made a long poem of a short one

    def run(self, poem: bytes, caller: Caller = PROGRAM, **more: Any) -> bytes | Deferred[bytes]:
        """See ``Runner.run``."""
        runner = self.runner if len(poem) <= LONG_POEM_BYTES else self.long_runner
        return runner.run(self.calls, poem, caller, **more)


FinishCall = Callable[..., bytes | Deferred[bytes]]
"""Finishes a call whose transform has run: takes the outcome, the timing if there is one, and the ``caller``."""


@attrs.frozen(eq=False)
class PreparedCall:
    """One inline transform with its options, looked up and converted: it takes poem after poem, none of them long.

    If the result of ``run`` is ``bytes`` within the limit, it goes to the client; anything else, and the Failure of
    what it raised, goes to ``finish_call``.
    ``on_slow_call`` is called with the seconds of a run that took more than ``SLOW_CALL_S``. A
    ``CountingService`` makes copies with ``batched_counts``.
    """

    run: Run
    finish_call: FinishCall
    on_slow_call: Callable[[float], None]
    name: str = ""
    batched_counts: BatchedCounts | None = None


class RequestsInFlight:
    """The requests that wait for their results. Each ends with its result or an ``XformError``, and nothing else."""

    def __init__(self) -> None:
        self._requests: dict[Deferred[bytes], None] = {}  # in the order of arrival
        self._is_stopping = False
        self._emptied: Deferred[None] | None = None

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Deferred[bytes], timing: RequestTiming | None = None) -> Deferred[bytes]:
        """Keep a request until it ends; return it."""
        self._requests[request] = None
        return request.addBoth(self._remove, request, timing).addErrback(self._explain, timing)

    def stop(self) -> None:
        """Cancel all, newest first: cancelling an older one could let a waiting newer one start."""
        self._is_stopping = True
        for request in [*reversed(self._requests)]:
            request.cancel()

    def emptied(self) -> Deferred[None]:
        """Return a Deferred that fires when none is left. Nothing may be added any more."""
        self._emptied = Deferred()
        self._check_emptied()
        return self._emptied

    def _remove(
        self, outcome: bytes | Failure, request: Deferred[bytes], timing: RequestTiming | None
    ) -> bytes | Failure:
        self._requests.pop(request, None)
        self._check_emptied()
        if timing is not None:  # a request that is given up ends before its work does
            timing.ends()
        return outcome

    def _check_emptied(self) -> None:
        if self._emptied is not None and not self._requests and not self._emptied.called:
            self._emptied.callback(None)

    def _explain(self, failure: Failure, timing: RequestTiming | None) -> Failure:
        if self._is_stopping and failure.check(Cancelled):
            return Failure(ShuttingDown.interrupted())  # no retry-after: it may have begun
        if isinstance(failure.value, XformError):
            return failure
        return Failure(internal_error(failure, timing))


def internal_error(failure: Failure, timing: RequestTiming | None = None) -> InternalError:
    """Log a fault of xformd itself; return the error whose message is the id of that log line."""
    request_id = (timing.request_id if timing is not None else None) or uuid.uuid4().hex
    assert failure.value is not None
    raised = SafeTraceback.redacted(failure.value, failure.getTracebackObject())
    ids = {} if timing is None else timing.trace_ids
    log.error("internal error {request_id}\n{traceback}", request_id=request_id, **ids, **raised.log_fields())
    return InternalError(request_id)


class Generation:
    """What can be run, and what is running; without ``workers`` the reactor runs everything."""

    def __init__(
        self,
        registry: Registry,
        inline: InlineRunner,
        workers: Workers | None = None,
        placement: Placement | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.registry = registry
        self.inline = inline
        self.in_flight = RequestsInFlight()
        self.prepared_calls: SpecCache[bytes, PreparedCall | None] = SpecCache()
        """What ``TransformService.prepare_call`` has returned, by the words of a request."""
        self._quarantine = quarantine or Quarantine()
        self._listing: tuple[frozenset[str], bytes] | None = None  # what was in quarantine, and the JSON
        self._workers = workers
        self._placement = placement or Placement()
        self._is_server = placement is not None  # a program awaits its own functions in its reactor
        self._plans: SpecCache[Spec, list[Stage]] = SpecCache()
        self._long_plans: SpecCache[Spec, list[Stage]] = SpecCache()

    def plan(self, spec: Spec, poem_bytes: int = 0) -> list[Stage]:
        """Return the stages of a spec, for a first poem of this length; raise ``XformError`` if it has a mistake.

        Names are looked up and options converted once for all requests with that spec.
        """
        plans = self._plans if poem_bytes <= LONG_POEM_BYTES else self._long_plans
        return plans.get(spec) or plans.remember(spec, self._make_plan(spec, poem_bytes))

    def describe(self) -> dict[str, Any]:
        """Return what ``xformd list-transforms --json --server`` prints; ``listing.to_json`` has all of it."""
        workers = {"workers": self._workers.size} if self._workers is not None and self.needs_workers else {}
        return listing.public(listing.to_json(self.registry, self._quarantine.names)) | workers

    def listing(self) -> bytes:
        """Return the same as JSON, written anew only when the quarantine has changed."""
        quarantined = self._quarantine.names
        if self._listing is None or self._listing[0] != quarantined:
            self._listing = (quarantined, json.dumps(self.describe()).encode())
        return self._listing[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """What tells its transforms from those of another server."""
        return str(json.loads(self.listing())["fingerprint"])

    @functools.cached_property
    def needs_workers(self) -> bool:
        """Whether some of its transforms run in workers."""
        entries = self.registry.entries.values()
        return self._workers is not None and any(self._placement.is_isolated(entry.transform) for entry in entries)

    @property
    def quarantined(self) -> frozenset[str]:
        """The names of the transforms in quarantine."""
        return self._quarantine.names

    @property
    def quarantined_in_part(self) -> frozenset[str]:
        """The names of those in quarantine for some requests only."""
        return self._quarantine.names_in_part

    def has_room(self, reader: Reader) -> None:
        """Start work that waited until its reader had room for a result."""
        if self._workers is not None:
            self._workers.has_room(reader)

    def _make_plan(self, spec: Spec, poem_bytes: int) -> list[Stage]:
        calls = [prepare(step, self.registry) for step in spec.steps]
        check_types(calls)
        stages: list[Stage] = []
        for (runner, _), group in itertools.groupby(
            calls, lambda call: (self._runner(call, poem_bytes), lane_of([call]) != ONE_BY_ONE and id(call))
        ):
            if runner is self.inline:
                stages.extend(Stage(runner, (call,), self._runner(call, LONG_POEM_BYTES + 1)) for call in group)
            else:
                stages.append(Stage(runner, tuple(group), runner))
        return stages

    def _runner(self, call: Call, poem_bytes: int) -> Runner:
        transform = call.entry.transform
        if self._workers is not None and self._placement.is_isolated(transform, poem_bytes):
            return self._workers
        if self._is_server and transform.runs_on_asyncio:
            raise Unavailable(f"{call.name} runs on asyncio in a worker, and this server has none: --workers 1 or more")
        return self.inline
