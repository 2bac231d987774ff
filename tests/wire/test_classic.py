"""The classic dialect's request, which never changes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import BadRequest
from xformd.spec import MAX_SPEC_BYTES, Spec, Step, parse
from xformd.wire.classic import Request, decode_request, encode_request
from xformd.wire.netstring import Decoder


def test_the_request_of_the_tutorial() -> None:
    request = Request(parse("cummingsify"), b"HERE IS MY POEM")
    assert encode_request(request) == b"27:cummingsify.HERE IS MY POEM,"


def test_the_first_dot_ends_the_spec() -> None:
    assert decode_request(b"upper.a.b.") == Request(Spec((Step("upper"),)), b"a.b.")


@given(st.binary())
def test_a_poem_may_hold_any_bytes(poem: bytes) -> None:
    request = Request(parse("wrap:width=40+upper"), poem)
    (string,) = Decoder(100_000).decode(encode_request(request))
    assert decode_request(string) == request


@pytest.mark.parametrize("string", [b"", b"upper", b"x" * (MAX_SPEC_BYTES + 1) + b".poem"])
def test_a_request_needs_a_dot_after_its_spec(string: bytes) -> None:
    with pytest.raises(BadRequest, match=r"no '\.' after a transform"):
        decode_request(string)


@pytest.mark.parametrize("string", [b".poem", b"Upper.poem", b"caf\xe9.poem", b"a+.poem", b"a:b.poem", b" upper.poem"])
def test_a_spec_that_does_not_parse_is_a_bad_request(string: bytes) -> None:
    with pytest.raises(BadRequest, match="character"):
        decode_request(string)


@given(st.binary())
def test_any_string_is_a_request_or_a_bad_one(string: bytes) -> None:
    with contextlib.suppress(BadRequest):
        decode_request(string)
