"""The table of errors is what clients rely on, and every message is one printable line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xformd
from xformd.errors import ERRORS, MESSAGE_MAX_CHARACTERS, GibberishError, XformError, one_line

ROWS = [
    ("bad-frame", "BadFrame", 400, 76),
    ("bad-request", "BadRequest", 400, 64),
    ("bad-options", "BadOptions", 400, 64),
    ("no-such-transform", "NoSuchTransform", 404, 66),
    ("ambiguous-transform", "AmbiguousTransform", 409, 66),
    ("gibberish", "GibberishError", 422, 65),
    ("too-large", "TooLarge", 413, 65),
    ("transform-failed", "TransformFailed", 500, 70),
    ("transform-died", "TransformDied", 502, 70),
    ("timeout", "TransformTimeout", 504, 75),
    ("busy", "Busy", 429, 75),
    ("unavailable", "Unavailable", 503, 69),
    ("cancelled", "Cancelled", 499, 75),
    ("shutting-down", "ShuttingDown", 503, 75),
    ("unauthorized", "Unauthorized", 401, 77),
    ("forbidden", "Forbidden", 403, 77),
    ("internal", "InternalError", 500, 70),
]
"""What clients rely on, and no change may change: code, exception, HTTP status, exit status."""


@pytest.mark.parametrize(("code", "exception", "http_status", "exit_status"), ROWS)
def test_an_error_is_what_clients_rely_on(code: str, exception: str, http_status: int, exit_status: int) -> None:
    error = ERRORS[code]
    assert error.__name__ == exception
    assert getattr(xformd, exception) is error
    assert (error.code, error.http_status, error.exit_status) == (code, http_status, exit_status)


def test_the_page_of_the_wire_has_every_code() -> None:
    page = (Path(__file__).parents[1] / "docs" / "wire.md").read_text()
    section = page.partition("\n## Errors: one vocabulary\n")[2].partition(":")[0]
    assert re.findall(r"`([a-z-]+)`", section) == [code for code, *_ in ROWS]


def test_other_errors_never_leave_the_process() -> None:
    assert {code for code, error in ERRORS.items() if error.http_status is not None} == {code for code, *_ in ROWS}


@given(st.text())
def test_a_message_is_one_printable_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MESSAGE_MAX_CHARACTERS
    line.encode()


def test_a_long_message_ends_with_an_ellipsis() -> None:
    assert one_line("word " * 10_000).endswith("…")
    assert one_line("a\n\t b\x1b[31m\ud800") == "a b\ufffd[31m\ufffd"


def test_an_error_carries_the_poem() -> None:
    error = xformd.Busy("later", poem="The Owl", retry_after_ms=250)
    assert (error.message, str(error), error.poem, error.retry_after_ms) == ("later", "later", "The Owl", 250)
    assert error.retryable


def test_a_subclass_that_skips_the_initializer_is_still_complete() -> None:
    class Refusal(GibberishError):
        def __init__(self) -> None:
            pass

    error: XformError = Refusal()
    assert (error.code, error.message, error.poem) == ("gibberish", "", None)
