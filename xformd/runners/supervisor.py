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
from xformd.runners import policy
from xformd.runners.messages import Report
from xformd.runners.seat import Launch, Proof, Seat, Worker
from xformd.telemetry.status import WorkerHistory
from xformd.telemetry.tracebacks import Fault
from xformd.wire import session

START_TIMEOUT_S = 60.0
"""A worker that has not run its example by then is given up."""

MAX_FAILED_STARTS = 3

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

    def worker_began(self, seat: Seat, step: int) -> None:
        """A busy worker begins a step."""
        ...

    def worker_faulted(self, seat: Seat, fault: Fault) -> None:
        """The transform that a busy worker runs has raised something that it must not raise."""
        ...

    def worker_answered(self, seat: Seat, answer: session.Reply | session.Refusal) -> None:
        """A busy worker has answered: release it."""
        ...

    def worker_died(self, seat: Seat, reason: str) -> None:
        """A busy worker is gone."""
        ...


class Supervisor:
    """Keeps workers.

    Args:
        count: how many.
        launch: starts one.
        proof: what each must do first; None for nothing.
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
        proof: Proof | None,
        events: SupervisorEvents,
        limits: Limits,
        clock: IReactorTime,
        history: WorkerHistory,
    ) -> None:
        self._count = count
        self._launch = launch
        self._proof = proof
        self._events = events
        self._limits = limits
        self._clock = clock
        self._history = history
        self._seats: dict[Worker, Seat] = {}
        self._idle: list[Seat] = []
        self._ending: set[Worker] = set()
        self._failures = 0
        self._listed: Mapping[str, Any] = {}  # what the first worker had
        self._next_start: IDelayedCall | None = None
        self._is_stopping = False
        self._stopped: list[Deferred[None]] = []
        self.ready: Deferred[Report | NotReady] = Deferred()
        """Fires once: when the first worker has proved itself, or when it looks as if none ever would."""

    # What its user calls.

    def start(self) -> None:
        """Start as many workers as are missing."""
        self._next_start = None
        while not self._is_stopping and len(self._seats) < self._count:
            try:
                worker = self._launch(self)
            except OSError as error:
                self._start_failed(f"a worker cannot be started: {error.strerror or error}")
                return
            self._history.starts += 1
            seat = Seat(worker)
            seat.start_timer = self._clock.callLater(START_TIMEOUT_S, self._start_expired, seat)
            self._seats[worker] = seat

    @property
    def states(self) -> Mapping[str, int]:
        """How many workers are in each state; those that have been killed and have not ended yet are ``ending``."""
        counts = Counter[str](seat.state for seat in self._seats.values())
        return {**counts, "ending": len(self._ending)}

    def take(self) -> Seat | None:
        """Give an idle worker, if there is one; it is busy until it is released or discarded."""
        if not self._idle:
            return None
        seat = self._idle.pop()
        seat.state = "busy"
        seat.jobs += 1
        return seat

    def release(self, seat: Seat) -> None:
        """Take a worker back that has answered; one that has been struck off meanwhile stays so."""
        seat.job = None
        if seat.worker not in self._seats:
            return
        if why := policy.why_worn(seat.jobs, self._growth_bytes(seat), self._limits):
            self.log.debug("worker {pid} {why}: a fresh one takes its place", pid=seat.worker.pid, why=why)
            self.discard(seat, why)
        else:
            self._be_idle(seat)

    def discard(self, seat: Seat, why: str) -> None:
        """End a worker."""
        if self._forget(seat):
            self._ending.add(seat.worker)
            seat.worker.kill(why)
            self._replace()

    def reduce(self, count: int) -> None:
        """Keep no more than so many from now on; who is busy is left alone."""
        self._count = count
        for seat in self._idle[: max(0, len(self._seats) - count)]:
            self.discard(seat, "is not needed any more")

    def stop(self) -> Deferred[None]:
        """End every worker; fires when no process is left."""
        stopped: Deferred[None] = Deferred()
        self._is_stopping = True
        self._stopped.append(stopped)
        if self._next_start is not None:
            self._next_start.cancel()
            self._next_start = None
        for seat in [*self._seats.values()]:
            self.discard(seat, "the server is stopping")
        self._check_stopped()
        return stopped

    # What workers tell.

    def worker_reported(self, worker: Worker, report: Report) -> None:
        """Let it prove itself."""
        if (seat := self._seats.get(worker)) is None:
            return
        if difference := policy.difference(self._listed, report.listed):
            if self._failures < MAX_STRANGERS:  # somebody may be in the middle of an installation
                worker.kill(f"has other plugins than those before ({difference})")
                return
            self.log.warn("a worker has {difference}; SIGHUP makes all alike", difference=difference)
        seat.job = report
        if self._proof is None:
            self._ready(seat)
        else:
            worker.send(self._proof.request)

    def worker_began(self, worker: Worker, step: int) -> None:
        """Pass it on."""
        seat = self._seats.get(worker)
        if seat is not None and seat.state == "busy":
            self._events.worker_began(seat, step)

    def worker_faulted(self, worker: Worker, fault: Fault) -> None:
        """Pass it on; of an example nobody else would tell."""
        seat = self._seats.get(worker)
        if seat is not None and seat.state == "busy":
            self._events.worker_faulted(seat, fault)
        elif seat is not None and seat.state == "starting" and self._proof is not None:
            self.log.error(
                "the example {spec} failed\n{traceback}",
                spec=str(self._proof.request.spec),
                **attrs.asdict(fault),
            )

    def worker_answered(self, worker: Worker, answer: session.Reply | session.Refusal) -> None:
        """Look at its proof, or pass on what it answers to a job."""
        if (seat := self._seats.get(worker)) is None:
            return
        if seat.state == "busy" and answer.id == seat.request_id:
            self._events.worker_answered(seat, answer)
        elif seat.state == "starting" and self._proof is not None:
            self._judge(seat, self._proof, answer)
        else:
            self.worker_hung_up(worker)
            worker.kill("answered what nobody had asked")

    def worker_hung_up(self, worker: Worker) -> None:
        """Give it nothing more to do; what it has is lost when it ends, and not before, so that it is known why."""
        seat = self._seats.get(worker)
        if seat is not None and seat in self._idle:
            self._idle.remove(seat)

    def worker_ended(self, worker: Worker, reason: str) -> None:
        """Replace it."""
        self._ending.discard(worker)
        seat = self._seats.get(worker)
        if seat is not None and self._forget(seat):
            self._lose(seat, reason)
        self._check_stopped()

    def _lose(self, seat: Seat, reason: str) -> None:
        if seat.state == "starting":
            self._start_failed(f"a worker {reason} before it was ready")
            return
        if seat.state == "idle":
            self._history.deaths += 1
            self.log.warn("worker {pid} {reason} while it had nothing to do", pid=seat.worker.pid, reason=reason)
        else:
            self._events.worker_died(seat, reason)
        self._replace()

    def _judge(self, seat: Seat, proof: Proof, answer: session.Reply | session.Refusal) -> None:
        if isinstance(answer, session.Reply) and answer.poem == proof.result:
            self._ready(seat)
            return
        said = "something else" if isinstance(answer, session.Reply) else answer.error.message
        seat.worker.kill(f"answered the example {proof.request.spec} with {said}")

    def _ready(self, seat: Seat) -> None:
        self._failures = 0
        self._stop_timer(seat)
        seat.first_resident_bytes = seat.worker.resident_bytes()
        report, seat.job = seat.job, None
        self._listed = self._listed or report.listed
        self._be_idle(seat)
        if not self.ready.called:
            self.ready.callback(report)

    def _be_idle(self, seat: Seat) -> None:
        seat.state = "idle"
        self._idle.append(seat)
        self._events.worker_idle()

    def _growth_bytes(self, seat: Seat) -> int:
        now = self._clock.seconds()
        if now - seat.measured_at < MEASURE_EVERY_S:
            return 0
        seat.measured_at = now
        return seat.worker.resident_bytes() - seat.first_resident_bytes

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
        delay_s = policy.start_delay_s(self._failures)
        self.log.warn("{what}; the next start is in {delay_s:.1f} s", what=what, delay_s=delay_s)
        self._next_start = self._clock.callLater(delay_s, self.start)

    def _start_expired(self, seat: Seat) -> None:
        seat.start_timer = None
        seat.worker.kill(f"was not ready after {START_TIMEOUT_S:g} s")

    def _stop_timer(self, seat: Seat) -> None:
        if seat.start_timer is not None:
            seat.start_timer.cancel()
            seat.start_timer = None

    def _forget(self, seat: Seat) -> bool:
        """Strike a worker off; say whether it was still on the list."""
        if self._seats.pop(seat.worker, None) is None:
            return False
        self._stop_timer(seat)
        if seat in self._idle:
            self._idle.remove(seat)
        return True

    def _check_stopped(self) -> None:
        while self._stopped and not self._ending:
            self._stopped.pop().callback(None)
