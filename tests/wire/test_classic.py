"""The classic form: what a request is, and that it never changes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import BadFrame, BadRequest, TooLarge
from xformd.spec import MAX_SPEC_BYTES, Spec, Step, parse
from xformd.wire.classic import OneString, Request, decode_request, encode_request


def test_the_request_of_the_tutorial() -> None:
    request = Request(parse("cummingsify"), b"HERE IS MY POEM")
    assert encode_request(request) == b"27:cummingsify.HERE IS MY POEM,"


def test_the_first_dot_is_the_one_that_counts() -> None:
    assert decode_request(b"upper.a.b.") == Request(Spec((Step("upper"),)), b"a.b.")


@given(st.binary())
def test_a_poem_may_hold_any_bytes(poem: bytes) -> None:
    request = Request(parse("wrap:width=40+upper"), poem)
    string = OneString(100_000).receive(encode_request(request))
    assert string is not None
    assert decode_request(string) == request


@pytest.mark.parametrize("string", [b"", b"upper", b"x" * (MAX_SPEC_BYTES + 1) + b".poem"])
def test_a_request_without_a_dot_where_it_must_be_is_bad(string: bytes) -> None:
    with pytest.raises(BadRequest, match=r"no '\.' after a transform"):
        decode_request(string)


@pytest.mark.parametrize("string", [b".poem", b"Upper.poem", b"caf\xe9.poem", b"a+.poem", b"a:b.poem", b" upper.poem"])
def test_a_request_whose_spec_does_not_parse_is_bad(string: bytes) -> None:
    with pytest.raises(BadRequest, match="character"):
        decode_request(string)


@given(st.binary())
def test_any_string_is_a_request_or_bad(string: bytes) -> None:
    with contextlib.suppress(BadRequest):
        decode_request(string)


@given(st.binary())
def test_any_bytes_are_a_string_or_bad(data: bytes) -> None:
    reader = OneString(20)
    with contextlib.suppress(BadFrame, TooLarge):
        reader.receive(data)


def test_what_follows_the_string_is_left_alone() -> None:
    assert OneString(20).receive(b"1:a,rubbish") == b"a"


def test_a_string_over_the_limit_is_too_large() -> None:
    with pytest.raises(TooLarge, match="21 bytes or more; the limit is 20 bytes"):
        OneString(20).receive(b"21")
