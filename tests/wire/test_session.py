"""The session dialect's messages: what one side encodes the other decodes; anything else is an error of the table."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import ERRORS, BadFrame, InternalError, XformError
from xformd.spec import MAX_SPEC_BYTES, Spec, Step, parse
from xformd.wire import session
from xformd.wire.netstring import Decoder
from xformd.wire.session import ControlRequest, Hello, Malformed, Refusal, Reply, Request

IDS = st.integers(1, session.MAX_ID)
MILLISECONDS = st.one_of(st.none(), st.integers(0, 10**15))
ON_THE_WIRE = [error for error in ERRORS.values() if error.http_status is not None]
ERRORS_OF_A_SERVER = st.builds(
    lambda kind, message, later: kind(message, retry_after_ms=later),
    st.sampled_from(ON_THE_WIRE),
    st.text(),
    MILLISECONDS,
)


def inside(netstring: bytes) -> bytes:
    """Return the one string of a stream."""
    (string,) = Decoder(100_000).decode(netstring)
    return string


REQUESTS = st.builds(Request, IDS, st.just(parse("wrap:width=4%2E5+upper")), st.binary(), MILLISECONDS)
CONTROLS = st.sampled_from(["list", "ping", "cancel"])


@pytest.mark.parametrize(
    ("messages", "encode", "decode"),
    [
        (REQUESTS, session.encode_request, session.decode_request),
        (st.builds(ControlRequest, IDS, CONTROLS), session.encode_control, session.decode_request),
        (st.builds(Reply, IDS, st.binary()), session.encode_reply, session.decode_reply),
    ],
    ids=["request", "control", "reply"],
)
@given(data=st.data())
def test_a_message_survives_the_wire(
    messages: st.SearchStrategy[Any], encode: Callable[..., bytes], decode: Callable[..., Any], data: st.DataObject
) -> None:
    message = data.draw(messages)
    assert decode(inside(encode(message))) == message


def test_the_bytes_on_the_wire_are_these() -> None:
    request = Request(7, parse("cummingsify"), b"HERE. IS", timeout_ms=500)
    assert session.encode_request(request) == b"34:7 cummingsify timeout=500.HERE. IS,"
    assert session.encode_reply(Reply(7, b"here. is")) == b"13:7 ok.here. is,"
    busy = ERRORS["busy"]("come back", retry_after_ms=250)
    assert session.encode_refusal(Refusal(7, busy)) == b"32:7 busy retry-after=250.come back,"
    assert session.encode_control(ControlRequest(7, "ping")) == b"8:7 !ping.,"
    assert session.encode_opening() == b"8:xformd/2,"


@given(st.integers(0, session.MAX_ID), ERRORS_OF_A_SERVER)
def test_an_error_survives_the_wire(reply_id: int, error: XformError) -> None:
    read = session.decode_reply(inside(session.encode_refusal(Refusal(reply_id, error))))
    assert isinstance(read, Refusal)
    assert (read.id, type(read.error)) == (reply_id, type(error))
    assert (read.error.message, read.error.retry_after_ms) == (error.message, error.retry_after_ms)


def test_a_hello_survives_the_wire() -> None:
    hello = Hello("xformd 0.1.0", 10_485_760, 64)
    assert inside(session.encode_hello(hello)) == (
        b'xformd/2 {"server": "xformd 0.1.0", "max_request_bytes": 10485760, "max_in_flight": 64}'
    )
    assert session.decode_hello(inside(session.encode_hello(hello))) == hello
    assert session.decode_hello(b'xformd/2 {"server": "x", "max_request_bytes": 1, "max_in_flight": 2, "new": []}')


@pytest.mark.parametrize(
    "string",
    [
        b"",
        b"xformd/2",
        b"xformd/3 {}",
        b"xformd/2 []",
        b"xformd/2 {}",
        b'xformd/3 {"server": "x", "max_request_bytes": 1, "max_in_flight": 2}',
        b'xformd/2 {"server": "x", "max_request_bytes": 1, "max_in_flight": 0}',
        b'xformd/2 {"server": "x", "max_request_bytes": "many", "max_in_flight": 2}',
        b"xformd/2 " + b"[" * 100_000,
        b"xformd/2 \xff",
    ],
)
def test_anything_but_a_hello_is_a_bad_frame(string: bytes) -> None:
    with pytest.raises(BadFrame):
        session.decode_hello(string)


@pytest.mark.parametrize("start", [b"", b"0 ", b"-1 ", b"07 ", b"9007199254740992 ", b" 7 "])
def test_a_message_without_an_id_is_a_bad_frame(start: bytes) -> None:
    for string in (start, start + b"upper.poem"):
        with pytest.raises(BadFrame, match="id"):
            session.decode_request(string)


@pytest.mark.parametrize(
    ("string", "says"),
    [
        (b"7", "no '.'"),
        (b"7 upper", "no '.'"),
        (b"7 " + b"a" * (MAX_SPEC_BYTES + 2_000) + b".poem", "no '.'"),
        (b"7.poem", "names its transform"),
        (b"7 .poem", "names its transform"),
        (b"7  upper.poem", "'upper' is not an attribute"),
        (b"7 upper .poem", "'' is not an attribute"),
        (b"7 upper timeout.poem", "'timeout' is not an attribute"),
        (b"7 upper timeout=soon.poem", "whole number of milliseconds, not 'soon'"),
        (b"7 upper timeout=-1.poem", "whole number of milliseconds"),
        (b"7 upper timeout=1 timeout=2.poem", "given twice"),
        (b"7 !stop.", "no control message '!stop'; there are !list, !ping, !cancel"),
    ],
)
def test_a_malformed_request_keeps_its_id(string: bytes, says: str) -> None:
    message = session.decode_request(string)
    assert isinstance(message, Malformed)
    assert message.id == 7
    assert says in message.error.message


def test_unknown_attributes_are_ignored() -> None:
    expected = Request(7, Spec((Step("upper"),)), b"poem", timeout_ms=5)
    assert session.decode_request(b"7 upper colour=red timeout=5 x=.poem") == expected
    assert session.decode_reply(b"7 ok colour=red.poem") == Reply(7, b"poem")


@pytest.mark.parametrize(
    "string", [b"", b"7", b"7 ok", b"x ok.poem", b"7.poem", b"7 ok colour.poem", b"7 busy retry-after=x.m"]
)
def test_anything_but_a_reply_is_a_bad_frame(string: bytes) -> None:
    with pytest.raises(BadFrame):
        session.decode_reply(string)


def test_an_unknown_error_code_is_an_internal_error() -> None:
    refusal = session.decode_reply(b"7 on-fire retry-after=5.run")
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, InternalError)
    assert (refusal.error.message, refusal.error.retry_after_ms) == ("on-fire: run", 5)
    assert isinstance(session.decode_reply(b"0 ok.poem"), Refusal)


@given(st.one_of(st.binary(), st.text("07 !.=abz-", max_size=20).map(str.encode)))
def test_any_string_is_a_message_or_a_bad_frame(string: bytes) -> None:
    for decode in (session.decode_request, session.decode_reply, session.decode_hello):
        with contextlib.suppress(BadFrame):
            decode(string)
