"""Valid media types, and the Content-Type of a result."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.plugins.media_type import MAX_CHARACTERS, charset, content_type, is_media_type


@pytest.mark.parametrize(
    "media_type",
    [
        *("text/html", "image/svg+xml", "application/vnd.owl-2.0+json"),
        *("text/csv; header=present", "text/csv;header=present", "text/plain ; charset=utf-8; format=flowed"),
        *('multipart/mixed; boundary="a b;c"', r'text/x; name="an \"owl\""'),
    ],
)
def test_a_type_with_parameters_is_valid(media_type: str) -> None:
    assert is_media_type(media_type)


@pytest.mark.parametrize(
    "value",
    [
        *("", "text", "text/", "/html", "*/*", "text/*", "text/html/x", " text/html", "text/html ", "téxt/html"),
        *("text/html;", "text/html; charset", "text/html; charset=", "text/html, text/plain", "text/html\n"),
        *("text/html\r\nX-Owl: 1", "text/html; a=\r\n b", 'text/x; name="\r\nX-Owl: 1"', 'text/x; name="\\\n"'),
        *('text/x; name="\t"', 'text/x; name="\x7f"', 'text/x; name="ü"', f"text/{'x' * MAX_CHARACTERS}"),
        *(b"text/html", None, 5),
    ],
)
def test_anything_else_is_invalid(value: object) -> None:
    assert not is_media_type(value)


@given(st.from_regex(r"\Atext/[\x00-\xff]{1,20}\Z"))
def test_every_valid_type_fits_into_a_header(value: str) -> None:
    assert not is_media_type(value) or re.fullmatch(r"[ -~]+", value)


@pytest.mark.parametrize(
    ("media_type", "kind", "sent"),
    [
        (None, "text", "text/plain; charset=utf-8"),
        (None, "bytes", "application/octet-stream"),
        ("text/html", "text", "text/html; charset=utf-8"),
        ("Text/HTML; charset=UTF-8", "text", "Text/HTML; charset=UTF-8"),
        ("application/json", "text", "application/json"),
        ("text/html", "bytes", "text/html"),
    ],
)
def test_text_is_declared_as_utf8(media_type: str | None, kind: str, sent: str) -> None:
    assert content_type(media_type, kind) == sent


def test_a_charset_is_found_in_any_spelling() -> None:
    assert charset('text/plain; format=flowed;Charset="Latin-1"') == "latin-1"
    assert charset("text/plain; format=flowed") is None
