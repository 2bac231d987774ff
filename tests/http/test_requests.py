"""What a request says: headers and queries at their bounds, and the transforms that it names."""

import encodings
from contextlib import suppress
from encodings.aliases import aliases
from typing import Any

import attrs
import pytest

from support.registries import registry_of
from xformd import GibberishError, transform
from xformd.errors import BadRequest, TooLarge
from xformd.http import requests
from xformd.http.messages import request_id
from xformd.http.requests import MAX_QUERY_POEM_BYTES, MAX_RECODED_BYTES, TransformRequest, matches_etag, take_poem
from xformd.spec import parse_readable


@pytest.mark.parametrize("value", [b"0", b"000", b"-1", b"1.5", b"1ms", b"1\n", b"1" * 13, b""])
def test_a_timeout_is_a_whole_number_above_0(value: bytes) -> None:
    with pytest.raises(BadRequest, match="X-Timeout-Ms"):
        requests.timeout_s({b"x-timeout-ms": value})


def test_the_longest_timeout_is_accepted() -> None:
    assert requests.timeout_s({b"x-timeout-ms": b"%d" % requests.MAX_TIMEOUT_MS}) == requests.MAX_TIMEOUT_MS / 1_000


def test_the_number_of_parameters_is_bounded() -> None:
    assert len(requests.read_query(b"&".join(b"k%d=" % number for number in range(64)))) == 64
    with pytest.raises(BadRequest, match="with at most 64 fields"):
        requests.read_query(b"&".join(b"k%d=" % number for number in range(65)))


@pytest.mark.parametrize("own", [None, b"", b"a" * 65, b"a b", b"~[31m", b"\xe9", b"7e57\n"])
def test_an_unsafe_request_id_is_replaced(own: bytes | None) -> None:
    headers = {} if own is None else {b"x-request-id": own}
    ids = {request_id(headers) for _ in range(2)}
    assert len(ids) == 2
    assert own not in ids


@pytest.mark.parametrize(
    "charset",
    [b'"utf-8\0"', b"x" * 10_000, b"zlib", b"klingon", b"punycode", b"idna", b"rot13", b"utf-7", b"\xe9"],
    ids=lambda charset: charset[:10].decode("latin-1"),
)
def test_an_unknown_charset_is_quoted_briefly(charset: bytes) -> None:
    with pytest.raises(BadRequest, match="send UTF-8") as raised:
        requests.charset({b"content-type": b"text/plain; charset=" + charset})
    assert len(raised.value.message) < 100


def test_of_all_charsets_that_python_lists_each_is_known_or_refused() -> None:
    for name in {*aliases, *aliases.values()}:
        with suppress(BadRequest):
            requests.charset({b"content-type": f"text/plain; charset={name}".encode()})


def test_unknown_charsets_are_not_remembered_by_python() -> None:
    for number in range(10):
        with pytest.raises(BadRequest):
            requests.charset({b"content-type": b"text/plain; charset=owl-%d" % number})
    assert not [name for name in vars(encodings)["_cache"] if "owl" in name]


@transform(deterministic=True)
def text(poem: str, *, width: int = 1) -> str:
    """Take text."""
    return poem


@transform(produces="image/png")
def image(poem: bytes) -> bytes:
    """Return bytes."""
    return poem


def decode(spec: str, poem: bytes, charset: str, max_bytes: int = 100) -> bytes:
    headers = {b"content-type": f"text/plain; charset={charset}".encode()}
    return transform_request(spec).decode(poem, headers, max_bytes)


def transform_request(spec: str, **plugin: Any) -> TransformRequest:
    return TransformRequest.from_spec(parse_readable(spec), registry_of(text, image, **plugin))


def test_the_last_transform_has_the_media_type() -> None:
    assert transform_request("text+image").media_type == b"image/png"
    assert transform_request("image+text").media_type == b"text/plain; charset=utf-8"


def test_the_first_transform_decides_about_the_charset() -> None:
    assert decode("text+image", b"\xe9", "latin-1") == "é".encode()
    assert decode("image+text", b"\xe9", "latin-1") == b"\xe9"
    with pytest.raises(GibberishError, match="ascii"):
        decode("text", b"\xe9", "ascii")


@pytest.mark.parametrize("charset", ["utf-16", "utf-32", "shift_jis", "euc-jp", "gb18030", "hz", "big5"])
def test_a_text_is_recoded_up_to_a_limit(charset: str) -> None:
    text = "a\N{CJK UNIFIED IDEOGRAPH-4E2D}b\n" * 10_000
    assert decode("text", text.encode(charset), charset, 1_000_000).decode() == text
    with pytest.raises(GibberishError):
        decode("text", text.encode(charset) + b"\xe4", charset, 1_000_000)
    with pytest.raises(TooLarge, match="send a longer one in UTF-8"):
        decode("text", b"a" * (MAX_RECODED_BYTES + 1), charset, 10_000_000)


def test_a_pipeline_is_as_deterministic_as_every_step() -> None:
    assert transform_request("text+text").is_deterministic
    assert not transform_request("text+image").is_deterministic
    assert not transform_request("image+text").is_deterministic


def test_a_plugin_without_a_version_has_a_dash() -> None:
    assert transform_request("text+image", version="").versions == b"text/-+image/-"


def test_whatever_changes_the_result_changes_its_tag() -> None:
    html = registry_of(attrs.evolve(text, produces="text/html"))
    unversioned = transform_request("text", version="").etag(b"owl")
    tags = [
        transform_request("text").etag(b"owl"),
        transform_request("text").etag(b"cat"),
        transform_request("text:width=2").etag(b"owl"),
        transform_request("text", version="2.0").etag(b"owl"),
        TransformRequest.from_spec(parse_readable("text"), html).etag(b"owl"),
        unversioned,
    ]
    assert len({*tags}) == 6
    assert unversioned is None
    assert transform_request("text").etag(b"owl") in tags


def test_a_poem_in_a_url_is_measured_in_bytes() -> None:
    longest = "é" * (MAX_QUERY_POEM_BYTES // 2)
    assert take_poem({"poem": longest}, 2 * MAX_QUERY_POEM_BYTES)
    for poem, max_bytes in ((longest + "a", 2 * MAX_QUERY_POEM_BYTES), ("ééa", 4)):
        with pytest.raises(TooLarge):
            take_poem({"poem": poem}, max_bytes)


def test_a_text_is_measured_in_utf_8() -> None:
    assert decode("text", b"\xe9" * 50, "latin-1") == "é".encode() * 50
    with pytest.raises(TooLarge, match="more than 100 bytes in UTF-8"):
        decode("text", b"\xe9" * 51, "latin-1")


@pytest.mark.parametrize(
    ("given", "is_there"),
    [(b" * ", True), (b'"a"', True), (b'"b" , W/"a"', True), (b'"b"', False), (b"", False), (b'"*"', False)],
)
def test_if_none_match_is_compared(given: bytes, is_there: bool) -> None:
    assert matches_etag({b"if-none-match": given}, b'"a"') is is_there
    assert not matches_etag({}, b'"a"')
