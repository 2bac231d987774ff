"""Workers in memory: what a real one would tell, the test tells."""

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.registries import registry_of
from xformd import transform
from xformd.limits import Limits
from xformd.runners.calls import Call, prepare
from xformd.runners.messages import WorkerHello
from xformd.runners.policy import Quarantine
from xformd.runners.pool import WorkerPool
from xformd.runners.slot import SelfTest
from xformd.spec import parse
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire.session import Refusal, Reply, Request


@transform
def upper(poem: str) -> str:
    return poem.upper()


@transform
def lower(poem: str) -> str:
    return poem.lower()


@transform(timeout=2)
def hasty(poem: str) -> str:
    return poem


REGISTRY = registry_of(upper, lower, hasty)

SELF_TEST = SelfTest(Request(1, parse("upper"), b"owl"), b"OWL")


def calls_of(spec: str) -> Sequence[Call]:
    """Give what a spec asks for."""
    return [prepare(step, REGISTRY) for step in parse(spec).steps]


class FakeWorker:
    """A worker that does what the test says."""

    def __init__(self, events: Any, pid: int) -> None:
        self._events = events
        self._pid = pid
        self.pid: int | None = None
        self.sent: list[Request] = []
        self.killed: list[str] = []
        self.memory_bytes = 1_000
        self.has_ended = False
        self.has_hung_up = False
        self.listed: Mapping[str, Any] = {}
        self._answered = 0

    # What the server does with it.

    def send(self, request: Request) -> None:
        assert not self.is_useless, "a worker that is about to end was given a job"
        self.sent.append(request)

    def kill(self, why: str = "") -> None:
        self.killed.append(why)

    def resident_bytes(self) -> int:
        return self.memory_bytes

    # What the test lets it do.

    @property
    def is_useless(self) -> bool:
        """Whether the server knows that it will do no more work."""
        return self.has_ended or self.has_hung_up or bool(self.killed)

    def report(self) -> None:
        self.pid = self._pid
        self._events.worker_said_hello(self, WorkerHello(self._pid, self.listed))

    def be_ready(self) -> None:
        self.report()
        self.answer(SELF_TEST.result)

    def answer(self, poem: bytes | None = None, request_id: int | None = None) -> None:
        """Answer the last request, with its poem where no other is given."""
        last = self.sent[-1] if self.sent else SELF_TEST.request
        result = last.poem if poem is None else poem
        self._answered = last.id if request_id is None and len(self.sent) > 1 else self._answered
        self._events.worker_answered(self, Reply(last.id if request_id is None else request_id, result))

    def refuse(self, error: Any) -> None:
        self._answered = self.sent[-1].id
        self._events.worker_answered(self, Refusal(self.sent[-1].id, error))

    def raised(self, raised: SafeTraceback) -> None:
        self._events.worker_raised(self, raised)

    def begin(self, step: int) -> None:
        self._events.worker_began(self, step)

    def on_sighup(self) -> None:
        self.has_hung_up = True
        self._events.worker_hung_up(self)

    @property
    def has_job(self) -> bool:
        """Whether it has been given a job that it has not answered; its first request was the proof."""
        return len(self.sent) > 1 and self._answered < self.sent[-1].id

    def end(self, reason: str = "was killed by SIGSEGV") -> None:
        assert not self.has_ended
        self.has_ended = True
        self._events.worker_ended(self, self.killed[0] if self.killed else reason)


class Launcher:
    """Starts workers, unless it is told not to."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.error: OSError | None = None

    def __call__(self, events: Any) -> FakeWorker:
        if self.error is not None:
            raise self.error
        self.workers.append(FakeWorker(events, pid=100 + len(self.workers)))
        return self.workers[-1]

    @property
    def alive(self) -> list[FakeWorker]:
        """Those that have not ended, nor been killed."""
        return [worker for worker in self.workers if not worker.has_ended and not worker.killed]


class Asker:
    """Somebody who has room for results, or has not."""

    takes_results = True


class Pool:
    """A pool of fake workers."""

    def __init__(self, clock: Clock, size: int = 1, self_test: SelfTest | None = SELF_TEST, **limits: Any) -> None:
        self.launcher = Launcher()
        self.pool = WorkerPool(
            size=size,
            launch=self.launcher,
            self_test=self_test,
            quarantine=Quarantine(),
            limits=Limits(**limits),
            clock=clock,
        )

    @property
    def workers(self) -> list[FakeWorker]:
        """All that were ever started."""
        return self.launcher.workers

    def start(self) -> "Pool":
        """Start, and let each worker prove itself."""
        self.pool.start()
        self.prove()
        return self

    def prove(self) -> None:
        """Let each worker that starts prove itself."""
        for worker in self.launcher.alive:
            if worker.pid is None:
                worker.be_ready()

    def run(self, spec: str = "upper", poem: bytes = b"a", caller: Any = None) -> Deferred[bytes]:
        """Ask for something."""
        return self.pool.run(calls_of(spec), poem, caller)

    def worker_of(self, poem: bytes) -> FakeWorker:
        """Give the worker that was given this poem last."""
        (worker,) = [w for w in self.launcher.alive if len(w.sent) > 1 and w.sent[-1].poem == poem]
        return worker

    def poems(self) -> list[bytes]:
        """Give the poem of every job that was ever begun, worker by worker."""
        return [request.poem for worker in self.workers for request in worker.sent[1:]]
