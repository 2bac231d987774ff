"""What may stand in a Content-Type, and what does."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.plugins.media_type import MAX_CHARACTERS, charset, content_type, is_media_type


@pytest.mark.parametrize(
    "media_type",
    [
        "text/html",
        "image/svg+xml",
        "text/csv; header=present",
        "text/csv;header=present",
        "text/plain ; charset=utf-8; format=flowed",
        'multipart/mixed; boundary="a b;c"',
        r'text/x; name="an \"owl\""',
        "application/vnd.owl-2.0+json",
    ],
)
def test_a_type_and_its_parameters_are_taken(media_type: str) -> None:
    assert is_media_type(media_type)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "text/",
        "/html",
        "*/*",
        "text/*",
        "text/html/x",
        " text/html",
        "text/html ",
        "text/html;",
        "text/html; charset",
        "text/html; charset=",
        "text/html, text/plain",
        "text/html\n",
        "text/html\r\nX-Owl: 1",
        "text/html; a=\r\n b",
        'text/x; name="\r\nX-Owl: 1"',
        'text/x; name="\\\n"',
        'text/x; name="\t"',
        'text/x; name="\x7f"',
        'text/x; name="ü"',
        "téxt/html",
        f"text/{'x' * MAX_CHARACTERS}",
        b"text/html",
        None,
        5,
    ],
)
def test_what_is_no_media_type_is_not_taken(value: object) -> None:
    assert not is_media_type(value)


@given(st.from_regex(r"\Atext/[\x00-\xff]{1,20}\Z"))
def test_whatever_is_taken_fits_into_a_header(value: str) -> None:
    assert not is_media_type(value) or re.fullmatch(r"[ -~]+", value)


def test_a_poem_of_text_says_that_it_is_utf8() -> None:
    assert content_type(None, "text") == "text/plain; charset=utf-8"
    assert content_type(None, "bytes") == "application/octet-stream"
    assert content_type("text/html", "text") == "text/html; charset=utf-8"
    assert content_type("Text/HTML; charset=UTF-8", "text") == "Text/HTML; charset=UTF-8"
    assert content_type("application/json", "text") == "application/json"
    assert content_type("text/html", "bytes") == "text/html"


def test_a_charset_is_found_however_it_is_written() -> None:
    assert charset('text/plain; format=flowed;Charset="Latin-1"') == "latin-1"
    assert charset("text/plain; format=flowed") is None
