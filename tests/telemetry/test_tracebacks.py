"""A redacted traceback has an exception's type, place and causes, and none of its words."""

import errno
import re
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
    raise AssertionError("nothing was raised")


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


@pytest.mark.parametrize(
    "raise_it",
    [
        *(quotes_the_poem, has_a_cause, raises_while_it_handles, adds_a_note),
        *(makes_a_group, compiles_the_poem, runs_the_poem, refuses_the_poem),
    ],
)
def test_the_place_is_there_and_no_word_of_the_message(raise_it: Callable[[], None]) -> None:
    safe = raised(raise_it)
    assert POEM not in safe.error + safe.traceback
    assert 'test_tracebacks.py", line ' in safe.traceback
    assert f", in {raise_it.__name__}" in safe.traceback


def test_it_reads_like_a_traceback_of_python() -> None:
    safe = raised(quotes_the_poem)
    assert safe.error == "ValueError"
    layout = r'Traceback \(most recent call last\):\n(  File ".*\n)*  File ".*, in quotes_the_poem\nValueError'
    assert re.fullmatch(layout, safe.traceback)


@pytest.mark.parametrize(
    ("raise_it", "says"),
    [
        (has_a_cause, "The above exception was the direct cause of the following exception:"),
        (raises_while_it_handles, "During handling of the above exception, another exception occurred:"),
    ],
)
def test_causes_come_first(raise_it: Callable[[], None], says: str) -> None:
    before, _, after = raised(raise_it).traceback.partition(says)
    assert before.rstrip().endswith("in quotes_the_poem\nValueError")
    assert after.endswith("\nKeyError")


def test_a_suppressed_context_is_left_out() -> None:
    assert "ValueError" not in raised(hides_what_was_before).traceback


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, "OSError: No space left on device"), *((n, "OSError") for n in (10**30, -1, POEM, None))],
)
def test_an_os_error_has_the_systems_words_if_any(number: object, error: str) -> None:
    assert SafeTraceback.redacted(OSError(number, POEM, POEM)).error == error


def test_a_cleaned_failure_still_has_its_places() -> None:
    with pytest.raises(ValueError, match=POEM) as caught:
        quotes_the_poem()
    failure = Failure(caught.value)
    failure.cleanFailure()
    assert failure.value is not None
    assert failure.value.__traceback__ is None
    assert "in quotes_the_poem" in SafeTraceback.redacted(failure.value, failure.getTracebackObject()).traceback


def test_endless_recursion_and_endless_causes_are_cut() -> None:
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


def test_an_exception_whose_attributes_raise_is_named() -> None:
    class Shy(Exception):
        @property
        def __cause__(self) -> Any:  # type: ignore[override]
            raise RuntimeError(POEM)

        def __str__(self) -> str:
            raise RuntimeError(POEM)

    assert SafeTraceback.redacted(Shy()) == SafeTraceback("Shy", "Shy")


def test_what_a_worker_sends_is_cut_and_made_printable() -> None:
    safe = SafeTraceback("Owl\n\x1b[2J", "a\x1b[2J\nb" + "c" * 10**6)
    assert safe.error.isprintable()
    assert safe.traceback.startswith("a\ufffd[2J\nbccc")
    assert len(safe.traceback) <= MAX_TRACEBACK_CHARACTERS


def test_an_unredacted_traceback_has_every_word() -> None:
    with pytest.raises(KeyError) as caught:
        has_a_cause()
    assert SafeTraceback.unredacted(caught.value).traceback.count(POEM) >= 2


class Careless:
    def __del__(self) -> None:
        raise ValueError(POEM)


def test_uncaught_exceptions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    reported: list[tuple[str, SafeTraceback]] = []
    report_uncaught(lambda where, safe: reported.append((where, safe)))
    for target in (quotes_the_poem, sys.exit):
        thread = threading.Thread(target=target, name="owl")
        thread.start()
        thread.join()
    Careless()
    assert [(where, safe.error) for where, safe in reported] == [
        ("uncaught in the thread owl", "ValueError"),
        ("raised where nobody can catch it", "ValueError"),
    ]
    assert all("Traceback" in safe.traceback and POEM not in safe.traceback for _, safe in reported)
