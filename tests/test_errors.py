"""The table of errors is that of docs/wire.md, and every message is one printable line."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import xformd
from xformd.errors import ERRORS, MESSAGE_MAX_CHARACTERS, GibberishError, XformError, one_line

WIRE = (Path(__file__).parents[1] / "docs" / "wire.md").read_text()
ROWS = re.findall(r"^\| `([a-z-]+)` \|.*\| `(\w+)` \| (\d+) \| (\d+) \|$", WIRE, re.MULTILINE)


def test_the_page_has_17_rows() -> None:
    assert len(ROWS) == 17


@pytest.mark.parametrize(("code", "exception", "http_status", "exit_status"), ROWS)
def test_a_row_is_that_of_the_page(code: str, exception: str, http_status: str, exit_status: str) -> None:
    error = ERRORS[code]
    assert error.__name__ == exception
    assert getattr(xformd, exception) is error
    assert (error.code, error.http_status, error.exit_status) == (code, int(http_status), int(exit_status))


def test_other_errors_never_leave_the_process() -> None:
    on_the_page = {code for code, *_ in ROWS}
    assert all(error.http_status is None for code, error in ERRORS.items() if code not in on_the_page)


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
