"""Keeps enough workers alive: starts them, tests each before it gets jobs, retires worn ones, replaces those that end.

Invariant: only a worker that ends before it was ready delays the next start, by a growing back-off.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from xformd.limits import Limits
from xformd.net.deadline import backoff_s
from xformd.plugins.registry import PluginKey, label
from xformd.runners import policy
from xformd.runners.launcher import Launcher
from xformd.runners.messages import WorkerHello
from xformd.runners.worker_handle import Job, WorkerHandle
from xformd.spec import Spec
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

START_TIMEOUT_S = 60.0
"""A worker that has not passed its self-test by then is killed."""

MAX_FAILED_STARTS = 3
LONGEST_START_DELAY_S = 10.0

MAX_DIFFERING_WORKERS = 5
"""Workers in a row whose plugins differ from the first one's are killed: an installation may be under way. The next
one is accepted, with a warning."""

MEASURE_EVERY_S = 0.02
"""How often a busy worker's memory is measured, at most: reading it takes longer than a short job."""

WATCH_MEMORY_EVERY_S = 0.25
"""How often the memory of busy workers is looked at."""

WorkerState = Literal["starting", "idle", "busy"]


@attrs.frozen
class NotReady:
    """``MAX_FAILED_STARTS`` starts in a row have failed."""

    reason: str  # of the last one


@attrs.frozen
class SelfTest:
    """An example that a worker must pass before it gets jobs."""

    request: session.Request
    result: bytes


@attrs.define(eq=False)
class WorkerSlot:
    """One worker and what it is doing."""

    worker: WorkerHandle
    state: WorkerState = "starting"
    job: Job | None = None
    jobs: int = 0  # that it has been given
    is_disconnected: bool = False  # it can take no more
    names: frozenset[str] = frozenset()  # the transforms of its last job
    known_names: frozenset[str] = frozenset()  # that it has run: what they load on their first run is no growth
    settled_bytes: int = 0  # its memory after the last job that ran a transform for the first time
    measured_at: float = 0.0  # when its growth was measured last, in seconds
    start_timer: IDelayedCall | None = None  # kills it if it does not get ready
    loading: PluginKey | None = None

    def run(self, spec: Spec, poem: bytes, job: Job) -> None:
        """Send the worker a job."""
        self.job = job
        self.names = frozenset(step.name for step in spec.steps)
        self.worker.send(session.Request(self.jobs + 1, spec, poem), job)  # the self-test's request had id 1


@attrs.frozen(eq=False)
class _SelfTestRun:
    """A worker's self-test under way."""

    log = Logger()

    test: SelfTest
    worker: WorkerHandle
    on_passed: Callable[[], None]

    def began(self, step: int) -> None:
        """Ignore it: what counts is the answer."""

    def raised(self, raised: SafeTraceback) -> None:
        """Log it here, because no request is waiting that would."""
        spec = str(self.test.request.spec)
        self.log.error("the self-test {spec} failed\n{traceback}", spec=spec, **raised.log_fields())

    def answered(self, answer: session.Reply | session.Refusal) -> None:
        """Compare the result."""
        if isinstance(answer, session.Reply) and answer.poem == self.test.result:
            self.on_passed()
            return
        what = "a wrong result" if isinstance(answer, session.Reply) else answer.error.message
        self.worker.kill(f"answered the self-test {self.test.request.spec} with {what}")

    def died(self, reason: str) -> None:
        """Leave it to the supervisor, which counts a failed start."""


class Supervisor:
    """Starts, tests, retires and replaces workers; ``on_idle`` is called when one becomes idle."""

    log = Logger()

    def __init__(
        self,
        *,
        count: int,
        launcher: Launcher,
        self_test: SelfTest | None,
        on_idle: Callable[[], None],
        limits: Limits,
        clock: IReactorTime,
        history: WorkerHistory,
    ) -> None:
        self._count = count
        self._launcher = launcher
        launcher.events = self
        self._self_test = self_test
        self._on_idle = on_idle
        self._limits = limits
        self._clock = clock
        self._limited_log = RateLimitedLog(clock)
        self._history = history
        self._slots: dict[WorkerHandle, WorkerSlot] = {}
        self._idle: list[WorkerSlot] = []
        self._ending: set[WorkerHandle] = set()
        self._failed_starts = 0
        self._listing: Mapping[str, Any] = {}  # of the first worker that was ready
        self._next_start: IDelayedCall | None = None
        self._memory_timer: IDelayedCall | None = None
        self._is_stopping = self._is_ready = False
        self._stopped: list[Deferred[None]] = []
        self.ready: Deferred[WorkerHello | NotReady] = Deferred()
        """Fires when the first worker is ready, or after ``MAX_FAILED_STARTS``; then another one takes its place."""

    # Called by the pool.

    def start(self) -> None:
        """Start as many workers as are missing."""
        self._next_start = None
        while not self._is_stopping and len(self._slots) < self._count:
            try:
                worker = self._launcher.launch()
            except OSError as error:
                self.cannot_launch(f"a worker cannot be started: {error.strerror or error}")
                return
            if worker is None:
                return
            self._history.starts += 1
            slot = WorkerSlot(worker)
            self._slots[worker] = slot
            self._start_timer(slot, START_TIMEOUT_S)

    @property
    def states(self) -> Mapping[str, int]:
        """How many workers are in each state; killed ones whose processes still exist are ``ending``."""
        counts = Counter[str](slot.state for slot in self._slots.values())
        return {**counts, "ending": len(self._ending)}

    @property
    def memory_bytes(self) -> Iterator[tuple[str, int]]:
        """The resident memory of what workers are forked from, and of each worker."""
        yield "fork-server", self._launcher.resident_bytes()
        for slot in self._slots.values():
            yield "worker", slot.worker.resident_bytes()

    def take(self) -> WorkerSlot | None:
        """Return an idle worker, busy from now until it is released or discarded; None if there is none."""
        if not self._idle:
            return None
        slot = self._idle.pop()
        slot.state = "busy"
        slot.jobs += 1
        if self._memory_timer is None:
            self._memory_timer = self._clock.callLater(WATCH_MEMORY_EVERY_S, self._watch_memory)
        return slot

    def release(self, slot: WorkerSlot) -> None:
        """Take back a worker that has answered, unless it has been discarded meanwhile."""
        slot.job = None
        if slot.worker not in self._slots:
            return
        if why := slot.worker.worn or policy.why_worn(slot.jobs, self._growth_bytes(slot), self._limits):
            is_routine = not slot.worker.worn and slot.jobs >= self._limits.max_jobs_per_worker
            log = self.log.debug if is_routine else self.log.info
            self._limited_log.add("worn", log, "worker {pid} {why}: it is replaced", pid=slot.worker.pid, why=why)
            self.discard(slot, why, in_order=True)
        else:
            self._make_idle(slot)

    def discard(self, slot: WorkerSlot, why: str, *, in_order: bool = False) -> None:
        """Kill a worker, or if it has no job end it ``in_order``, and replace it."""
        if self._forget(slot):
            self._ending.add(slot.worker)
            if in_order:
                slot.worker.retire(why)
            else:
                slot.worker.kill(why)
            self._replace()

    def reduce(self, count: int) -> None:
        """Keep at most ``count`` workers from now on; busy ones finish their jobs."""
        self._count = count
        for slot in self._idle[: max(0, len(self._slots) - count)]:
            self.discard(slot, "is not needed any more", in_order=True)

    def stop(self) -> Deferred[None]:
        """Kill every worker; fires when no process is left."""
        stopped: Deferred[None] = Deferred()
        self._is_stopping = True
        self._stopped.append(stopped)
        for timer in (self._next_start, self._memory_timer):
            if timer is not None:
                timer.cancel()
        self._next_start = self._memory_timer = None
        for slot in [*self._slots.values()]:
            self.discard(slot, "the server is stopping", in_order=slot.state == "idle")
        self._check_stopped()
        return stopped.addCallback(lambda _: self._launcher.stop())

    # Called by the launcher.

    def can_launch(self) -> None:
        """Start what is missing, unless a start has failed a moment ago."""
        if self._next_start is None:
            self.start()

    def cannot_launch(self, reason: str) -> None:
        """Note that a start has failed, and try again later."""
        if self._is_stopping or self._next_start is not None:
            return  # workers that were started together fail together: that is one failure
        self._failed_starts += 1
        self._history.failed_starts += 1
        if self._failed_starts == MAX_FAILED_STARTS and not self._is_ready:
            self._report(NotReady(reason))
        delay_s = backoff_s(self._failed_starts, longest_s=LONGEST_START_DELAY_S)
        self.log.warn("{reason}; the next start is in {delay_s:.1f} s", reason=reason, delay_s=delay_s)
        self._next_start = self._clock.callLater(delay_s, self.start)

    # Called by workers.

    def worker_loading(self, worker: WorkerHandle, news: Mapping[str, Any]) -> None:
        """Note which plugin a starting worker loads, and how long that may take."""
        if (slot := self._slots.get(worker)) is None:
            return
        if "loading" in news:
            distribution, name = news["loading"]
            slot.loading = distribution, name
        self._start_timer(slot, news.get("timeout_s", max(START_TIMEOUT_S, self._limits.plugin_load_timeout_s)))

    def worker_said_hello(self, worker: WorkerHandle, hello: WorkerHello) -> None:
        """Start its self-test, unless its plugins differ from the others'."""
        if (slot := self._slots.get(worker)) is None:
            return
        slot.loading = None
        if difference := policy.plugin_difference(self._listing, hello.listing):
            if self._failed_starts < MAX_DIFFERING_WORKERS:
                worker.kill(f"has other plugins than those before ({difference})")
                if all(other.state == "starting" for other in self._slots.values()):  # all are forked from the same
                    self._launcher.end("workers have other plugins than those before")
                return
            message = "a worker has other plugins ({difference}); send SIGHUP to reload them all"
            self._limited_log.add("plugins", self.log.warn, message, difference=difference)
        if self._self_test is None:
            self._ready(slot, hello)
        else:
            run = _SelfTestRun(self._self_test, worker, lambda: self._ready(slot, hello))
            worker.send(self._self_test.request, run)

    def worker_disconnected(self, worker: WorkerHandle) -> None:
        """Send it no more jobs. Its job is lost only when it ends, so that the reason is known."""
        if (slot := self._slots.get(worker)) is None:
            return
        slot.is_disconnected = True
        if slot in self._idle:
            self._idle.remove(slot)

    def worker_ended(self, worker: WorkerHandle, reason: str) -> None:
        """Replace it."""
        self._ending.discard(worker)
        slot = self._slots.get(worker)
        if slot is not None and self._forget(slot):
            self._lose(slot, reason)
        self._check_stopped()

    def _lose(self, slot: WorkerSlot, reason: str) -> None:
        if slot.loading is not None:
            if any(other.state != "starting" for other in self._slots.values()):  # they would end with the fork server
                distribution, name = slot.loading
                self.cannot_launch(f"a worker {reason} when it imported {label(name, distribution, '')}")
                return
            self._listing = {}  # without that plugin
            self._launcher.leave_out(slot.loading, f"{reason} when a worker imported it")
            for other in [*self._slots.values()]:  # they end with the fork server, whatever they are importing
                if other.state == "starting":
                    self.discard(other, "is started again without a plugin")
            return
        if slot.state == "starting":
            self.cannot_launch(f"a worker {reason} before it was ready")
            return
        if slot.job is not None:
            slot.job.died(reason)
        else:
            self._history.deaths += 1
            message = "worker {pid} {reason} while it was idle"
            self._limited_log.add("idle", self.log.warn, message, pid=slot.worker.pid, reason=reason)
        self._replace()

    def _ready(self, slot: WorkerSlot, hello: WorkerHello) -> None:
        self._failed_starts = 0
        self._stop_timer(slot)
        slot.settled_bytes = slot.worker.resident_bytes()
        self._listing = self._listing or hello.listing
        self._make_idle(slot)
        if not self._is_ready:
            self._is_ready = True
            self._report(hello)

    def _make_idle(self, slot: WorkerSlot) -> None:
        if slot.is_disconnected:  # its last answer was read together with its end
            return
        slot.state = "idle"
        self._idle.append(slot)
        self._on_idle()

    def _report(self, outcome: WorkerHello | NotReady) -> None:
        ready, self.ready = self.ready, Deferred()
        ready.callback(outcome)

    def _growth_bytes(self, slot: WorkerSlot) -> int:
        if not slot.names <= slot.known_names:
            slot.known_names |= slot.names
            slot.settled_bytes = slot.worker.resident_bytes()
            return 0
        now = self._clock.seconds()
        if now - slot.measured_at < MEASURE_EVERY_S:
            return 0
        slot.measured_at = now
        return slot.worker.resident_bytes() - slot.settled_bytes

    def _watch_memory(self) -> None:
        """Kill the workers whose jobs use more than they may, by means that the limit in the worker does not count."""
        self._memory_timer = None
        allowed_bytes = self._limits.worker_memory_bytes
        busy = [slot for slot in self._slots.values() if slot.state == "busy"]
        for slot in busy:
            used_bytes = slot.worker.resident_bytes() - slot.settled_bytes
            if used_bytes > allowed_bytes:
                slot.worker.kill(f"used {used_bytes} bytes of memory; worker_memory_bytes is {allowed_bytes}")
        if busy:
            self._memory_timer = self._clock.callLater(WATCH_MEMORY_EVERY_S, self._watch_memory)

    def _replace(self) -> None:
        if self._idle:  # the spare takes the next job at once
            self._on_idle()
        self.can_launch()

    def _start_timer(self, slot: WorkerSlot, timeout_s: float) -> None:
        self._stop_timer(slot)
        slot.start_timer = self._clock.callLater(timeout_s, self._start_expired, slot, timeout_s)

    def _start_expired(self, slot: WorkerSlot, timeout_s: float) -> None:
        slot.start_timer = None
        slot.worker.kill(f"was killed after {timeout_s:g} s")

    def _stop_timer(self, slot: WorkerSlot) -> None:
        if slot.start_timer is not None:
            slot.start_timer.cancel()
            slot.start_timer = None

    def _forget(self, slot: WorkerSlot) -> bool:
        """Remove a worker's slot; return whether it was still there."""
        if self._slots.pop(slot.worker, None) is None:
            return False
        self._stop_timer(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        return True

    def _check_stopped(self) -> None:
        while self._stopped and not self._ending:
            self._stopped.pop().callback(None)
