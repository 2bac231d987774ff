"""Workers in memory, which do what a test says."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from support.registries import registry_of
from xformd import Transform, transform
from xformd.limits import Limits
from xformd.plugins.registry import PluginKey
from xformd.runners import PROGRAM, Caller
from xformd.runners.calls import Call, prepare
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.runners.messages import WorkerHello
from xformd.runners.pool import WorkerPool
from xformd.runners.supervisor import SelfTest
from xformd.runners.worker_handle import Job
from xformd.service import TransformService
from xformd.spec import parse
from xformd.telemetry.status import WorkerHistory
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


@transform(batch=4, batch_wait_s=0.005)
def together(poems: list[str], *, width: int = 0) -> list[str]:
    return poems


@transform(batch=4, timeout=2)
def hastily(poems: list[str]) -> list[str]:
    return poems


@transform(concurrency=2)
async def call(poem: str) -> str:
    return poem


@transform(concurrency=4, deterministic=True, timeout=2)
async def look_up(poem: str, *, width: int = 0) -> str:
    return poem


@transform
async def patiently(poem: str) -> str:
    return poem


REGISTRY = registry_of(upper, lower, hasty, together, hastily, call, look_up, patiently)

SELF_TEST = SelfTest(Request(1, parse("upper"), b"owl"), b"OWL")


def calls_of(spec: str) -> Sequence[Call]:
    return [prepare(step, REGISTRY) for step in parse(spec).steps]


def listing_of(**versions: str) -> dict[str, Any]:
    """Return the listing of a worker with one transform for each of these names, from a plugin of this version."""
    listed = [{"name": name, "distribution": f"x-{name}", "version": version} for name, version in versions.items()]
    return {"transforms": listed}


class RecordingJob(Job):
    """A job that records what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []

    def began(self, step: int) -> None:
        self.heard.append(("began", step))

    def raised(self, raised: SafeTraceback) -> None:
        self.heard.append(("raised", raised))

    def answered(self, answer: Reply | Refusal) -> None:
        self.heard.append(("answered", answer))

    def returned(self) -> None:
        self.heard.append(("returned", None))

    @property
    def is_idle(self) -> bool:
        return False

    def died(self, reason: str) -> None:
        self.heard.append(("died", reason))


class FakeWorker:
    """Stands in for ``WorkerHandle``: the test sends what the process would send."""

    def __init__(self, events: Any, pid: int) -> None:
        self._events = events
        self._pid = pid
        self.pid: int | None = None
        self.sent: list[Request] = []
        self.killed: list[str] = []
        self.retired: list[str] = []
        self.memory_bytes = 1_000
        self.worn = ""
        self.has_ended = False
        self.is_disconnected = False
        self.listing: Mapping[str, Any] = listing_of()
        self.cancelled: list[int] = []
        self.last_step = 0, 0.0
        self._jobs: dict[int, Job] = {}

    # What the server does with it.

    def cpu_s(self) -> float:
        return 0.25 * len(self.sent)

    def send(self, requests: Sequence[Request], jobs: Sequence[Job]) -> None:
        is_useless = self.has_ended or self.is_disconnected or self.killed
        assert not is_useless, "a worker that is about to end was given a job"
        self.sent += requests
        self._jobs.update(zip((request.id for request in requests), jobs, strict=True))

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)

    def kill(self, why: str) -> None:
        self.killed.append(why)
        self._jobs.clear()

    def retire(self, why: str) -> None:
        self.retired.append(why)
        self.kill(why)

    def resident_bytes(self) -> int:
        return self.memory_bytes

    # What the test has it do.

    def say_hello(self) -> None:
        self.pid = self._pid
        self._events.worker_said_hello(self, WorkerHello(self._pid, self.listing))

    def be_ready(self) -> None:
        self.say_hello()
        self.answer(SELF_TEST.result)

    @property
    def running(self) -> list[Request]:
        """The requests that it has not answered."""
        return [request for request in self.sent if request.id in self._jobs]

    def answer(self, poem: bytes | None = None, of: bytes | None = None) -> None:
        """Answer the last request, or one ``of`` a poem, by default with its own poem."""
        request = self._request(of)
        self._jobs.pop(request.id).answered(Reply(request.id, request.poem if poem is None else poem))

    def refuse(self, error: Any, of: bytes | None = None) -> None:
        request = self._request(of)
        self._jobs.pop(request.id).answered(Refusal(request.id, error))

    def answer_with(self, answer: Reply | Refusal) -> None:
        self._jobs.pop(answer.id).answered(answer)

    def answer_all(self) -> None:
        """Answer a batch."""
        for request in self.running:
            if request.id in self._jobs:
                self._jobs.pop(request.id).answered(Reply(request.id, request.poem))

    def return_all(self) -> None:
        """Say that a batch has failed."""
        for request in self.running:
            if request.id in self._jobs:
                self._jobs.pop(request.id).returned()

    def _request(self, poem: bytes | None) -> Request:
        if poem is None:
            return self.sent[-1]
        (request,) = [each for each in self.running if each.poem == poem]
        return request

    def raised(self, raised: SafeTraceback) -> None:
        self._jobs[self.sent[-1].id].raised(raised)

    def load(self, *key: str) -> None:
        """Begin to import a plugin."""
        self._events.worker_loading(self, {"loading": list(key)})

    def warm_up(self, *key: str) -> None:
        """Begin to warm up a plugin."""
        self._events.worker_loading(self, {"warming_up": list(key)})

    def ask_for_time(self, seconds: float) -> None:
        """Ask for this long for the plugin that it imports."""
        self._events.worker_loading(self, {"timeout_s": seconds})

    def begin(self, step: int) -> None:
        self._jobs[self.sent[-1].id].began(step)

    def send_rubbish(self) -> None:
        """Send something that nobody asked for, as far as the supervisor hears of it."""
        if not self.killed:
            self.kill("sent an invalid message")
            self.disconnect()

    def disconnect(self) -> None:
        self.is_disconnected = True
        self._events.worker_disconnected(self)

    @property
    def has_job(self) -> bool:
        """Whether it runs a job other than its self-test."""
        return len(self.sent) > 1 and bool(self._jobs)

    def end(self, reason: str = "was killed by SIGSEGV") -> None:
        assert not self.has_ended
        self.has_ended = True
        self._events.worker_ended(self, self.killed[0] if self.killed else reason)


class Launcher:
    """Starts fake workers, or raises ``error``, or none while it ``is_loading``."""

    def __init__(self) -> None:
        self.workers: list[FakeWorker] = []
        self.error: OSError | None = None
        self.is_loading = False
        self.left_out: dict[PluginKey, str] = {}
        self.timeouts_s: dict[PluginKey, float] = {}
        self.slow: list[tuple[PluginKey, str]] = []
        self.started_again: list[str] = []
        self.events: Any = None

    def launch(self) -> Any:
        if self.error is not None:
            raise self.error
        if self.is_loading:
            return None
        self.workers.append(FakeWorker(self.events, pid=100 + len(self.workers)))
        return self.workers[-1]

    def resident_bytes(self) -> int:
        return 2_000

    def leave_out(self, key: PluginKey, reason: str) -> None:
        self.left_out[key] = reason

    def is_slow(self, key: PluginKey, did: str) -> None:
        self.slow.append((key, did))

    def end(self, why: str) -> None:
        self.started_again.append(why)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    @property
    def alive(self) -> list[FakeWorker]:
        """The workers that have neither ended nor been killed."""
        return [worker for worker in self.workers if not worker.has_ended and not worker.killed]

    def end_all(self) -> None:
        """End the processes that are left."""
        for worker in self.workers:
            if not worker.has_ended:
                worker.end()


class Asker:
    """A reader that has room for results, or has not; ``caller`` is what it asks as."""

    def __init__(self, takes_results: bool = True, share: str = "192.0.2.1") -> None:
        self.takes_results = takes_results
        self.caller = Caller(share, self)


class Pool:
    """A pool of fake workers."""

    def __init__(
        self, clock: Clock, size: int = 1, self_test: SelfTest | None = SELF_TEST, spares: int = 1, **limits: Any
    ) -> None:
        self.launcher = Launcher()
        self.history = WorkerHistory()
        self.pool = WorkerPool(
            size=size,
            launcher=cast(Any, self.launcher),
            self_test=self_test,
            limits=Limits(**limits),
            clock=clock,
            history=self.history,
            spares=spares,
        )
        self.workers = self.launcher.workers

    def start(self) -> "Pool":
        """Start the pool and make its workers ready."""
        self.pool.start()
        self.make_ready()
        return self

    def make_ready(self) -> None:
        """Make each starting worker ready."""
        for worker in self.launcher.alive:
            if worker.pid is None:
                worker.be_ready()

    def run(
        self, spec: str = "upper", poem: bytes = b"a", caller: Caller = PROGRAM, timeout_s: float | None = None
    ) -> Deferred[bytes]:
        return self.pool.run(calls_of(spec), poem, caller, timeout_s=timeout_s)

    def run_all(self, spec: str, *poems: bytes, caller: Caller = PROGRAM) -> list[Deferred[bytes]]:
        return [self.run(spec, poem, caller) for poem in poems]

    def worker_of(self, poem: bytes) -> FakeWorker:
        """Return the worker that runs the job with this poem."""
        (worker,) = [w for w in self.launcher.alive if any(request.poem == poem for request in w.running)]
        return worker

    def groups(self) -> list[list[bytes]]:
        """Return the poems of the jobs that run, together by worker."""
        running = [[request.poem for request in worker.running] for worker in self.launcher.alive]
        return sorted(poems for poems in running if poems)

    def poems(self) -> list[bytes]:
        """Return the poem of every job that was ever started, worker by worker."""
        return [request.poem for worker in self.workers for request in worker.sent[1:]]


class Site:
    """A service with a pool of fake workers; ``transforms`` join those of ``REGISTRY``."""

    def __init__(self, clock: Clock, *transforms: Transform, **limits: Any) -> None:
        self.clock = clock
        self.registry = registry_of(*transforms, upper, lower, hasty)
        self.inline = InlineRunner(Limits().max_result_bytes, clock)
        self.pool = Pool(clock, **limits).start()
        self.service = TransformService(self.generation(self.pool), Limits(**limits), clock)

    def generation(self, pool: Pool) -> Generation:
        return Generation(self.registry, self.inline, pool.pool, None, pool.pool.quarantine)

    def swap(self) -> tuple[Pool, Deferred[None]]:
        """Switch to a fresh generation; return its pool, and what fires when the old one has finished."""
        fresh = Pool(self.clock).start()
        return fresh, self.service.swap(self.generation(fresh))

    def xform(self, spec: str, poem: bytes, **options: Any) -> Deferred[bytes]:
        result = self.service.xform(parse(spec), poem, **options)
        assert isinstance(result, Deferred)
        return result
