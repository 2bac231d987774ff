"""Keeps enough workers alive: starts them, has each prove itself, ends those that are worn, and replaces what ends.

A worker that ends before it was ready delays the next start, longer each time; nothing else does.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from xformd.limits import Limits
from xformd.net.deadline import backoff_s
from xformd.runners import policy
from xformd.runners.messages import WorkerHello
from xformd.runners.slot import Launch, SelfTest, Worker, WorkerSlot
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import session

START_TIMEOUT_S = 60.0
"""A worker that has not run its example by then is given up."""

MAX_FAILED_STARTS = 3
LONGEST_START_DELAY_S = 10.0

MAX_STRANGERS = 5
"""So many workers in a row with other plugins than the first are not taken; the next one is, with a warning."""

MEASURE_EVERY_S = 0.02
"""How often the memory of a worker that does jobs is looked at."""


@attrs.frozen
class NotReady:
    """``MAX_FAILED_STARTS`` in a row have failed.

    Args:
        reason: of the last.
    """

    reason: str


class SupervisorEvents(Protocol):
    """Who uses the workers hears of these."""

    def worker_idle(self) -> None:
        """There is a worker to take."""
        ...

    def worker_began(self, slot: WorkerSlot, step: int) -> None:
        """A busy worker begins a step."""
        ...

    def worker_raised(self, slot: WorkerSlot, raised: SafeTraceback) -> None:
        """The transform that a busy worker runs has raised something that it must not raise."""
        ...

    def worker_answered(self, slot: WorkerSlot, answer: session.Reply | session.Refusal) -> None:
        """A busy worker has answered: release it."""
        ...

    def worker_died(self, slot: WorkerSlot, reason: str) -> None:
        """A busy worker is gone."""
        ...


class Supervisor:
    """Keeps workers.

    Args:
        count: how many.
        launch: starts one.
        self_test: what each must do first; None for nothing.
        events: hears of them.
        limits: how worn one may be.
        clock: a reactor, or a clock in its place.
        history: where to count what becomes of them.
    """

    log = Logger()

    def __init__(
        self,
        *,
        count: int,
        launch: Launch,
        self_test: SelfTest | None,
        events: SupervisorEvents,
        limits: Limits,
        clock: IReactorTime,
        history: WorkerHistory,
    ) -> None:
        self._count = count
        self._launch = launch
        self._self_test = self_test
        self._events = events
        self._limits = limits
        self._clock = clock
        self._history = history
        self._slots: dict[Worker, WorkerSlot] = {}
        self._idle: list[WorkerSlot] = []
        self._ending: set[Worker] = set()
        self._failures = 0
        self._listed: Mapping[str, Any] = {}  # what the first worker had
        self._next_start: IDelayedCall | None = None
        self._is_stopping = False
        self._stopped: list[Deferred[None]] = []
        self.ready: Deferred[WorkerHello | NotReady] = Deferred()
        """Fires once: when the first worker has proved itself, or when it looks as if none ever would."""

    # What its user calls.

    def start(self) -> None:
        """Start as many workers as are missing."""
        self._next_start = None
        while not self._is_stopping and len(self._slots) < self._count:
            try:
                worker = self._launch(self)
            except OSError as error:
                self._start_failed(f"a worker cannot be started: {error.strerror or error}")
                return
            self._history.starts += 1
            slot = WorkerSlot(worker)
            slot.start_timer = self._clock.callLater(START_TIMEOUT_S, self._start_expired, slot)
            self._slots[worker] = slot

    @property
    def states(self) -> Mapping[str, int]:
        """How many workers are in each state; those that have been killed and have not ended yet are ``ending``."""
        counts = Counter[str](slot.state for slot in self._slots.values())
        return {**counts, "ending": len(self._ending)}

    def take(self) -> WorkerSlot | None:
        """Give an idle worker, if there is one; it is busy until it is released or discarded."""
        if not self._idle:
            return None
        slot = self._idle.pop()
        slot.state = "busy"
        slot.jobs += 1
        return slot

    def release(self, slot: WorkerSlot) -> None:
        """Take a worker back that has answered; one that has been struck off meanwhile stays so."""
        slot.job = None
        if slot.worker not in self._slots:
            return
        if why := policy.why_worn(slot.jobs, self._growth_bytes(slot), self._limits):
            self.log.debug("worker {pid} {why}: a fresh one takes its place", pid=slot.worker.pid, why=why)
            self.discard(slot, why)
        else:
            self._be_idle(slot)

    def discard(self, slot: WorkerSlot, why: str) -> None:
        """End a worker."""
        if self._forget(slot):
            self._ending.add(slot.worker)
            slot.worker.kill(why)
            self._replace()

    def reduce(self, count: int) -> None:
        """Keep no more than so many from now on; who is busy is left alone."""
        self._count = count
        for slot in self._idle[: max(0, len(self._slots) - count)]:
            self.discard(slot, "is not needed any more")

    def stop(self) -> Deferred[None]:
        """End every worker; fires when no process is left."""
        stopped: Deferred[None] = Deferred()
        self._is_stopping = True
        self._stopped.append(stopped)
        if self._next_start is not None:
            self._next_start.cancel()
            self._next_start = None
        for slot in [*self._slots.values()]:
            self.discard(slot, "the server is stopping")
        self._check_stopped()
        return stopped

    # What workers tell.

    def worker_said_hello(self, worker: Worker, report: WorkerHello) -> None:
        """Let it prove itself."""
        if (slot := self._slots.get(worker)) is None:
            return
        if difference := policy.plugin_difference(self._listed, report.listed):
            if self._failures < MAX_STRANGERS:  # somebody may be in the middle of an installation
                worker.kill(f"has other plugins than those before ({difference})")
                return
            self.log.warn("a worker has {difference}; SIGHUP makes all alike", difference=difference)
        slot.job = report
        if self._self_test is None:
            self._ready(slot)
        else:
            worker.send(self._self_test.request)

    def worker_began(self, worker: Worker, step: int) -> None:
        """Pass it on."""
        slot = self._slots.get(worker)
        if slot is not None and slot.state == "busy":
            self._events.worker_began(slot, step)

    def worker_raised(self, worker: Worker, raised: SafeTraceback) -> None:
        """Pass it on; of an example nobody else would tell."""
        slot = self._slots.get(worker)
        if slot is not None and slot.state == "busy":
            self._events.worker_raised(slot, raised)
        elif slot is not None and slot.state == "starting" and self._self_test is not None:
            self.log.error(
                "the example {spec} failed\n{traceback}",
                spec=str(self._self_test.request.spec),
                **attrs.asdict(raised),
            )

    def worker_answered(self, worker: Worker, answer: session.Reply | session.Refusal) -> None:
        """Look at its proof, or pass on what it answers to a job."""
        if (slot := self._slots.get(worker)) is None:
            return
        if slot.state == "busy" and answer.id == slot.request_id:
            self._events.worker_answered(slot, answer)
        elif slot.state == "starting" and self._self_test is not None:
            self._judge(slot, self._self_test, answer)
        else:
            self.worker_hung_up(worker)
            worker.kill("answered what nobody had asked")

    def worker_hung_up(self, worker: Worker) -> None:
        """Give it nothing more to do; what it has is lost when it ends, and not before, so that it is known why."""
        slot = self._slots.get(worker)
        if slot is not None and slot in self._idle:
            self._idle.remove(slot)

    def worker_ended(self, worker: Worker, reason: str) -> None:
        """Replace it."""
        self._ending.discard(worker)
        slot = self._slots.get(worker)
        if slot is not None and self._forget(slot):
            self._lose(slot, reason)
        self._check_stopped()

    def _lose(self, slot: WorkerSlot, reason: str) -> None:
        if slot.state == "starting":
            self._start_failed(f"a worker {reason} before it was ready")
            return
        if slot.state == "idle":
            self._history.deaths += 1
            self.log.warn("worker {pid} {reason} while it had nothing to do", pid=slot.worker.pid, reason=reason)
        else:
            self._events.worker_died(slot, reason)
        self._replace()

    def _judge(self, slot: WorkerSlot, self_test: SelfTest, answer: session.Reply | session.Refusal) -> None:
        if isinstance(answer, session.Reply) and answer.poem == self_test.result:
            self._ready(slot)
            return
        said = "something else" if isinstance(answer, session.Reply) else answer.error.message
        slot.worker.kill(f"answered the example {self_test.request.spec} with {said}")

    def _ready(self, slot: WorkerSlot) -> None:
        self._failures = 0
        self._stop_timer(slot)
        slot.first_resident_bytes = slot.worker.resident_bytes()
        report, slot.job = slot.job, None
        self._listed = self._listed or report.listed
        self._be_idle(slot)
        if not self.ready.called:
            self.ready.callback(report)

    def _be_idle(self, slot: WorkerSlot) -> None:
        slot.state = "idle"
        self._idle.append(slot)
        self._events.worker_idle()

    def _growth_bytes(self, slot: WorkerSlot) -> int:
        now = self._clock.seconds()
        if now - slot.measured_at < MEASURE_EVERY_S:
            return 0
        slot.measured_at = now
        return slot.worker.resident_bytes() - slot.first_resident_bytes

    def _replace(self) -> None:
        if self._idle:  # the spare goes on where the one that is gone has stopped
            self._events.worker_idle()
        if self._next_start is None:
            self.start()

    def _start_failed(self, what: str) -> None:
        if self._is_stopping or self._next_start is not None:
            return  # those that were started together fail together: that is one failure
        self._failures += 1
        self._history.failed_starts += 1
        if self._failures == MAX_FAILED_STARTS and not self.ready.called:
            self.ready.callback(NotReady(what))
        delay_s = backoff_s(self._failures, longest_s=LONGEST_START_DELAY_S)
        self.log.warn("{what}; the next start is in {delay_s:.1f} s", what=what, delay_s=delay_s)
        self._next_start = self._clock.callLater(delay_s, self.start)

    def _start_expired(self, slot: WorkerSlot) -> None:
        slot.start_timer = None
        slot.worker.kill(f"was not ready after {START_TIMEOUT_S:g} s")

    def _stop_timer(self, slot: WorkerSlot) -> None:
        if slot.start_timer is not None:
            slot.start_timer.cancel()
            slot.start_timer = None

    def _forget(self, slot: WorkerSlot) -> bool:
        """Strike a worker off; say whether it was still on the list."""
        if self._slots.pop(slot.worker, None) is None:
            return False
        self._stop_timer(slot)
        if slot in self._idle:
            self._idle.remove(slot)
        return True

    def _check_stopped(self) -> None:
        while self._stopped and not self._ending:
            self._stopped.pop().callback(None)
