"""TransformService: whatever a transform does, its caller gets an error of the table and the log says it once."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import REGISTRY, Asker, Pool
from support.logs import Log
from support.registries import registry_of
from xformd import (
    BadOptions,
    Busy,
    Cancelled,
    GibberishError,
    InternalError,
    NoSuchTransform,
    ShuttingDown,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    XformError,
    transform,
)
from xformd.limits import Limits
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.runners.policy import MAX_DEATHS
from xformd.service import TransformService
from xformd.spec import parse_readable


@transform
def upper(poem: str) -> str:
    return poem.upper()


@transform
def backwards(poem: bytes) -> bytes:
    return poem[::-1]


@transform
def repeat(poem: str, *, times: int) -> str:
    return poem * times


class Waiting:
    """A transform whose results the test decides."""

    def __init__(self, timeout: float | None = None) -> None:
        self.asked: list[str] = []
        self.results: list[Deferred[Any]] = []
        self.cancelled = 0

        @transform(timeout=timeout)
        def later(poem: str) -> Deferred[str]:
            self.asked.append(poem)
            self.results.append(Deferred(self._cancel))
            return self.results[-1]

        self.transform = later

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def service_of(clock: Clock, *transforms: Any, **limits: Any) -> TransformService:
    return TransformService.inline(registry_of(*transforms), Limits(**limits), clock)


def test_an_inline_transform_gives_its_result_at_once(clock: Clock) -> None:
    service = service_of(clock, upper)
    assert service.xform(parse_readable("upper"), "Dé".encode()) == "DÉ".encode()
    assert clock.getDelayedCalls() == []


def test_a_pipeline_runs_its_steps_in_turn(clock: Clock) -> None:
    service = service_of(clock, upper, backwards, repeat)
    assert service.xform(parse_readable("upper+backwards+repeat:times=2"), b"abc") == b"CBACBA"


def test_a_deferred_result_comes_later(clock: Clock, waiting: Waiting) -> None:
    result = service_of(clock, waiting.transform).xform(parse_readable("later"), b"poem")
    assert isinstance(result, Deferred)
    assert not has_fired(result)
    waiting.results[0].callback("done")
    assert result_of(result) == b"done"
    assert clock.getDelayedCalls() == []


def test_a_pipeline_goes_on_after_a_deferred(clock: Clock, waiting: Waiting) -> None:
    service = service_of(clock, upper, backwards, waiting.transform)
    result = service.xform(parse_readable("backwards+later+upper+later"), b"ab")
    assert isinstance(result, Deferred)
    assert waiting.asked == ["ba"]
    waiting.results[0].callback("x")
    assert waiting.asked == ["ba", "X"]
    waiting.results[1].callback("y")
    assert result_of(result) == b"y"


def test_an_async_function_is_awaited(clock: Clock) -> None:
    pause: Deferred[None] = Deferred()

    @transform
    async def slowly(poem: str) -> str:
        await pause
        return poem.upper()

    result = service_of(clock, slowly).xform(parse_readable("slowly"), b"a")
    assert isinstance(result, Deferred)
    pause.callback(None)
    assert result_of(result) == b"A"


@pytest.mark.parametrize("spec", ["nope", "upper+nope"])
def test_an_unknown_name_runs_nothing(clock: Clock, spec: str, waiting: Waiting) -> None:
    service = service_of(clock, upper, waiting.transform)
    with pytest.raises(NoSuchTransform):
        service.xform(parse_readable(spec), b"")
    with pytest.raises(BadOptions, match="upper has no option 'loud'"):
        service.xform(parse_readable("later+upper:loud=1"), b"")
    assert waiting.asked == []


def test_bytes_that_are_no_text_are_gibberish_to_a_text_transform_alone(clock: Clock) -> None:
    service = service_of(clock, upper, backwards)
    with pytest.raises(GibberishError, match="upper takes text"):
        service.xform(parse_readable("upper"), b"\xff\x00")
    assert service.xform(parse_readable("backwards"), b"\xff\x00") == b"\x00\xff"


RAISED = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_transform_that_raises_fails_alone_and_is_logged_once_with_its_plugin(
    clock: Clock, log: Log, error: BaseException
) -> None:
    @transform
    def broken(poem: str) -> str:
        raise error

    service = service_of(clock, broken, upper)
    with pytest.raises(TransformFailed, match=f"^broken raised {type(error).__name__}$") as caught:
        service.xform(parse_readable("broken"), b"")
    assert str(error) in caught.value.detail
    assert "test_service.py, line " in caught.value.detail
    assert log.lines == ["transform broken of plugin xformd-verses 1.0 (verses) failed"]
    assert log.tracebacks[0]["error"].startswith(type(error).__name__)
    assert 'test_service.py", line' in log.tracebacks[0]["traceback"]
    assert service.xform(parse_readable("upper"), b"a") == b"A"


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_an_async_transform_that_raises_fails_alone_and_is_logged_once(
    clock: Clock, log: Log, error: BaseException
) -> None:
    @transform
    async def broken(poem: str) -> str:
        raise error

    result = service_of(clock, broken).xform(parse_readable("broken"), b"")
    assert isinstance(result, Deferred)
    error_of(result, TransformFailed)
    assert len(log.tracebacks) == len(log) == 1


def test_a_transform_that_fails_again_and_again_leaves_one_traceback_a_second(clock: Clock, log: Log) -> None:
    @transform
    def broken(poem: str) -> str:
        raise ValueError("no")

    service = service_of(clock, broken)

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(TransformFailed):
                service.xform(parse_readable("broken"), b"")

    failed = "transform broken of plugin xformd-verses 1.0 (verses) failed"
    fail(1)
    clock.advance(0.5)
    fail(3)
    assert log.lines == [failed]
    clock.advance(0.5)
    assert log.lines == [failed, f"{failed}, the last of 3 times within a second"]
    fail(1)
    clock.advance(5)
    assert log.lines[2:] == [failed]
    assert len(log.tracebacks) == 3


def test_a_refusal_reaches_the_caller_and_is_no_fault(clock: Clock, log: Log) -> None:
    @transform
    def picky(poem: str) -> str:
        raise GibberishError("not in my house")

    with pytest.raises(GibberishError, match="not in my house"):
        service_of(clock, picky).xform(parse_readable("picky"), b"")
    assert log.lines == []


def test_an_exception_that_is_raised_again_and_again_holds_no_poem(clock: Clock) -> None:
    shared = GibberishError("no")

    @transform
    def picky(poem: str) -> str:
        raise shared

    service = service_of(clock, picky)
    for _ in range(3):
        with pytest.raises(GibberishError, match="no") as caught:
            service.xform(parse_readable("picky"), b"poem")
        assert caught.value is not shared
    assert shared.__traceback__ is None


def test_an_exception_that_fails_when_it_is_asked_is_still_explained(clock: Clock) -> None:
    class Mute(GibberishError):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @transform
    def mute(poem: str) -> str:
        raise Mute("x")

    with pytest.raises(GibberishError):
        service_of(clock, mute).xform(parse_readable("mute"), b"")


def test_no_step_begins_after_the_deadline(clock: Clock) -> None:
    @transform
    def slow(poem: str) -> str:
        clock.advance(31)
        return poem

    service = service_of(clock, slow, upper, transform_timeout_s=30)
    assert service.xform(parse_readable("upper+slow"), b"a") == b"A"
    with pytest.raises(TransformTimeout, match="30 s were over before upper began"):
        service.xform(parse_readable("slow+upper"), b"a")
    with pytest.raises(TransformTimeout, match="before slow began"):
        service.xform(parse_readable("slow+slow"), b"a")


def test_an_option_may_be_called_like_anything(clock: Clock) -> None:
    @transform
    def odd(text: str, *, poem: str = "", self: str = "", function: str = "", transform: str = "") -> str:
        return text + poem + self + function + transform

    spec = parse_readable("odd:poem=1,self=2,function=3,transform=4")
    assert service_of(clock, odd).xform(spec, b"0") == b"01234"


def test_an_error_that_only_a_server_may_give_is_a_fault_of_the_transform(clock: Clock, log: Log) -> None:
    @transform
    def liar(poem: str) -> str:
        raise InternalError("it was the server")

    with pytest.raises(TransformFailed, match="liar raised InternalError"):
        service_of(clock, liar).xform(parse_readable("liar"), b"")
    assert len(log.tracebacks) == 1


@pytest.mark.parametrize("value", [None, 3, b"bytes"])
def test_a_result_that_is_no_poem_is_a_failure(clock: Clock, value: Any) -> None:
    @transform
    def wrong(poem: str) -> str:
        return value  # type: ignore[no-any-return]

    @transform
    async def wrong_later(poem: str) -> str:
        return value  # type: ignore[no-any-return]

    service = service_of(clock, wrong, wrong_later)
    with pytest.raises(TransformFailed, match="wrong returned"):
        service.xform(parse_readable("wrong"), b"")
    result = service.xform(parse_readable("wrong-later"), b"")
    assert isinstance(result, Deferred)
    error_of(result, TransformFailed)


def test_a_result_over_the_limit_is_too_large_with_both_figures(clock: Clock) -> None:
    service = service_of(clock, repeat, upper, max_result_bytes=10)
    assert service.xform(parse_readable("repeat:times=10"), b"a") == b"a" * 10
    with pytest.raises(TooLarge, match="has 11 bytes; the limit is 10 bytes"):
        service.xform(parse_readable("repeat:times=11"), b"a")
    with pytest.raises(TooLarge, match="has 12 bytes"):
        service.xform(parse_readable("repeat:times=6+upper"), "é".encode())


def test_a_late_transform_is_given_up_at_the_deadline(clock: Clock, waiting: Waiting) -> None:
    result = service_of(clock, waiting.transform, transform_timeout_s=30).xform(parse_readable("later"), b"")
    assert isinstance(result, Deferred)
    clock.advance(29.9)
    assert not has_fired(result)
    clock.advance(0.1)
    assert error_of(result, TransformTimeout).message == "later took longer than its 30 s"
    assert waiting.cancelled == 1


def test_a_transforms_own_timeout_counts_where_it_is_shorter(clock: Clock) -> None:
    short, long = Waiting(timeout=2), Waiting(timeout=200)
    for own, expected in ((short, 2), (long, 30)):
        result = service_of(clock, own.transform, transform_timeout_s=30).xform(parse_readable("later"), b"")
        assert isinstance(result, Deferred)
        clock.advance(expected)
        assert error_of(result, TransformTimeout).message == f"later took longer than its {expected} s"


def test_the_steps_of_a_pipeline_share_one_deadline(clock: Clock, waiting: Waiting) -> None:
    service = service_of(clock, waiting.transform, transform_timeout_s=30)
    result = service.xform(parse_readable("later+later"), b"")
    assert isinstance(result, Deferred)
    clock.advance(20)
    waiting.results[0].callback("half")
    clock.advance(10)
    error_of(result, TransformTimeout)


def test_cancelling_reaches_the_transform_and_leaves_no_timer(clock: Clock, waiting: Waiting, log: Log) -> None:
    service = service_of(clock, waiting.transform, upper)
    for spec in ("later", "later+upper"):
        result = service.xform(parse_readable(spec), b"")
        assert isinstance(result, Deferred)
        result.cancel()
        error_of(result, Cancelled)
    assert waiting.cancelled == 2
    assert clock.getDelayedCalls() == []
    assert log.lines == []


def test_a_transform_that_will_not_be_cancelled_changes_nothing(clock: Clock, log: Log) -> None:
    pause: Deferred[None] = Deferred()

    @transform
    async def stubborn(poem: str) -> str:
        try:
            await pause
        except BaseException:
            return await Deferred()
        return poem

    @transform
    def explosive(poem: str) -> Deferred[str]:
        def explode(_: object) -> None:
            raise RuntimeError("boom")

        return Deferred(explode)

    service = service_of(clock, stubborn, explosive, transform_timeout_s=1)
    results = [service.xform(parse_readable(name), b"") for name in ("stubborn", "explosive")]
    clock.advance(1)
    for result in results:
        assert isinstance(result, Deferred)
        error_of(result, TransformTimeout)
    assert log.lines == ["transform explosive failed to be cancelled"]


def test_a_result_that_comes_after_the_deadline_is_dropped(clock: Clock) -> None:
    # A Deferred without a canceller of its own takes the late result; one that was told already does not mind.
    uncancellable: Deferred[str] = Deferred()

    @transform
    def late(poem: str) -> Deferred[str]:
        return uncancellable

    result = service_of(clock, late, transform_timeout_s=1).xform(parse_readable("late"), b"")
    assert isinstance(result, Deferred)
    clock.advance(1)
    uncancellable.callback("too late")
    error_of(result, TransformTimeout)


def test_a_fault_of_xformd_itself_gives_an_id_that_is_in_the_log(clock: Clock, log: Log) -> None:
    service = TransformService.inline(None, Limits(), clock)  # type: ignore[arg-type]
    with pytest.raises(InternalError) as caught:
        service.xform(parse_readable("upper"), b"")
    assert isinstance(caught.value, XformError)
    assert log.lines == [f"internal error {caught.value.message}"]


# With workers.


class Site:
    """A service with a pool of fake workers."""

    def __init__(self, clock: Clock, **limits: Any) -> None:
        self.clock = clock
        self.limits = Limits(**limits)
        self.inline = InlineRunner(1_000, clock)
        self.pool = Pool(clock, **limits).start()
        self.service = TransformService(self.generation(self.pool), self.limits, clock)

    def generation(self, pool: Pool) -> Generation:
        return Generation(REGISTRY, self.inline, pool.pool, None, pool.pool.quarantine)

    def xform(self, spec: str, poem: bytes, **options: Any) -> Deferred[bytes]:
        result = self.service.xform(parse_readable(spec), poem, **options)
        assert isinstance(result, Deferred)
        return result


@pytest.fixture
def site(clock: Clock) -> Site:
    return Site(clock)


def test_a_worker_runs_what_needs_one(site: Site) -> None:
    result = site.xform("upper+lower", b"x")
    site.pool.worker_of(b"x").answer(b"X")
    assert result_of(result) == b"X"
    assert site.clock.getDelayedCalls() == []


def test_a_request_whose_deadline_passes_while_it_waits_never_runs(site: Site) -> None:
    first, second = site.xform("upper", b"1"), site.xform("upper", b"2", timeout_s=5)
    site.clock.advance(5)
    assert error_of(second, TransformTimeout).message == "upper took longer than its 5 s"
    site.pool.worker_of(b"1").answer()
    assert result_of(first) == b"1"
    assert site.pool.poems() == [b"1"]
    assert site.pool.pool.waiting == 0


def test_a_request_that_runs_past_its_deadline_ends_with_its_worker(site: Site) -> None:
    result = site.xform("upper+lower", b"1", timeout_s=5)
    worker = site.pool.worker_of(b"1")
    site.clock.advance(5)
    assert error_of(result, TransformTimeout).message == "upper+lower took longer than its 5 s"
    assert worker.killed == ["its job was cancelled"]


def test_cancelling_ends_the_work_wherever_it_is(site: Site) -> None:
    running, waiting = site.xform("upper", b"1"), site.xform("upper", b"2")
    worker = site.pool.worker_of(b"1")
    waiting.cancel()
    error_of(waiting, Cancelled)
    assert site.pool.pool.waiting == 0
    running.cancel()
    error_of(running, Cancelled)
    assert worker.killed


def test_a_stop_gives_up_what_is_in_flight_in_every_generation(site: Site) -> None:
    old = site.xform("upper", b"old")
    swapped = site.service.swap(site.generation(Pool(site.clock).start()))
    new = site.xform("upper", b"new")
    site.service.stop()
    for result in (old, new):
        assert error_of(result, ShuttingDown).retry_after_ms is None  # it may have begun
    assert has_fired(swapped)


def test_a_swap_is_over_when_the_old_generation_has_ended_what_it_began(site: Site) -> None:
    old = site.xform("upper", b"old")
    fresh = Pool(site.clock).start()
    swapped = site.service.swap(site.generation(fresh))
    new = site.xform("upper", b"new")
    fresh.worker_of(b"new").answer()
    assert result_of(new) == b"new"
    assert not has_fired(swapped)
    site.pool.worker_of(b"old").answer()
    assert result_of(old) == b"old"
    assert has_fired(swapped)


def test_a_generation_that_has_ended_what_it_began_is_forgotten(site: Site) -> None:
    fresh, newest = Pool(site.clock).start(), Pool(site.clock).start()
    old = site.generation(fresh)
    remembered = weakref.ref(old)
    site.service.swap(old)
    del old
    result = site.xform("upper", b"a")
    site.service.swap(site.generation(newest))
    gc.collect()
    assert remembered() is not None
    fresh.worker_of(b"a").answer()
    assert result_of(result) == b"a"
    gc.collect()
    assert remembered() is None


def test_room_is_told_to_every_generation(site: Site) -> None:
    asker = Asker()
    asker.takes_results = False
    held = site.xform("upper", b"old", caller=asker)
    site.service.swap(site.generation(Pool(site.clock).start()))
    assert site.pool.poems() == []
    asker.takes_results = True
    site.service.caller_has_room(asker)
    site.pool.worker_of(b"old").answer()
    assert result_of(held) == b"old"


def test_a_full_queue_is_told_at_once(clock: Clock) -> None:
    site = Site(clock, max_queue=1)
    site.xform("upper", b"1")
    site.xform("upper", b"2")
    with pytest.raises(Busy):
        site.xform("upper", b"3")


def test_a_quarantine_is_shown(site: Site) -> None:
    for _ in range(MAX_DEATHS):
        site.pool.pool.quarantine.died("upper", 0)
    states = {described["name"]: described["state"] for described in site.service.describe()["transforms"]}
    assert states == {"hasty": "active", "lower": "active", "upper": "quarantined"}


def test_a_runner_that_breaks_its_word_is_a_fault_of_xformd(clock: Clock, log: Log) -> None:
    broken: Deferred[bytes] = Deferred()

    class Runner(InlineRunner):
        def run(self, *_: object, **__: object) -> Deferred[bytes]:
            return broken

    service = TransformService(Generation(REGISTRY, Runner(1, clock)), Limits(), clock)
    result = service.xform(parse_readable("upper"), b"")
    assert isinstance(result, Deferred)
    broken.errback(ValueError("not of the table"))
    assert log.lines == [f"internal error {error_of(result, InternalError).message}"]
    assert log.tracebacks[0]["error"] == "ValueError"


@pytest.mark.parametrize("spec", ["later", "upper", "upper+later"])
def test_what_has_no_time_left_when_it_comes_never_begins(clock: Clock, waiting: Waiting, spec: str) -> None:
    service = service_of(clock, upper, waiting.transform)
    with pytest.raises(TransformTimeout, match="no time was left"):
        service.xform(parse_readable(spec), b"a", timeout_s=0)
    assert waiting.asked == []
