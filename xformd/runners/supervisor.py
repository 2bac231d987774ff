"""Keeps enough workers alive: starts them, tests each before it gets jobs, retires worn ones, replaces those that end.

Invariant: only a worker that ends before it was ready delays the next start, by a growing back-off.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from xformd.limits import Limits
from xformd.net.deadline import cancel
from xformd.net.plain import backoff_s
from xformd.plugins import listing
from xformd.plugins.registry import PluginKey, label
from xformd.runners import policy
from xformd.runners.launcher import SLOW_AFTER_S, Launcher
from xformd.runners.messages import WorkerHello
from xformd.runners.worker_handle import Job, WorkerHandle
from xformd.telemetry.rate_limited import RateLimitedLog
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

if TYPE_CHECKING:
    from xformd.runners.groups import JobGroup

START_TIMEOUT_S = 60.0  # a worker that has not passed its self-test by then is killed

MAX_FAILED_STARTS = 3
LONGEST_START_DELAY_S = 10.0

MAX_DIFFERING_WORKERS = 5
"""Workers in a row whose plugins differ from the first one's are killed: an installation may be under way. The next
one is accepted, with a warning."""

MEASURE_EVERY_S = 0.02  # a busy worker's memory is measured no more often: that takes longer than a short job
WATCH_MEMORY_EVERY_S = 0.25  # how often the memory of busy workers is looked at

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
    group: "JobGroup | None" = None
    jobs: int = 0  # that it has been given
    is_disconnected: bool = False  # it can take no more
    names: frozenset[str] = frozenset()  # the transforms of its last job
    known_names: frozenset[str] = frozenset()  # that it has run: what they load on their first run is no growth
    settled_bytes: int = 0  # its memory after the last job that ran a transform for the first time
    measured_at: float = 0.0  # when its growth was measured last, in seconds
    start_timers: list[IDelayedCall] = attrs.field(factory=list)  # they name it as slow, and kill it at last
    loading: PluginKey | None = None
    did: str = "imported"  # or "warmed up": what is done with that plugin

    def run(self, requests: Sequence[session.Request], jobs: Sequence[Job]) -> None:
        """Send the worker jobs with the same steps."""
        self.jobs += len(jobs)
        self.names = frozenset(step.name for step in requests[0].spec.steps)
        self.worker.send(requests, jobs)


@attrs.frozen(eq=False)
class _SelfTestRun(Job):
    """A worker's self-test under way."""

    log = Logger()

    test: SelfTest
    worker: WorkerHandle
    on_passed: Callable[[], None]

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

    def returned(self) -> None:
        """End the worker, which may not do that."""
        self.worker.kill("returned the self-test")


@attrs.define(eq=False, slots=False, kw_only=True)
class Supervisor:
    """Starts, tests, retires and replaces workers; ``on_idle`` is called when one becomes idle."""

    log = Logger()

    _count: int
    _launcher: Launcher
    _self_test: SelfTest | None
    _on_idle: Callable[[], None]
    _limits: Limits
    _clock: IReactorTime
    _history: WorkerHistory

    def __attrs_post_init__(self) -> None:
        self._launcher.events = self
        self._limited_log = RateLimitedLog(self._clock)
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

    @property
    def idle(self) -> int:
        """How many workers can be taken."""
        return len(self._idle)

    def take(self) -> WorkerSlot:
        """Return an idle worker, busy from now until it is released or discarded. There must be one."""
        slot = self._idle.pop()
        self.occupy(slot)
        return slot

    def occupy(self, slot: WorkerSlot) -> None:
        """Watch the memory of a worker that has something to do."""
        slot.state = "busy"
        if self._memory_timer is None:
            self._memory_timer = self._clock.callLater(WATCH_MEMORY_EVERY_S, self._watch_memory)

    def release(self, slot: WorkerSlot) -> None:
        """Take back a worker that has answered, unless it has been discarded meanwhile."""
        slot.group = None
        if slot.worker not in self._slots:
            return
        if why := self.why_worn(slot):
            self.discard(slot, why, in_order=True)
        else:
            self._make_idle(slot)

    def why_worn(self, slot: WorkerSlot) -> str:
        """Return why a worker should be replaced, and log that; an empty string if it should not."""
        if why := slot.worker.worn or policy.why_worn(slot.jobs, self._growth_bytes(slot), self._limits):
            is_routine = not slot.worker.worn and slot.jobs >= self._limits.max_jobs_per_worker
            log = self.log.debug if is_routine else self.log.info
            self._limited_log.add("worn", log, "worker {pid} {why}: it is replaced", pid=slot.worker.pid, why=why)
        return why

    def kill(self, slot: WorkerSlot, why: str) -> None:
        """Kill a worker, and have its jobs hear how it has ended; it can take no more."""
        slot.is_disconnected = True
        slot.worker.kill(why)

    def discard(self, slot: WorkerSlot, why: str, *, in_order: bool = False) -> None:
        """Kill a worker, or if it has no job end it ``in_order``, and replace it."""
        if self._forget(slot):
            self._ending.add(slot.worker)
            if in_order:
                slot.worker.retire(why)
            else:
                slot.worker.kill(why)
            self._replace()

    def resize(self, count: int) -> None:
        """Keep ``count`` workers from now on; busy ones finish their jobs."""
        self._count = count
        for slot in self._idle[: max(0, len(self._slots) - count)]:
            self.discard(slot, "is not needed any more", in_order=True)
        self.can_launch()

    def stop(self) -> Deferred[None]:
        """Kill busy workers, have the others run their exit handlers; fires when no process is left."""
        stopped: Deferred[None] = Deferred()
        self._is_stopping = True
        self._stopped.append(stopped)
        cancel(self._next_start, self._memory_timer)
        self._next_start = self._memory_timer = None
        for slot in [*self._slots.values()]:
            self.discard(slot, "the server is stopping", in_order=slot.state != "busy")
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
        """Note which plugin a starting worker loads or warms up, and how long that may take."""
        if (slot := self._slots.get(worker)) is None:
            return
        default_s, timeouts_s = max(START_TIMEOUT_S, self._limits.plugin_load_timeout_s), self._launcher.timeouts_s
        match news:
            case {"loading": [distribution, name]} | {"warming_up": [distribution, name]}:
                slot.loading, slot.did = (distribution, name), "warmed up" if "warming_up" in news else "imported"
                self._start_timer(slot, timeouts_s.get(slot.loading, default_s))
            case {"timeout_s": int() | float() as seconds} if slot.loading is not None:
                timeouts_s[slot.loading] = seconds
                self._start_timer(slot, seconds)

    def worker_said_hello(self, worker: WorkerHandle, hello: WorkerHello) -> None:
        """Start its self-test, unless its plugins differ from the others'."""
        if (slot := self._slots.get(worker)) is None:
            return
        slot.loading = None
        before = self._listing or hello.listing
        if differences := listing.differences({"those before": before, "it": hello.listing}):
            difference = differences[0]
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
            worker.send([self._self_test.request], [run])

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
                self.cannot_launch(f"a worker {reason} when it {slot.did} {label(name, distribution, '')}")
                return
            self._listing = {}  # without that plugin
            self._launcher.leave_out(slot.loading, f"{reason} when it was {slot.did} in a worker")
            for other in [*self._slots.values()]:  # they end with the fork server, whatever they are importing
                if other.state == "starting":
                    self.discard(other, "is started again without a plugin")
            return
        if slot.state == "starting":
            self.cannot_launch(f"a worker {reason} before it was ready")
            return
        if slot.group is None or slot.group.is_idle:
            self._history.deaths += 1
            message = "worker {pid} {reason} while it was idle"
            self._limited_log.add("idle", self.log.warn, message, pid=slot.worker.pid, reason=reason)
        if slot.group is not None:
            slot.group.died(reason)
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
                self.kill(slot, f"used {used_bytes} bytes of memory; worker_memory_bytes is {allowed_bytes}")
        if busy:
            self._memory_timer = self._clock.callLater(WATCH_MEMORY_EVERY_S, self._watch_memory)

    def _replace(self) -> None:
        if self._idle:  # the spare takes the next job at once
            self._on_idle()
        self.can_launch()

    def _start_timer(self, slot: WorkerSlot, timeout_s: float) -> None:
        self._stop_timer(slot)
        kill, call_later = slot.worker.kill, self._clock.callLater
        slot.start_timers = [call_later(timeout_s, kill, f"was killed after {timeout_s:g} s")]
        if slot.loading is not None and not self._is_ready:  # somebody waits for it
            slow_s = min(SLOW_AFTER_S, timeout_s / 2)
            slot.start_timers.append(call_later(slow_s, self._launcher.is_slow, slot.loading, slot.did))

    def _stop_timer(self, slot: WorkerSlot) -> None:
        cancel(*slot.start_timers)
        slot.start_timers = []

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
