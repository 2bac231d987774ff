"""Valid media types, and the Content-Type of a result."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.plugins.media_type import (
    MAX_CHARACTERS,
    charset,
    content_type,
    default_media_type,
    is_media_type,
    rename,
    suffix,
)


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
        (default_media_type("text"), "text", "text/plain; charset=utf-8"),
        (default_media_type("bytes"), "bytes", "application/octet-stream"),
        ("text/html", "text", "text/html; charset=utf-8"),
        ("Text/HTML; charset=UTF-8", "text", "Text/HTML; charset=UTF-8"),
        ("application/json", "text", "application/json"),
        ("text/html", "bytes", "text/html"),
    ],
)
def test_text_is_declared_as_utf8(media_type: str, kind: str, sent: str) -> None:
    assert content_type(media_type, kind) == sent


def test_a_charset_is_found_in_any_spelling() -> None:
    assert charset('text/plain; format=flowed;Charset="Latin-1"') == "latin-1"
    assert charset("text/plain; format=flowed") is None


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        ("application/pdf", ".pdf"),
        ("image/JPEG", ".jpg"),
        ("text/csv; header=present", ".csv"),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", ".docx"),
        ("text/x-unknown", ".txt"),
        ("application/problem+json", ".txt"),
        ("application/x-unknown", ".bin"),
        ("image/*", ".bin"),
    ],
)
def test_a_type_has_the_suffix_that_tools_know_it_by(media_type: str, expected: str) -> None:
    assert suffix(media_type) == expected


@pytest.mark.parametrize(
    ("name", "media_type", "renamed"),
    [
        ("photo.jpeg", "image/jpeg", "photo.jpeg"),
        ("photo.jpeg", "image/png", "photo.png"),
        ("poems/page.md", "application/pdf", "poems/page.pdf"),
        ("page.pdf", "text/plain", "page.txt"),
        ("page.md", "text/plain", "page.md"),
        ("poem", "text/plain", "poem"),
        ("poem", "text/html; charset=utf-8", "poem.html"),
        ("data.csv", "application/octet-stream", "data.csv"),
        ("data.csv", "", "data.csv"),
    ],
)
def test_a_result_has_the_name_of_its_source_with_a_suffix_that_fits(name: str, media_type: str, renamed: str) -> None:
    assert rename(name, media_type) == renamed
