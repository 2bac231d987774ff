"""The session dialect's messages: what one side encodes the other decodes; anything else is an error of the table."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import ERRORS, BadFrame, InternalError, XformError
from xformd.plugins import listing
from xformd.spec import MAX_SPEC_BYTES, Spec, Step, parse
from xformd.wire import session
from xformd.wire.netstring import Decoder
from xformd.wire.session import ControlRequest, Hello, Malformed, Refusal, Reply, Request

IDS = st.integers(1, session.MAX_ID)
MILLISECONDS = st.one_of(st.none(), st.integers(0, session.MAX_WAIT_MS))
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


TRACE = f"00-{'0a' * 16}-{'b7' * 8}-01"
CLIENTS, TRACES = st.sampled_from([None, "192.0.2.7"]), st.sampled_from([None, TRACE])
SPECS = st.just(parse("wrap:width=4%2E5+upper"))
REQUESTS = st.builds(Request, IDS, SPECS, st.binary(), MILLISECONDS, CLIENTS, TRACES, st.booleans())
VERSIONS = st.none() | st.text(max_size=80)
CONTROLS = st.sampled_from(["list", "ping", "cancel"])


@pytest.mark.parametrize(
    ("messages", "encode", "decode"),
    [
        (REQUESTS, session.encode_request, session.decode_request),
        (st.builds(ControlRequest, IDS, CONTROLS, st.just(b"")), session.encode_control, session.decode_request),
        (st.builds(Reply, IDS, st.binary(), VERSIONS), session.encode_reply, session.decode_reply),
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
    assert session.encode_request(Request(7, parse("upper"), b"a", wants_version=True)) == b"22:7 upper want=version.a,"
    assert session.encode_reply(Reply(7, b"A", "upper/0.1+x/-")) == b"30:7 ok version=upper/0%2E1+x/-.A,"
    busy = ERRORS["busy"]("come back", retry_after_ms=250)
    assert session.encode_refusal(Refusal(7, busy)) == b"32:7 busy retry-after=250.come back,"
    assert session.encode_control(ControlRequest(7, "ping")) == b"8:7 !ping.,"
    assert session.encode_control(ControlRequest(7, "auth", b"x.y")) == b"11:7 !auth.x.y,"
    assert session.decode_request(b"7 !auth.x.y") == ControlRequest(7, "auth", b"x.y")
    assert "x.y" not in repr(session.decode_request(b"7 !auth.x.y"))
    assert session.decode_request(b"7 !ping.x") == ControlRequest(7, "ping")
    assert session.encode_opening() == b"8:xformd/2,"


def test_versions_that_a_head_has_no_room_for_are_left_out() -> None:
    assert session.encode_reply(Reply(7, b"A", "x" * session.MAX_HEAD_BYTES)) == b"6:7 ok.A,"


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


NO_LIMITS = [
    b"Infinity",
    b"-Infinity",
    b"NaN",
    b"true",
    b"1.5",
    b"1e3",
    b"-1",
    b"9007199254740993",
    b"9" * 5_000,
    b"null",
]


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
        b'xformd/2 {"server": "x", "max_request_bytes": "1", "max_in_flight": 2}',
        b'xformd/2 {"server": ["x"], "max_request_bytes": 1, "max_in_flight": 2}',
        *(b'xformd/2 {"server": "x", "max_request_bytes": 1, "max_in_flight": %b}' % wrong for wrong in NO_LIMITS),
        *(b'xformd/2 {"server": "x", "max_in_flight": 1, "max_request_bytes": %b}' % wrong for wrong in NO_LIMITS),
        b'xformd/2 {"server": "x", "max_request_bytes": 1, "max_in_flight": 2, "new": "%b"}' % (b"x" * 10_000),
        b"xformd/2 " + b"[" * 9_000,
        b"xformd/2 \xff",
    ],
)
def test_anything_but_a_hello_is_a_bad_frame(string: bytes) -> None:
    with pytest.raises(BadFrame):
        session.decode_hello(string)


def test_a_servers_name_is_a_line_for_a_terminal() -> None:
    hello = session.decode_hello(b'xformd/2 {"server": "\\u001b[31mx\\ny", "max_request_bytes": 1, "max_in_flight": 2}')
    assert hello.server == "\ufffd[31mx y"


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
        (b"7 upper traceparent=1 traceparent=2.poem", "given twice"),
        (b"7 !stop.", "no control message '!stop'; there are !list, !ping, !cancel, !auth"),
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
    ("value", "read"),
    [
        (TRACE, TRACE),
        (f"cc{TRACE[2:]}", TRACE),  # of a later version, what this one knows
        (f"cc{TRACE[2:]}-owl", TRACE),
        (f"{TRACE}-owl", None),
        (f"ff{TRACE[2:]}", None),
        (TRACE.upper(), None),
        (TRACE[:-1], None),
        (f"00-{'0' * 32}-{'b7' * 8}-01", None),
        (f"00-{'0a' * 16}-{'0' * 16}-01", None),
        ("", None),
    ],
)
def test_a_trace_is_what_w3c_says_and_else_ignored(value: str, read: str | None) -> None:
    for words in (f"traceparent={value}", f"timeout=5 traceparent={value}", f"traceparent={value} timeout=5"):
        request = session.decode_request(f"7 upper {words}.poem".encode())
        assert isinstance(request, Request)
        assert (request.traceparent, request.poem) == (read, b"poem")
        assert request.timeout_ms == (5 if "timeout" in words else None)


@pytest.mark.parametrize(
    "string", [b"", b"7", b"7 ok", b"x ok.poem", b"7.poem", b"7 ok colour.poem", b"7 busy retry-after=x.m"]
)
def test_anything_but_a_reply_is_a_bad_frame(string: bytes) -> None:
    with pytest.raises(BadFrame):
        session.decode_reply(string)


def test_a_server_cannot_have_its_clients_wait_for_ever() -> None:
    refusal = session.decode_reply(b"7 busy retry-after=9999999999999999.later")
    assert isinstance(refusal, Refusal)
    assert refusal.error.retry_after_ms == session.MAX_WAIT_MS


def test_an_unknown_error_code_is_an_internal_error() -> None:
    refusal = session.decode_reply(b"7 on-fire retry-after=5.run")
    assert isinstance(refusal, Refusal)
    assert isinstance(refusal.error, InternalError)
    assert (refusal.error.message, refusal.error.retry_after_ms) == ("on-fire: run", 5)
    assert isinstance(session.decode_reply(b"0 ok.poem"), Refusal)


@given(st.one_of(st.binary(), st.text("07 !.=abz-", max_size=20).map(str.encode)))
def test_any_string_is_a_message_or_a_bad_frame(string: bytes) -> None:
    for decode in (session.decode_request, session.decode_reply, session.decode_hello, session.decode_listing):
        with contextlib.suppress(BadFrame):
            decode(string)


# Listings.


LISTING: dict[str, Any] = {
    "transforms": [
        {
            "name": "wrap",
            "summary": "Wrap lines.",
            "options": [{"name": "width", "type": "int", "required": False, "default": 72}],
            "distribution": "xformd",
            "version": "0.1.0",
            "deterministic": True,
        }
    ],
    "plugins": [{"name": "text", "distribution": "xformd", "version": "0.1.0", "state": "active", "reason": ""}],
    "conflicts": [{"name": "sea", "message": "two plugins provide it"}],
    "cache": {"hits": 1, "misses": 2, "bytes": 3},
}


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """Return the listing with other fields in the first row of a part."""
    return LISTING | {part: [LISTING[part][0] | fields]}


def with_option(**fields: Any) -> dict[str, Any]:
    return changed("transforms", options=[LISTING["transforms"][0]["options"][0] | fields])


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def decode_listing(listed: object) -> dict[str, Any]:
    return session.decode_listing(json.dumps(listed).encode())


def test_a_listing_is_decoded_with_fields_that_this_version_does_not_know() -> None:
    assert decode_listing(LISTING) == LISTING
    newer = changed("transforms", colours=["red", {"a": None}], example={"x": 1.5}) | {"news": nested(5)}
    assert decode_listing(newer) == newer


def test_what_an_older_server_does_not_tell_is_empty() -> None:
    older = {
        "transforms": [{"name": "upper", "options": [{"name": "a"}]}],
        "plugins": [{"name": "text"}],
        "conflicts": [],
    }
    listed = decode_listing(older)
    (row,) = listed["transforms"]
    assert row == {
        "name": "upper",
        "options": [{"name": "a", "type": "", "required": False}],
        "summary": "",
        "distribution": "",
        "version": "",
    }
    assert "verses" not in listing.to_table(listed)
    assert listing.to_table(listed).splitlines()[1].split() == ["upper", "[a=<>]"]


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (None, "it is not an object with transforms, plugins, conflicts"),
        ([], "it is not an object with"),
        ({}, "it is not an object with"),
        (LISTING | {"plugins": None}, "'plugins' is not a list of at most 10,000"),
        (LISTING | {"conflicts": {"name": "x"}}, "'conflicts' is not a list"),
        (LISTING | {"transforms": ["wrap"]}, "a row of 'transforms' is not an object"),
        (LISTING | {"transforms": [["name"]]}, "a row of 'transforms' is not an object"),
        (LISTING | {"transforms": [{"summary": "no name"}]}, "a transform has an invalid name"),
        (LISTING | {"plugins": [{"name": "a"}] * 10_001}, "'plugins' is not a list of at most 10,000"),
        (LISTING | {"cache": None}, "'cache' is not an object"),
        (LISTING | {"cache": {"hits": "many"}}, "'hits' is not an integer"),
        (LISTING | {"cache": {"hits": True}}, "'hits' is not an integer"),
        (LISTING | {"cache": {"hits": float("inf")}}, "Infinity is not a number in JSON"),
        (changed("transforms", name="x" * 65), "a transform has an invalid name"),
        (changed("transforms", name="\x1b[31m"), "a transform has an invalid name"),
        (changed("transforms", name=7), "'name' is not a string"),
        (changed("transforms", summary=None), "'summary' is not a string"),
        (changed("transforms", summary=["a"]), "'summary' is not a string"),
        (changed("transforms", version=1.0), "'version' is not a string"),
        (changed("transforms", distribution={}), "'distribution' is not a string"),
        (changed("transforms", options=None), "'options' is not a list"),
        (changed("transforms", options=["a"]), "a row of 'options' is not an object"),
        (with_option(name=1), "'name' is not a string"),
        (with_option(type=1), "'type' is not a string"),
        (with_option(required=1), "'required' is not a boolean"),
        (changed("plugins", state=1), "'state' is not a string"),
        (changed("plugins", reason=None), "'reason' is not a string"),
        (changed("plugins", name=None), "'name' is not a string"),
        (changed("conflicts", message=1), "'message' is not a string"),
        (with_option(default=nested(20)), "nested too deeply"),
        (LISTING | {"news": nested(30)}, "nested too deeply"),
        (LISTING | {"news": "x" * 5_000_000}, "4 MiB"),
        (LISTING | {"news": [[]] * 600_000}, "250,000 values"),
    ],
)
def test_a_malformed_listing_is_a_bad_frame_of_one_line(listed: object, says: str) -> None:
    with pytest.raises(BadFrame, match="is malformed: ") as refused:
        decode_listing(listed)
    assert says in refused.value.message


@pytest.mark.parametrize(
    "answer",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"transforms":' * 2_000, b"9" * 5_000, b"\0{"]
    + [json.dumps(LISTING | {"news": [1]}).replace("[1]", number).encode() for number in ("NaN", "-Infinity", "1e999")],
)
def test_what_is_no_json_is_no_listing(answer: bytes) -> None:
    with pytest.raises(BadFrame, match="is malformed: "):
        session.decode_listing(answer)
