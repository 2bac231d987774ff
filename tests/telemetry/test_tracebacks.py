"""What a log says of an exception: its type, its place and its causes, and none of its words."""

import errno
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from twisted.python.failure import Failure

from xformd import GibberishError
from xformd.telemetry.tracebacks import MAX_FRAMES, MAX_TRACEBACK_CHARACTERS, SafeTraceback, report_uncaught

POEM = "TheOwlOfTheLog"


def raised(raise_it: Callable[[], Any]) -> SafeTraceback:
    try:
        raise_it()
    except BaseException as error:
        return SafeTraceback.redacted(error)
    raise AssertionError("it raised nothing")


def quotes_the_poem() -> None:
    raise ValueError(POEM)


def has_a_cause() -> None:
    try:
        quotes_the_poem()
    except ValueError as error:
        raise KeyError(POEM) from error


def raises_while_it_handles() -> None:
    try:
        quotes_the_poem()
    except ValueError:
        raise KeyError(POEM)  # noqa: B904


def hides_what_was_before() -> None:
    try:
        quotes_the_poem()
    except ValueError:
        raise KeyError(POEM) from None


def adds_a_note() -> None:
    error = ValueError(POEM)
    error.add_note(POEM)
    raise error


def makes_a_group() -> None:
    raise ExceptionGroup(POEM, [ValueError(POEM), KeyError(POEM)])


def compiles_the_poem() -> None:
    compile(f"{POEM} {POEM}", f"<{POEM}>", "exec")


def runs_the_poem() -> None:
    exec(f"def {POEM}():\n    raise ValueError\n{POEM}()", {})


def refuses_the_poem() -> None:
    raise GibberishError(POEM)


EVERY = [
    quotes_the_poem,
    has_a_cause,
    raises_while_it_handles,
    adds_a_note,
    makes_a_group,
    compiles_the_poem,
    runs_the_poem,
    refuses_the_poem,
]


@pytest.mark.parametrize("raise_it", EVERY, ids=lambda function: function.__name__)
def test_no_word_of_it_is_told_and_its_place_is(raise_it: Callable[[], None]) -> None:
    fault = raised(raise_it)
    assert POEM not in fault.error + fault.traceback
    assert 'test_tracebacks.py", line ' in fault.traceback
    assert f", in {raise_it.__name__}" in fault.traceback


def test_it_reads_like_a_traceback() -> None:
    fault = raised(quotes_the_poem)
    assert fault.error == "ValueError"
    lines = fault.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2].startswith('  File "')
    assert lines[-2].endswith(", in quotes_the_poem")
    assert lines[-1] == "ValueError"


@pytest.mark.parametrize(
    ("raise_it", "says"),
    [
        (has_a_cause, "The above exception was the direct cause of the following exception:"),
        (raises_while_it_handles, "During handling of the above exception, another exception occurred:"),
    ],
)
def test_what_led_to_it_comes_before_it(raise_it: Callable[[], None], says: str) -> None:
    before, _, after = raised(raise_it).traceback.partition(says)
    assert before.rstrip().endswith("in quotes_the_poem\nValueError")
    assert after.endswith("\nKeyError")


def test_what_the_plugin_hides_stays_hidden() -> None:
    assert "ValueError" not in raised(hides_what_was_before).traceback


def test_of_an_error_of_the_system_the_systems_words_are_told() -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, POEM, POEM)

    assert raised(fail).error == "OSError: No space left on device"


@pytest.mark.parametrize("number", [10**30, -1, POEM, None])
def test_a_number_that_no_system_has_is_passed_over(number: object) -> None:
    assert SafeTraceback.redacted(OSError(number, POEM)).error == "OSError"


def test_a_failure_that_has_lost_its_traceback_has_its_places_still() -> None:
    try:
        quotes_the_poem()
    except ValueError:
        failure = Failure()
    failure.cleanFailure()
    assert failure.value is not None
    assert failure.value.__traceback__ is None
    assert "in quotes_the_poem" in SafeTraceback.redacted(failure.value, failure.getTracebackObject()).traceback


def test_a_recursion_without_end_and_causes_without_end_are_cut() -> None:
    def deep() -> None:
        deep()

    assert raised(deep).traceback.count("in deep") == MAX_FRAMES
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert SafeTraceback.redacted(first).traceback.count("Error") == 2
    chain = ValueError()
    for _ in range(100):
        after = ValueError()
        after.__cause__, chain = chain, after
    assert SafeTraceback.redacted(chain).traceback.count("ValueError") < 10


def test_a_class_that_does_not_want_to_be_looked_at_is_told_by_its_name() -> None:
    class Shy(Exception):
        @property
        def __cause__(self) -> Any:
            raise RuntimeError(POEM)

        def __str__(self) -> str:
            raise RuntimeError(POEM)

    assert SafeTraceback.redacted(Shy()) == SafeTraceback("Shy", "Shy")


def test_what_a_worker_says_of_a_fault_is_cut_and_printable() -> None:
    fault = SafeTraceback("Owl\n\x1b[2J", "a\x1b[2J\nb" + "c" * 10**6)
    assert fault.error.isprintable()
    assert fault.traceback.startswith("a\ufffd[2J\nbccc")
    assert len(fault.traceback) <= MAX_TRACEBACK_CHARACTERS


def test_for_its_author_it_is_told_in_full() -> None:
    with pytest.raises(KeyError) as caught:
        has_a_cause()
    assert SafeTraceback.unredacted(caught.value).traceback.count(POEM) >= 2


class Careless:
    def __del__(self) -> None:
        raise ValueError(POEM)


def test_what_nobody_can_catch_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    told: list[tuple[str, SafeTraceback]] = []
    report_uncaught(lambda where, fault: told.append((where, fault)))
    for target in (quotes_the_poem, sys.exit):
        thread = threading.Thread(target=target, name="owl")
        thread.start()
        thread.join()
    Careless()
    assert [(where, fault.error) for where, fault in told] == [
        ("uncaught in the thread owl", "ValueError"),
        ("raised where nobody can catch it", "ValueError"),
    ]
    assert all("Traceback" in fault.traceback and POEM not in fault.traceback for _, fault in told)
