"""TransformService: whatever a transform does, its caller gets an error of the table and the log has it once."""

import asyncio
import gc
import json
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from support.deferreds import error_of, has_fired, result_of
from support.fakes import Asker, Pool, Site
from support.logs import Log
from support.registries import registry_of
from xformd import (
    BadOptions,
    Cancelled,
    DefinitionError,
    GibberishError,
    InternalError,
    NoSuchTransform,
    ShuttingDown,
    TooLarge,
    TransformFailed,
    TransformTimeout,
    Unavailable,
    XformError,
    transform,
)
from xformd.limits import Limits
from xformd.runners.groups import LONG_BYTES
from xformd.runners.supervisor import WATCH_MEMORY_EVERY_S
from xformd.service import TransformService
from xformd.spec import parse_readable
from xformd.telemetry.tracebacks import MakeTraceback, SafeTraceback


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


class Asked:
    def __init__(
        self,
        clock: Clock,
        *functions: Any,
        make_traceback: MakeTraceback = SafeTraceback.redacted,
        **limits: Any,
    ) -> None:
        transforms = [each if hasattr(each, "function") else transform(each) for each in functions]
        self.service = TransformService.inline(
            registry_of(*transforms), Limits(**limits), clock, make_traceback=make_traceback
        )

    def now(self, spec: str, poem: bytes = b"", **options: Any) -> bytes:
        result = self.service.xform(parse_readable(spec), poem, **options)
        assert isinstance(result, bytes)
        return result

    def later(self, spec: str, poem: bytes = b"", **options: Any) -> Deferred[bytes]:
        result = self.service.xform(parse_readable(spec), poem, **options)
        assert isinstance(result, Deferred)
        return result


# What a transform returns.


def test_an_inline_transform_answers_at_once(clock: Clock) -> None:
    assert Asked(clock, upper).now("upper", "Dé".encode()) == "DÉ".encode()
    assert clock.getDelayedCalls() == []


class Poet:
    """An object of a program's own."""

    def __init__(self, ending: str) -> None:
        self.ending = ending

    def exclaim(self, poem: str, *, times: int = 1) -> str:
        return poem + self.ending * times


async def patient(poem: bytes) -> bytes:
    return poem


def test_a_program_may_have_transforms_without_any_plugin(clock: Clock) -> None:
    service = TransformService.from_functions(Poet("!").exclaim, upper, patient, reactor=clock)
    assert service.xform(parse_readable("exclaim:times=2+upper"), b"owl") == b"OWL!!"
    patiently = service.xform(parse_readable("patient"), b"owl")
    assert isinstance(patiently, Deferred)
    assert result_of(patiently) == b"owl"
    assert [each["name"] for each in json.loads(service.listing())["transforms"]] == ["exclaim", "patient", "upper"]
    with pytest.raises(NoSuchTransform):
        service.xform(parse_readable("cummingsify"), b"owl")


def test_the_limits_are_the_programs(clock: Clock) -> None:
    def never(poem: str) -> Deferred[str]:
        return Deferred()

    limits = Limits(transform_timeout_s=5, max_result_bytes=3)
    service = TransformService.from_functions(never, upper, limits=limits, reactor=clock)
    waiting = service.xform(parse_readable("never"), b"owl")
    clock.advance(5)
    assert isinstance(waiting, Deferred)
    error_of(waiting, TransformTimeout)
    with pytest.raises(TooLarge):
        service.xform(parse_readable("upper"), b"owls")


def unannotated(poem):  # type: ignore[no-untyped-def]
    return poem.lower()


@pytest.mark.parametrize(
    ("functions", "says"),
    [
        ([upper, str.upper], "transform 'upper': annotate the poem: write self: str, self: bytes or self: Path"),
        ([unannotated], "transform 'unannotated': annotate the poem: write poem: str, poem: bytes or poem: Path"),
        ([Poet("!").exclaim, Poet("?").exclaim], "two transforms have the same name: exclaim, exclaim"),
        ([Poet("!")], "cannot read its signature"),
    ],
)
def test_a_function_that_is_no_transform_is_an_error_at_once(clock: Clock, functions: list[Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(says)):
        TransformService.from_functions(*functions, reactor=clock)


def test_a_pipeline_runs_its_steps_in_turn(clock: Clock) -> None:
    assert Asked(clock, upper, backwards, repeat).now("upper+backwards+repeat:times=2", b"abc") == b"CBACBA"


def test_a_pipeline_goes_on_after_a_deferred(clock: Clock, waiting: Waiting) -> None:
    result = Asked(clock, upper, backwards, waiting.transform).later("backwards+later+upper+later", b"ab")
    assert waiting.asked == ["ba"]
    waiting.results[0].callback("x")
    assert waiting.asked == ["ba", "X"]
    assert not has_fired(result)
    waiting.results[1].callback("y")
    assert result_of(result) == b"y"
    assert clock.getDelayedCalls() == []


def test_an_async_function_is_awaited(clock: Clock) -> None:
    pause: Deferred[None] = Deferred()

    async def slowly(poem: str) -> str:
        await pause
        return poem.upper()

    result = Asked(clock, slowly).later("slowly", b"a")
    pause.callback(None)
    assert result_of(result) == b"A"


def test_an_option_may_have_any_name(clock: Clock) -> None:
    def odd(text: str, *, poem: str = "", self: str = "", function: str = "", transform: str = "") -> str:
        return text + poem + self + function + transform

    assert Asked(clock, odd).now("odd:poem=1,self=2,function=3,transform=4", b"0") == b"01234"


# What a client may get wrong.


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        *((spec, NoSuchTransform, "no transform 'nope'") for spec in ("nope", "upper+nope", "later+nope")),
        ("later+upper:loud=1", BadOptions, "upper has no option 'loud'"),
    ],
)
def test_a_wrong_spec_runs_nothing(
    clock: Clock, waiting: Waiting, spec: str, kind: type[XformError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        Asked(clock, upper, waiting.transform).now(spec)
    assert waiting.asked == []


# What a transform may get wrong.

RAISED = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
    asyncio.CancelledError(),
]


class Mute(GibberishError):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raising(error: BaseException) -> Callable[[str], str]:
    def broken(poem: str) -> str:
        raise error

    return broken


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_a_transform_that_raises_is_logged_once_with_its_plugin(clock: Clock, log: Log, error: BaseException) -> None:
    asked = Asked(clock, raising(error), upper)
    with pytest.raises(TransformFailed, match=f"^broken raised {type(error).__name__}$"):
        asked.now("broken")
    assert log.lines == ["transform broken of plugin xformd-verses 1.0 (verses) failed"]
    assert log.tracebacks[0]["error"].startswith(type(error).__name__)
    assert 'test_service.py", line' in log.tracebacks[0]["traceback"]
    assert asked.now("upper", b"a") == b"A"


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_who_runs_a_transform_here_is_told_in_full_what_it_raised(clock: Clock, error: BaseException) -> None:
    asked = Asked(clock, raising(error), make_traceback=SafeTraceback.unredacted)
    with pytest.raises(TransformFailed, match=f"^broken raised {type(error).__name__}: ") as caught:
        asked.now("broken")
    assert str(error) in caught.value.message
    assert "test_service.py, line " in caught.value.message
    assert caught.value.message.endswith(": raise error)")


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_an_async_transform_that_raises_is_logged_once(clock: Clock, log: Log, error: BaseException) -> None:
    async def broken(poem: str) -> str:
        raise error

    error_of(Asked(clock, broken).later("broken"), TransformFailed)
    assert len(log.tracebacks) == len(log) == 1


@pytest.mark.parametrize(
    ("error", "kind", "says", "logged"),
    [
        (GibberishError("not in my house"), GibberishError, "^not in my house$", 0),
        (Mute("x"), GibberishError, None, 0),
        (InternalError("it was the server"), TransformFailed, "broken raised InternalError", 1),
    ],
    ids=["gibberish", "mute", "internal error"],
)
def test_a_transform_may_refuse_a_poem_and_nothing_else(
    clock: Clock, log: Log, error: XformError, kind: type[XformError], says: str | None, logged: int
) -> None:
    with pytest.raises(kind, match=says):
        Asked(clock, raising(error)).now("broken")
    assert len(log.tracebacks) == len(log) == logged


REFUSED = [
    (GibberishError("the owl"), "broken rejects this poem"),
    (BadOptions("the owl"), "broken rejects its options"),
    (TooLarge("the owl"), "broken would return too much"),
    (Unavailable("the owl"), "broken is unavailable"),
    (TransformFailed("the owl"), "broken failed"),
]


@pytest.mark.parametrize(("error", "words"), REFUSED, ids=lambda each: type(each).__name__)
def test_the_log_names_the_transform_that_refuses_and_keeps_its_authors_words_out(
    clock: Clock, error: XformError, words: str
) -> None:
    with pytest.raises(type(error), match=r"^the owl$") as caught:
        Asked(clock, raising(error)).now("broken")
    assert caught.value.log_message == words


def test_a_transform_whose_upstream_is_away_says_when_to_try_again(clock: Clock) -> None:
    with pytest.raises(Unavailable, match=r"^no dictionary$") as caught:
        Asked(clock, raising(Unavailable("no dictionary", retry_after=1.5))).now("broken")
    assert caught.value.retry_after_ms == 1_500


def test_a_transform_that_fails_again_and_again_is_logged_once_a_second(clock: Clock, log: Log) -> None:
    asked = Asked(clock, raising(ValueError("no")))
    for pause_s in (0.5, 0.0, 0.0, 0.5):
        with pytest.raises(TransformFailed):
            asked.now("broken")
        clock.advance(pause_s)
    failed = "transform broken of plugin xformd-verses 1.0 (verses) failed"
    assert log.lines == [failed, f"{failed} (the last of 3 within a second)"]
    assert ["traceback" in each for each in log] == [True, True]


def test_an_exception_that_is_raised_again_and_again_holds_no_poem(clock: Clock) -> None:
    shared = GibberishError("no")
    asked = Asked(clock, raising(shared))
    for _ in range(3):
        with pytest.raises(GibberishError, match="no") as caught:
            asked.now("broken", b"poem")
        assert caught.value is not shared
    assert shared.__traceback__ is None


def test_an_async_result_of_the_wrong_type_is_a_failure(clock: Clock) -> None:
    async def wrong(poem: str) -> str:
        return 3  # type: ignore[return-value]

    error_of(Asked(clock, wrong).later("wrong"), TransformFailed)


def test_a_result_over_the_limit_is_too_large_with_both_figures(clock: Clock) -> None:
    asked = Asked(clock, repeat, upper, max_result_bytes=10)
    assert asked.now("repeat:times=10", b"a") == b"a" * 10
    with pytest.raises(TooLarge, match="has 11 bytes; the limit is 10 bytes"):
        asked.now("repeat:times=11", b"a")
    with pytest.raises(TooLarge, match="has 12 bytes"):
        asked.now("repeat:times=6+upper", "é".encode())


@transform(inline=True, result_bytes=lambda poem_bytes, *, times: poem_bytes * times)
def copies(poem: str, *, times: int = 2) -> str:
    return poem * times


@pytest.mark.parametrize("spec", ["upper+copies:times=4+copies", "copies+upper+copies+copies:times=4", "hasty+upper"])
def test_a_plan_runs_if_it_may_fit(clock: Clock, spec: str) -> None:
    @transform(result_bytes=lambda poem_bytes: poem_bytes // 0)
    def hasty(poem: str) -> str:
        return poem

    assert Asked(clock, copies, upper, hasty, max_result_bytes=9).now(spec, b"") == b""


@pytest.mark.parametrize("spec", ["seen+copies", "seen+copies+copies", "seen+copies+upper+copies"])
def test_a_plan_that_cannot_fit_is_refused_before_its_first_step(clock: Clock, spec: str) -> None:
    poems = []

    @transform(result_bytes=lambda poem_bytes: poem_bytes)
    def seen(poem: str) -> str:
        poems.append(poem)
        return poem

    asked = Asked(clock, seen, copies, upper, max_result_bytes=9)
    with pytest.raises(TooLarge, match="the result of copies would have at least 10 bytes; the limit is 9 bytes"):
        asked.now(spec, b"abcde")
    assert poems == []


def test_each_step_of_a_pipeline_is_held_to_the_limit(clock: Clock, waiting: Waiting) -> None:
    def first(poem: str) -> str:
        return poem[:1]

    asked = Asked(clock, repeat, first, waiting.transform, max_result_bytes=10)
    with pytest.raises(TooLarge, match="the result of repeat has 11 bytes"):
        asked.now("repeat:times=11+first", b"a")
    result = asked.later("later+first")
    waiting.results[0].callback("a" * 11)
    assert "the result of later has 11 bytes" in error_of(result, TooLarge).message


# Turns.


def take_turn(clock: Clock) -> None:
    """Call what is due now, as a reactor does in one of its turns: what that adds is the next one's."""
    for call in [each for each in clock.calls if each.getTime() <= clock.seconds()]:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Working:
    """A service with a transform that holds the reactor for 4 ms, and what it has done."""

    def __init__(self, clock: Clock) -> None:
        self.done: list[str] = []

        def work(poem: str) -> str:
            self.done.append(poem)
            clock.rightNow += 0.004
            return poem

        self.asked = Asked(clock, work)


def test_the_reactor_has_turns_between_the_steps_of_requests_and_one_goes_on_in_each(clock: Clock) -> None:
    working = Working(clock)
    assert working.asked.now("work+work+work", b"quick") == b"quick"
    slow = [working.asked.later("+".join(["work"] * 7), poem) for poem in (b"a", b"b")]
    assert working.done == ["quick"] * 3 + ["a"] * 3 + ["b"] * 3
    take_turn(clock)
    assert working.done[9:] == ["a"] * 3
    take_turn(clock)
    assert working.done[12:] == ["b"] * 3
    for _ in range(2):
        take_turn(clock)
    assert [result_of(each) for each in slow] == [b"a", b"b"]
    assert working.done[15:] == ["a", "b"]
    assert clock.getDelayedCalls() == []


def test_a_request_that_is_given_up_between_its_steps_has_no_turn(clock: Clock) -> None:
    working = Working(clock)
    given_up, late, kept = [
        working.asked.later("+".join(["work"] * 4), poem, timeout_s=seconds)
        for poem, seconds in ((b"a", 9), (b"b", 1), (b"c", 9))
    ]
    given_up.cancel()
    error_of(given_up, Cancelled)
    clock.rightNow += 1
    take_turn(clock)
    assert error_of(late, TransformTimeout).message == "work did not start: the steps before it took all of the 1 s"
    for _ in range(2):
        take_turn(clock)
    assert result_of(kept) == b"c"
    assert working.done == [*"aaabbbcccc"]
    assert clock.getDelayedCalls() == []


# Deadlines and cancelling.


@pytest.mark.parametrize(("own_s", "limit_s"), [(None, 30), (2, 2), (200, 30)])
def test_a_transform_has_its_own_time_and_never_more_than_the_servers(
    clock: Clock, own_s: float | None, limit_s: float
) -> None:
    waiting = Waiting(timeout=own_s)
    result = Asked(clock, waiting.transform, transform_timeout_s=30).later("later")
    clock.advance(limit_s - 0.1)
    assert not has_fired(result)
    clock.advance(0.1)
    assert error_of(result, TransformTimeout).message == f"later took longer than its {limit_s} s"
    assert waiting.cancelled == 1


def test_the_steps_of_a_pipeline_share_one_deadline(clock: Clock, waiting: Waiting) -> None:
    result = Asked(clock, waiting.transform, transform_timeout_s=30).later("later+later")
    clock.advance(20)
    waiting.results[0].callback("half")
    clock.advance(10)
    error_of(result, TransformTimeout)


def test_no_step_begins_after_the_deadline(clock: Clock) -> None:
    def slow(poem: str) -> str:
        clock.advance(31)
        return poem

    asked = Asked(clock, slow, upper, transform_timeout_s=30)
    assert asked.now("upper+slow", b"a") == b"A"
    with pytest.raises(TransformTimeout, match="upper did not start: the steps before it took all of the 30 s"):
        asked.now("slow+upper", b"a")


@pytest.mark.parametrize("spec", ["later", "upper", "upper+later"])
def test_a_request_without_time_left_never_begins(clock: Clock, waiting: Waiting, spec: str) -> None:
    with pytest.raises(TransformTimeout, match="no time was left"):
        Asked(clock, upper, waiting.transform).now(spec, b"a", timeout_s=0)
    assert waiting.asked == []


@pytest.mark.parametrize("spec", ["later", "later+upper"])
def test_cancelling_reaches_the_transform_and_leaves_no_timer(
    clock: Clock, waiting: Waiting, log: Log, spec: str
) -> None:
    result = Asked(clock, waiting.transform, upper).later(spec)
    result.cancel()
    error_of(result, Cancelled)
    assert waiting.cancelled == 1
    assert clock.getDelayedCalls() == []
    assert log.lines == []


def test_a_transform_that_resists_its_cancelling_changes_nothing(clock: Clock, log: Log) -> None:
    async def stubborn(poem: str) -> str:
        try:
            await Deferred()
        except BaseException:
            return await Deferred()
        return poem

    def explosive(poem: str) -> Deferred[str]:
        def explode(_: object) -> None:
            raise RuntimeError("boom")

        return Deferred(explode)

    uncancellable: Deferred[str] = Deferred()  # without a canceller it takes a result even after it was cancelled

    def late(poem: str) -> Deferred[str]:
        return uncancellable

    asked = Asked(clock, stubborn, explosive, late, transform_timeout_s=1)
    results = [asked.later(name) for name in ("stubborn", "explosive", "late")]
    clock.advance(1)
    uncancellable.callback("too late")
    for result in results:
        error_of(result, TransformTimeout)
    assert log.lines == ["transform explosive failed to be cancelled"]


# Faults of xformd itself.


def test_an_internal_error_has_an_id_that_is_in_the_log(clock: Clock, log: Log) -> None:
    service = TransformService.inline(None, Limits(), clock)  # type: ignore[arg-type]
    with pytest.raises(InternalError) as caught:
        service.xform(parse_readable("upper"), b"")
    assert isinstance(caught.value, XformError)
    assert log.lines == [f"internal error {caught.value.message}"]


# With workers.


@pytest.fixture
def site(clock: Clock) -> Site:
    return Site(clock)


def test_a_worker_runs_an_isolated_transform(site: Site) -> None:
    result = site.xform("upper+lower", b"x")
    site.pool.worker_of(b"x").answer(b"X")
    assert result_of(result) == b"X"
    site.clock.advance(WATCH_MEMORY_EVERY_S)
    assert site.clock.getDelayedCalls() == []


def test_the_log_names_the_transform_of_a_worker_that_refuses(site: Site) -> None:
    result = site.xform("upper+lower", b"x")
    worker = site.pool.worker_of(b"x")
    worker.begin(1)
    worker.refuse(GibberishError("the owl"))
    error = error_of(result, GibberishError)
    assert (error.message, error.log_message) == ("the owl", "lower rejects this poem")


def test_a_deadline_ends_a_wait_and_a_run_with_its_worker(site: Site) -> None:
    running, waiting = site.xform("upper+lower", b"1", timeout_s=5), site.xform("upper", b"2", timeout_s=4)
    worker = site.pool.worker_of(b"1")
    site.clock.advance(4)
    message = "upper did not start: no worker was free within 4 s; try again later"
    assert error_of(waiting, TransformTimeout).message == message
    assert (site.pool.pool.waiting, worker.killed) == (0, [])
    site.clock.advance(1)
    assert error_of(running, TransformTimeout).message == "upper+lower took longer than its 5 s"
    assert len(worker.killed) == 1
    assert site.pool.poems() == [b"1"]


def test_a_pipeline_that_has_begun_is_never_too_busy(clock: Clock) -> None:
    @transform(inline=True)
    def quick(poem: str) -> str:
        return poem

    site = Site(clock, quick, max_queue=1)
    pipeline = site.xform("upper+quick+lower", b"1")
    site.xform("upper", b"2")
    long = b"A" * LONG_BYTES  # a result that is passed on before the worker takes the next job: the queue is full still
    site.pool.worker_of(b"1").answer(long)
    site.pool.worker_of(b"2").answer()
    site.pool.worker_of(long).answer(b"done")
    assert result_of(pipeline) == b"done"


# Generations.


def test_a_stop_cancels_the_requests_of_every_generation(site: Site) -> None:
    old = site.xform("upper", b"old")
    _, swapped = site.swap()
    new = site.xform("upper", b"new")
    assert site.service.in_flight == 2
    site.service.stop()
    for result in (old, new):
        assert error_of(result, ShuttingDown).retry_after_ms is None  # it may have begun
    assert has_fired(swapped)


def test_a_swap_is_over_when_the_old_generation_has_finished(site: Site) -> None:
    old = site.xform("upper", b"old")
    fresh, swapped = site.swap()
    new = site.xform("upper", b"new")
    fresh.worker_of(b"new").answer()
    assert result_of(new) == b"new"
    assert not has_fired(swapped)
    site.pool.worker_of(b"old").answer()
    assert result_of(old) == b"old"
    assert has_fired(swapped)


def test_a_finished_generation_is_forgotten(site: Site) -> None:
    fresh = Pool(site.clock).start()
    old = site.generation(fresh)
    remembered = weakref.ref(old)
    site.service.swap(old)
    del old
    result = site.xform("upper", b"a")
    site.swap()
    gc.collect()
    assert remembered() is not None
    fresh.worker_of(b"a").answer()
    assert result_of(result) == b"a"
    gc.collect()
    assert remembered() is None


def test_room_is_told_to_every_generation(site: Site) -> None:
    asker = Asker()
    asker.takes_results = False
    held = site.xform("upper", b"old", caller=asker.caller)
    site.swap()
    assert site.pool.poems() == []
    asker.takes_results = True
    site.service.has_room(asker)
    site.pool.worker_of(b"old").answer()
    assert result_of(held) == b"old"
