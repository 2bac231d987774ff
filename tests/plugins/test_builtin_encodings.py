"""Base64, hexadecimal digits, URLs, charsets, digests and gzip: round trips, the standard library, and the edges."""

import base64
import gzip as standard_gzip
import hashlib
import io
from typing import Any, get_args
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd import BadOptions, GibberishError, TooLarge, Transform
from xformd.plugins.builtin import encodings
from xformd.plugins.builtin.encodings import (
    base64_decode,
    base64_encode,
    decode,
    digest,
    encode,
    gunzip,
    gzip,
    hex_decode,
    hex_encode,
    url_decode,
    url_encode,
)

TEXTS = st.text(st.characters(codec="utf-8"))
CHARSETS = (
    "utf-8 utf-16 utf-32 latin-1 ascii windows-1252 cp437 koi8-r mac-roman"
    " shift_jis iso-2022-jp euc-kr gb18030 big5 hz johab"
)


@given(st.binary(), st.booleans(), st.booleans(), st.sampled_from([0, 64, 76]))
def test_base64_decodes_what_was_encoded_in_any_way(data: bytes, url_safe: bool, padding: bool, columns: int) -> None:
    encoded = base64_encode(data, url_safe=url_safe, padding=padding, columns=columns)
    assert base64_decode(encoded) == data
    assert max(map(len, encoded.split("\n"))) <= (columns or len(encoded))


@given(st.binary(min_size=1))
def test_base64_in_lines_is_that_of_the_standard_library(data: bytes) -> None:
    assert base64_encode(data, columns=76) + "\n" == base64.encodebytes(data).decode()


@given(st.binary(), st.sampled_from(["none", "space", "colon", "dash"]))
def test_hexadecimal_digits_decode_to_what_was_encoded(data: bytes, separator: str) -> None:
    assert hex_decode(hex_encode(data, separator=separator)) == data


@given(TEXTS, st.booleans(), st.sampled_from(["", "/", "/:?%"]))
def test_urls_are_encoded_as_by_the_standard_library(text: str, form: bool, keep: str) -> None:
    encoded = url_encode(text, form=form, keep=keep)
    assert encoded == (quote_plus if form else quote)(text, safe=keep)
    if "%" not in keep:
        assert url_decode(encoded, form=form) == text == (unquote_plus if form else unquote)(encoded)


@given(TEXTS, st.sampled_from(CHARSETS.split()))
def test_a_charset_has_the_characters_that_python_says(text: str, charset: str) -> None:
    try:
        expected = text.encode(charset)
    except UnicodeEncodeError:
        with pytest.raises(GibberishError, match="does not have the character"):
            encode(text, charset=charset)
    else:
        assert encode(text, charset=charset) == expected
        assert decode(expected, charset=charset) == expected.decode(charset)
    assert encode(text, charset=charset, errors="replace") == text.encode(charset, "replace")


@given(st.binary(), st.sampled_from(CHARSETS.split()))
def test_bytes_are_text_in_a_charset_if_python_says_so(data: bytes, charset: str) -> None:
    try:
        expected = data.decode(charset)
    except UnicodeDecodeError:
        with pytest.raises(GibberishError, match="at offset"):
            decode(data, charset=charset)
    else:
        assert decode(data, charset=charset) == expected
    assert decode(data, charset=charset, errors="replace") == data.decode(charset, "replace")


@given(st.binary(), st.sampled_from(get_args(encodings.Digest)))
def test_a_digest_is_that_of_the_standard_library(data: bytes, algorithm: Any) -> None:
    expected = getattr(hashlib, algorithm)(data)
    assert digest(data, algorithm=algorithm) == expected.hexdigest()
    assert base64.b64decode(digest(data, algorithm=algorithm, form="base64")) == expected.digest()


@given(st.lists(st.binary(max_size=20_000), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 9))
def test_gzip_files_of_several_members_with_zeros_at_the_end_are_unpacked(
    parts: list[bytes], level: int, zeros: int
) -> None:
    packed = b"".join(gzip(part, level=level) for part in parts)
    assert gunzip(packed + bytes(zeros)) == standard_gzip.decompress(packed) == b"".join(parts)


def test_a_gzip_file_says_nothing_of_when_or_where_it_was_made() -> None:
    assert {gzip(b"The Owl", level=level)[3:10] for level in range(1, 10)} == {bytes(6) + b"\xff"}


def test_a_gzip_file_with_a_name_and_a_comment_is_unpacked() -> None:
    out = io.BytesIO()
    with standard_gzip.GzipFile("owl.txt", "wb", fileobj=out) as file:
        file.write(b"The Owl")
    assert gunzip(out.getvalue()) == b"The Owl"


@pytest.mark.parametrize("cut", range(len(gzip(b"The Owl"))))
def test_a_gzip_file_that_is_cut_off_is_gibberish(cut: int) -> None:
    with pytest.raises(GibberishError, match="not gzip: "):
        gunzip(gzip(b"The Owl")[:cut])


def test_a_bomb_is_unpacked_no_further_than_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MAX_UNPACKED_BYTES", 1_000_000)
    assert len(gunzip(gzip(bytes(1_000_000)))) == 1_000_000
    assert len(gunzip(gzip(bytes(500_000)) * 2)) == 1_000_000
    for bomb in (gzip(bytes(1_000_001)), gzip(bytes(500_000)) * 2 + gzip(b"a"), gzip(bytes(10_000_000))):
        with pytest.raises(TooLarge, match="gunzip would return more than its limit of 1000000 bytes"):
            gunzip(bomb)


@pytest.mark.parametrize(
    ("transform", "poem", "options", "says"),
    [
        (base64_decode, "QUJD*A==", {}, "'*' at offset 4 does not belong into base64 there"),
        (base64_decode, "QQ==QQ==", {}, "'Q' at offset 4 "),
        (base64_decode, "QUI===", {}, "'=' at offset 5 "),
        (base64_decode, "QUé", {}, "'é' at offset 2 "),
        (base64_decode, "QUI\u00a0", {}, r"'\\xa0' at offset 3 "),
        (base64_decode, "Q", {}, "groups of 4 characters, but the last one here has 1"),
        (base64_decode, "QUJDQ", {}, "the last one here has 1"),
        (base64_decode, "QQ=", {}, "the last one here has 3"),
        (base64_decode, "=", {}, "the last one here has 1"),
        (hex_decode, "0g", {}, "'g' at offset 1 is not a hexadecimal digit"),
        (hex_decode, "00 0x00", {}, "'x' at offset 4 "),
        (hex_decode, "00:f", {}, "a byte has two hexadecimal digits, but here are 3"),
        (url_decode, "100%", {}, "'%' at offset 3 must be followed by two hexadecimal digits"),
        (url_decode, "%4g", {}, "'%' at offset 0 "),
        (url_decode, "a%FFb", {}, "what was encoded is not utf-8: byte 0xff at offset 1"),
        (decode, b"na\xefve", {"charset": "utf-8"}, "not utf-8: byte 0xef at offset 2"),
        (decode, b"a", {"charset": "utf-16"}, "not utf-16: byte 0x61 at offset 0"),
        (decode, b"\x00\xd8\x00\x00", {"charset": "utf-16-le"}, "not utf-16-le: byte 0x00 at offset 0"),
        (encode, "10 €", {"charset": "latin-1"}, "iso8859-1 does not have the character '€' at offset 3"),
        (gunzip, b"The Owl", {}, "not gzip: Not a gzipped file"),
        (gunzip, gzip(b"") + b"The Owl", {}, "not gzip: Not a gzipped file"),
        (gunzip, gzip(b"") + b"\0The Owl", {}, "not gzip: Not a gzipped file"),
        (gunzip, gzip(b"The Owl")[:-8] + bytes(8), {}, "not gzip: CRC check failed"),
    ],
)
def test_the_first_mistake_is_named(transform: Transform, poem: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(GibberishError, match=says):
        transform(poem, **options)


@pytest.mark.parametrize(
    "charset", ["", "klingon", "rot13", "zlib", "hex", "base64", "idna", "punycode", "utf-7", "unicode_escape", "a\0"]
)
def test_only_charsets_of_text_are_known(charset: str) -> None:
    for transform, poem in ((decode, b""), (encode, "")):
        with pytest.raises(BadOptions, match="unknown charset"):
            transform(poem, charset=charset)


def test_characters_that_are_kept_in_urls_are_ascii() -> None:
    with pytest.raises(BadOptions, match="option 'keep' takes ASCII characters, not 'é'"):
        url_encode("é", keep="é")


@pytest.mark.parametrize(
    ("transform", "poem", "result"),
    [
        (base64_decode, " QU\tJD\r\nRA\f=\v= ", b"ABCD"),
        (base64_decode, "+/-_", b"\xfb\xff\xbf"),
        (base64_decode, "QR==", b"A"),
        (base64_decode, "", b""),
        (hex_decode, " 0X00 ff\n", b"\x00\xff"),
        (hex_decode, "0x", b""),
        (url_decode, "%e2%82%AC%00é+", "€\0é+"),
        (gunzip, gzip(b"\0"), b"\0"),
    ],
)
def test_what_is_lenient_and_clear_is_taken(transform: Transform, poem: Any, result: bytes | str) -> None:
    assert transform(poem) == result
