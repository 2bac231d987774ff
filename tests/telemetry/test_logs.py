"""The log of a server: each event as lines for a person, or as one line of JSON; and no poem, whoever logs."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import FilteringLogObserver, LogEvent, Logger, LogLevel
from twisted.python import log as older_log
from twisted.python.failure import Failure

from support.logs import Log
from xformd.telemetry import logs
from xformd.telemetry.logs import Lines, Printed, PythonLog, as_json, as_text

POEM = "TheOwlOfTheLog"
AT = 1_769_860_800.25  # 2026-01-31T12:00:00.250Z


def event(log_format: str = "{peer} left", **fields: Any) -> LogEvent:
    return {
        "log_time": AT,
        "log_level": LogLevel.warn,
        "log_namespace": "xformd.owl",
        "log_format": log_format,
        "log_source": object(),
        **fields,
    }


def failure() -> Failure:
    try:
        raise ValueError(POEM)
    except ValueError:
        return Failure()


def test_an_event_is_an_object_on_one_line() -> None:
    assert json.loads(as_json(event(peer="1.2.3.4:5", count=3, ratio=0.5, is_new=True, nobody=None))) == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "warn",
        "namespace": "xformd.owl",
        "message": "1.2.3.4:5 left",
        "peer": "1.2.3.4:5",
        "count": 3,
        "ratio": 0.5,
        "is_new": True,
        "nobody": None,
    }


def test_what_is_no_plain_value_is_in_the_message_alone() -> None:
    class Sly(str):
        pass

    told = json.loads(as_json(event("{a} {b} {c}", a=[1], b=Sly("b"), c=b"c")))
    assert told["message"] == "[1] b b'c'"
    assert not {"a", "b", "c"} & set(told)


def test_no_field_takes_the_place_of_another() -> None:
    told = json.loads(as_json(event(peer="a", message="b", level="c", time=1, namespace="d")))
    assert (told["message"], told["level"], told["namespace"]) == ("a left", "warn", "xformd.owl")
    assert told["time"].startswith("2026")


@given(st.text() | st.floats() | st.integers() | st.binary())
def test_whatever_is_in_it_the_line_is_one_of_printable_ascii(value: object) -> None:
    line = as_json(event(peer=value))
    assert line.isascii()
    assert line.isprintable()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_traceback_is_a_field_and_not_in_the_message() -> None:
    told = json.loads(as_json(event("it failed\n{traceback}", traceback="Traceback:\n  there\nOwl", error="Owl")))
    assert (told["message"], told["traceback"], told["error"]) == ("it failed", "Traceback:\n  there\nOwl", "Owl")


@pytest.mark.parametrize("tell", [as_json, as_text])
def test_a_failure_is_told_by_type_and_place_without_its_words(tell: Any) -> None:
    line = tell(event("it failed", log_failure=failure()))
    assert "it failed" in line
    assert "test_logs.py" in line
    assert "in failure" in line
    assert "ValueError" in line
    assert POEM not in line


@pytest.mark.parametrize("tell", [as_json, as_text])
@pytest.mark.parametrize("why", [None, "while it read"])
def test_a_failure_that_is_logged_in_twisteds_older_way_is_told_likewise(log: Log, tell: Any, why: str | None) -> None:
    older_log.err(failure(), why)
    (logged,) = log
    line = tell(logged)
    assert (why or "Unhandled Error") in line
    assert "in failure" in line
    assert POEM not in line


def test_as_text_it_reads_as_a_log_does() -> None:
    line = as_text(event("it failed\n{traceback}", traceback="Traceback:\n  there"))
    assert line[10:].partition(" ")[2] == "[xformd.owl#warn] it failed\n\tTraceback:\n\t  there"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError(POEM)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError(POEM)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("tell", [as_json, as_text])
@pytest.mark.parametrize(
    "odd",
    [
        {},
        event("{nothing}"),
        event("{peer}", peer=Hostile()),
        event("owl", log_time="noon", log_level="high", log_namespace=5),
        event("owl", log_time=1e300),
        event("owl", log_failure="none"),
        event("owl", traceback=5),
        {**event("owl"), 5: "five"},
        event(b"\xff"),  # type: ignore[arg-type]
    ],
    ids=range(9),
)
def test_nothing_that_is_logged_raises(tell: Any, odd: LogEvent) -> None:
    out = io.StringIO()
    Lines(out, tell)(odd)
    assert out.getvalue().endswith("\n")


def test_a_log_that_nobody_reads_harms_nobody() -> None:
    out = io.StringIO()
    out.close()
    Lines(out, as_json)(event(peer="a"))


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of Python's, whose records go nowhere else."""
    made = logging.getLogger("asyncio")
    handler = PythonLog()
    made.addHandler(handler)
    made.propagate = False
    yield made
    made.removeHandler(handler)
    made.propagate = True


def test_what_asyncio_says_of_a_callback_has_none_of_its_arguments(log: Log, logger: logging.Logger) -> None:
    logger.error("Exception in callback read(b'%s')\nhandle: %s", POEM, POEM, exc_info=failure().value)
    (logged,) = log
    assert log.lines == ["Exception in callback read"]
    assert logged["log_namespace"] == "asyncio"
    assert logged["log_level"] is LogLevel.error
    assert POEM not in as_json(logged)
    assert "in failure" in as_json(logged)


def test_what_cannot_be_told_is_told_as_that(log: Log) -> None:
    PythonLog().emit(logging.LogRecord("owl", logging.WARNING, "", 1, "%d", ("five",), None))
    assert log.lines == ["a message that cannot be told"]


def test_each_line_that_is_printed_is_an_event(log: Log) -> None:
    printed = Printed(sys.__stderr__, "stdout", LogLevel.info)
    print("one\ntwo", file=printed)
    print("and ", file=printed, end="")
    assert log.lines == ["one", "two"]
    print("three", file=printed)
    assert log.lines == ["one", "two", "and three"]
    assert log[0]["log_namespace"] == "stdout"
    assert not printed.isatty()
    assert printed.fileno() == sys.__stderr__.fileno()


def test_a_line_without_end_is_not_kept_for_ever(log: Log) -> None:
    printed = Printed(sys.__stderr__, "stdout", LogLevel.info)
    for _ in range(50):
        printed.write("." * 100)
    assert [len(line) for line in log.lines] == [1_000] * 4


def test_what_twisted_tells_by_the_way_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    observer = logs.json_observer()
    assert isinstance(observer, FilteringLogObserver)
    for namespace in ("twisted.internet", "xformd.owl", "stdout"):
        Logger(namespace=namespace, observer=observer).info("hello")
        Logger(namespace=namespace, observer=observer).debug("hello")
    assert [json.loads(line)["namespace"] for line in out.getvalue().splitlines()] == ["xformd.owl", "stdout"]
