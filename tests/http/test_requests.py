"""What a request asks for: headers and queries at their bounds, which few clients send."""

import pytest

from xformd.errors import BadRequest
from xformd.http import requests


@pytest.mark.parametrize("value", [b"0", b"000", b"-1", b"1.5", b"1ms", b"1\n", b"1" * 13, b""])
def test_a_timeout_is_a_whole_number_above_0(value: bytes) -> None:
    with pytest.raises(BadRequest, match="X-Timeout-Ms"):
        requests.timeout_s({b"x-timeout-ms": value})


def test_the_longest_timeout_is_the_one_that_is_named() -> None:
    assert requests.timeout_s({b"x-timeout-ms": b"%d" % requests.MAX_TIMEOUT_MS}) == requests.MAX_TIMEOUT_MS / 1_000


def test_an_id_has_no_line_of_its_own() -> None:
    assert requests.request_id({b"x-request-id": b"7e57\n"}) != "7e57\n"


def test_a_query_has_so_many_parameters() -> None:
    assert len(requests.read_query(b"&".join(b"k%d=" % number for number in range(1_000)))) == 1_000
    with pytest.raises(BadRequest, match="malformed"):
        requests.read_query(b"&".join(b"k%d=" % number for number in range(1_001)))


def test_what_is_given_twice_is_named() -> None:
    with pytest.raises(BadRequest, match="'width' is given twice"):
        requests.read_query(b"fill=*&width=1&width=2")


@pytest.mark.parametrize("charset", [b'"utf-8\0"', b"x" * 10_000, b"zlib"])
def test_a_charset_that_is_none_is_told_in_short(charset: bytes) -> None:
    with pytest.raises(BadRequest, match="send UTF-8") as raised:
        requests.charset({b"content-type": b"text/plain; charset=" + charset})
    assert len(raised.value.message) < 100
