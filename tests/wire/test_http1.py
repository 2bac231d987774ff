"""The parser of HTTP requests: what it reads and refuses, the same at every split."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.http_streams import (
    CHUNKED,
    HEAD,
    LINE,
    MAX_BODY_BYTES,
    OWL,
    Outcome,
    in_pieces,
    parse,
    singly,
    splits,
    streams,
    whole,
)
from xformd.errors import BadRequest, TooLarge
from xformd.wire import http1
from xformd.wire.http1 import END, MAX_HEAD_BYTES, HttpError, RequestParser


def assert_same_at_every_split(data: bytes) -> Outcome:
    outcome = whole(data)
    for pieces in splits(data):
        assert parse(pieces).meaning == outcome.meaning, pieces
    return outcome


# Heads.


def test_a_head_says_what_was_asked() -> None:
    (parsed,) = assert_same_at_every_split(b"GET /x?y=%20 HTTP/1.1\r\nHOST: a:80\r\nX-A:\t b  c \r\n\r\n").requests
    head = parsed.head
    assert (head.method, head.target, head.host) == ("GET", b"/x?y=%20", b"a:80")
    assert head.headers == {b"host": b"a:80", b"x-a": b"b  c"}
    assert (head.body_bytes, head.is_1_0, head.keeps_alive, head.expects_continue) == (0, False, True, False)
    assert parsed.is_complete


@pytest.mark.parametrize("method", http1.METHODS)
def test_each_method_is_read(method: str) -> None:
    (parsed,) = assert_same_at_every_split(method.encode() + b" /x HTTP/1.1\r\nHost: a\r\n\r\n").requests
    assert parsed.head.method == method


def test_fields_of_one_name_are_joined_in_their_order() -> None:
    (parsed,) = whole(LINE + b"x: 1\r\nHost: a\r\nX:\r\ny: 5\r\nX: 3\r\n\r\n").requests
    assert [*parsed.head.headers.items()] == [(b"x", b"1, , 3"), (b"host", b"a"), (b"y", b"5")]


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"/", b"/", b"a"),
        (b"//b/x", b"//b/x", b"a"),
        (b"http://b", b"/", b"b"),
        (b"HTTP://b:80/x?y", b"/x?y", b"b:80"),
        (b"https://b?y", b"/?y", b"b"),
        (b"http://[::1]:8/x", b"/x", b"[::1]:8"),
        (b"http://b/http://c", b"/http://c", b"b"),
    ],
)
def test_an_absolute_target_names_the_host(target: bytes, path: bytes, host: bytes) -> None:
    (parsed,) = assert_same_at_every_split(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target).requests
    assert (parsed.head.target, parsed.head.host) == (path, host)
    assert parsed.head.headers[b"host"] == b"a"


@pytest.mark.parametrize(
    "target",
    [b"x", b"a:80", b"*", b"/#x", b"http://", b"http:///x", b"http://:80/", b"http://u@b/", b"ftp://b/", b"http:x"],
)
def test_a_target_that_names_nothing_here_is_refused(target: bytes) -> None:
    assert assert_same_at_every_split(b"POST %b HTTP/1.1\r\nHost: a\r\n\r\n" % target).status == 400


@pytest.mark.parametrize(
    "host",
    [b"", b"a", b"a:", b"a:80", b"A.b-c_d~", b"a%20b", b"[::1]", b"[::1]:80", b"[v1.a:b]", b"127.0.0.1:8080", b"a,b"],
)
def test_a_host_may_have_a_port(host: bytes) -> None:
    (parsed,) = whole(LINE + b"Host: \t%b \t\r\n\r\n" % host).requests
    assert parsed.head.host == host


@pytest.mark.parametrize(
    "host",
    [
        b"a:80:80",
        b"a:b",
        b"a%zz",
        b"a%2",
        b"u@a",
        b"a b",
        b"::1",
        b"[::1",
        b"[]",
        b"[::1]x",
        b"[g]",
        b"\xe9",
        b"[::1::]",
        b"[1.2.3.4]",
        b"[.]",
    ],
)
def test_a_host_that_is_none_is_refused(host: bytes) -> None:
    assert whole(LINE + b"Host: %b\r\n\r\n" % host).status == 400
    assert whole(b"GET http://%b/ HTTP/1.1\r\nHost: a\r\n\r\n" % host).status == 400


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Upgrade,\tCLOSE", False),
        (b"1.1", b"closed", True),
        (b"1.1", b"keep-alive\r\nConnection: close", False),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"x, keep-alive", True),
        (b"1.0", b"keep-alive, close", False),
        (b"1.0", b"upgrade", False),
    ],
)
def test_the_connection_header_decides_whether_more_may_follow(
    version: bytes, connection: bytes | None, keeps_alive: bool
) -> None:
    field = b"" if connection is None else b"Connection: %b\r\n" % connection
    (parsed,) = whole(b"GET / HTTP/%b\r\nHost: a\r\n%b\r\n" % (version, field)).requests
    assert (parsed.head.is_1_0, parsed.head.keeps_alive) == (version == b"1.0", keeps_alive)


@pytest.mark.parametrize(
    ("version", "fields", "expects"),
    [
        (b"1.1", b"Expect: 100-Continue\r\nContent-Length: 1\r\n", True),
        (b"1.1", b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n", True),
        (b"1.1", b"Expect: 100-continue\r\n", False),
        (b"1.1", b"Expect: 100-continue\r\nContent-Length: 0\r\n", False),
        (b"1.0", b"Expect: 100-continue\r\nContent-Length: 1\r\n", False),
        (b"1.1", b"Expect: 200-ok\r\nContent-Length: 1\r\n", False),
    ],
)
def test_only_a_body_is_waited_for(version: bytes, fields: bytes, expects: bool) -> None:
    (parsed,) = whole(b"POST / HTTP/%b\r\nHost: a\r\n%b\r\n" % (version, fields)).requests
    assert parsed.head.expects_continue is expects


def test_empty_lines_before_a_request_are_no_part_of_it() -> None:
    outcome = assert_same_at_every_split(b"\r\n\r\n" + OWL + b"\r\n" + OWL + b"\r\n\r\n")
    assert [each.body for each in outcome.requests] == [b"owl", b"owl"]
    assert (outcome.status, outcome.is_inside) == (None, False)


@pytest.mark.parametrize("place", [b"X: y%bz\r\n", b"X%by: z\r\n"])
def test_a_control_character_is_refused_and_other_bytes_only_belong_in_values(place: bytes) -> None:
    for byte in [bytes([number]) for number in range(256) if number not in b"\t" and not 32 <= number < 127]:
        is_fine = byte >= b"\x80" and place.startswith(b"X:")
        for rest in (b"\r\n", b"", b"Y: "):
            status = None if is_fine or (rest != b"\r\n" and byte >= b"\x80") else 400
            assert assert_same_at_every_split(HEAD + place % byte + rest).status == status, (byte, rest)


@pytest.mark.parametrize(
    "begun", [b"\x16\x03\x01", b"get /", b"HELLO /", b" GET /", b"\nGET", b"17:upper", b"GETS ", b"CONNECT a"]
)
def test_what_cannot_become_a_request_is_refused_before_its_end(begun: bytes) -> None:
    assert assert_same_at_every_split(begun).status == 400
    assert assert_same_at_every_split(OWL + begun).status == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
        (b"GET / RTSP/1.0", 505),
        (b"GET / HTTP/1.2", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / http/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET", 400),
    ],
)
def test_another_version_is_refused(line: bytes, status: int) -> None:
    assert assert_same_at_every_split(line + b"\r\nHost: a\r\n\r\n").status == status


# Bodies.


@pytest.mark.parametrize(
    "data", [OWL, CHUNKED + b"2\r\now\r\n1\r\nl\r\n0\r\n\r\n", CHUNKED + b'03;a=b;c="d"\r\nowl\r\n000\r\n\r\n']
)
def test_a_body_ends_where_it_says(data: bytes) -> None:
    (first, second) = assert_same_at_every_split(data + OWL).requests
    assert (first.body, second.body) == (b"owl", b"owl")
    assert [each.end for each in parse(singly(data + OWL)).requests] == [len(data), len(data + OWL)]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 00000000000000000003\r\n", None),
        (b"Content-Length: %d\r\n" % (2**64 - 1), None),
        (b"Content-Length: %d\r\n" % 2**64, 400),
        (b"Content-Length: 000000000000000000003\r\n", 400),
        *(
            (b"Content-Length:%b\r\n" % value, 400)
            for value in (b"", b"+3", b"-3", b"0x3", b"3 3", b"3,3", b"3.0", b"\xb3")
        ),
        (b"Content-Length: 3\r\ncontent-length: 3\r\n", 400),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n", 400),
        (b"Transfer-Encoding: \t CHUNKED \t\r\n", None),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, identity\r\n", 400),
        (b"Transfer-Encoding: chunked,\r\n", 400),
        *(
            (b"Transfer-Encoding:%b\r\n" % value, 501)
            for value in (b"", b"gzip", b"gzip, chunked", b"chunked;q=1", b",chunked")
        ),
        (b"Transfer-Encoding : chunked\r\n", 400),
        (b"Transfer-Encoding\t: chunked\r\n", 400),
        (b"Transfer-Encoding: chun\x0bked\r\n", 400),
        (b"Transfer-Encoding:\r\n chunked\r\n", 400),
    ],
)
def test_how_long_a_body_is_has_one_reading(fields: bytes, status: int | None) -> None:
    assert assert_same_at_every_split(HEAD + fields + b"\r\n").status == status


def test_there_are_no_chunks_in_http_1_0() -> None:
    assert whole(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").status == 400


@pytest.mark.parametrize(
    "framing",
    [
        *(b"-3\r\n", b"0x3\r\n", b"\r\n", b"g\r\n", b" 3\r\n", b"3 \r\n", b"3\n", b"3;\n\r\n", b"3;\0\r\n"),
        *(b"3\r\nowls\r\n", b"3\r\nowl\n", b"3\r\nowl0\r\n\r\n", b"10000000000000000\r\n"),
        *(b"0\r\n X: y\r\n\r\n", b"0\r\nX : y\r\n\r\n", b"0\r\nX\r\n\r\n", b"0\r\nX: y\n\r\n", b"0\r\n\n", b"0\r\n\rX"),
        *(b"0\r\nContent-Length: 0\r\n\r\n", b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    ],
)
def test_malformed_chunks_and_trailers_are_refused(framing: bytes) -> None:
    assert assert_same_at_every_split(CHUNKED + framing).status == 400


@pytest.mark.parametrize(
    "trailer",
    [b"", b"Connection: close\r\n", b"Host: b\r\n", b"X: 1\r\nX: 2\r\n", b"Expect: 100-continue\r\n", b"X:\r\n"],
)
def test_a_trailer_changes_nothing(trailer: bytes) -> None:
    outcome = assert_same_at_every_split(CHUNKED + b"3\r\nowl\r\n0\r\n" + trailer + b"\r\n" + OWL)
    assert [each.body for each in outcome.requests] == [b"owl", b"owl"]
    assert [*outcome.requests[0].head.headers] == [b"host", b"transfer-encoding"]


@given(in_pieces(streams()))
def test_a_whole_body_may_be_taken_at_once(pieces: list[bytes]) -> None:
    assert parse(pieces, takes_whole=True).meaning == parse(pieces).meaning


def test_only_a_body_that_is_here_and_has_a_length_is_taken_at_once() -> None:
    for data, taken in ((OWL, b"owl"), (OWL[:-1], None), (HEAD + b"\r\n", b""), (CHUNKED + b"0\r\n\r\n", None)):
        parser = RequestParser(MAX_BODY_BYTES)
        parser.feed(data)
        parser.next_event()
        assert parser.take_whole_body() == taken
        assert parser.is_inside is (taken is None)


def test_half_an_empty_line_is_no_request() -> None:
    for data in (b"\r", b"\r\n\r", OWL + b"\r"):
        assert not parse(singly(data)).is_inside


@pytest.mark.parametrize(
    ("data", "method"),
    [
        (b"HEAD /", "HEAD"),
        (b"\r\nHEAD / HTTP/2.0\r\n\r\n", "HEAD"),
        (b"HEAD / HTTP/1.1\r\nx\r\n\r\n", "HEAD"),
        (b"HEAD / HTTP/1.1\r\n\r\n", "HEAD"),
        (OWL + b"HEAD " + b"x" * MAX_HEAD_BYTES, "HEAD"),
        (b"HEAD", ""),
        (b"HEADER / HTTP/1.1\r\n\r\n", ""),
        (b"", ""),
    ],
)
def test_the_method_is_known_of_a_head_that_is_incomplete_or_refused(data: bytes, method: str) -> None:
    parser = RequestParser(MAX_BODY_BYTES)
    parser.feed(data)
    with contextlib.suppress(HttpError):
        while parser.next_event() is not None:
            pass
    assert parser.begun_method == method


def test_a_request_is_inside_from_its_first_byte_to_its_last() -> None:
    for data in (OWL, CHUNKED + b"3\r\nowl\r\n0\r\nX: y\r\n\r\n", HEAD + b"\r\n"):
        inside = [parse([data[:end]]).is_inside for end in range(len(data) + 1)]
        assert inside == [False, *[True] * (len(data) - 1), False]


# Splits.


@given(streams(), st.integers(0, 300))
@settings(max_examples=60)
def test_no_split_changes_the_outcome(stream: bytes, max_body_bytes: int) -> None:
    expected = whole(stream, max_body_bytes).meaning
    for pieces in splits(stream):
        assert parse(pieces, max_body_bytes).meaning == expected, pieces


@given(in_pieces(streams()), st.sampled_from([20, 40, 60, 80, 120]))
@settings(max_examples=300)
def test_no_split_changes_what_a_limit_does(pieces: list[bytes], max_head_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http1, "MAX_HEAD_BYTES", max_head_bytes)
        patch.setattr(http1, "MAX_FIELDS", 3)
        stream = b"".join(pieces)
        expected = whole(stream).meaning
        assert parse(pieces).meaning == parse(singly(stream)).meaning == expected


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([HEAD, CHUNKED, b"\r\n", b"0\r\n", b"3\r\nowl"]))))
def test_any_bytes_are_parsed_or_refused(pieces: list[bytes]) -> None:
    outcome = parse(pieces)
    assert outcome.status in (None, 400, 413, 431, 501, 505)


@pytest.mark.parametrize(
    ("data", "status", "kind"),
    [
        (b"x", 400, BadRequest),
        (b"GET / HTTP/2.0\r\n\r\n", 505, BadRequest),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, BadRequest),
        (CHUNKED + b"%x\r\n" % (MAX_BODY_BYTES + 1), 413, TooLarge),
        (HEAD + b"x" * MAX_HEAD_BYTES, 431, TooLarge),
    ],
)
def test_a_refusal_is_reported_as_an_error_of_the_table(data: bytes, status: int, kind: type) -> None:
    error = whole(data).error
    assert error is not None
    assert (error.status, type(error.wire_error), error.wire_error.message) == (status, kind, error.message)


def test_a_refusal_knows_the_head_that_could_be_read() -> None:
    error = whole(b"HEAD x HTTP/1.1\r\nHost: a\r\nX-Request-Id: 7e57\r\n\r\n").error
    assert error is not None
    assert error.headers == {b"host": b"a", b"x-request-id": b"7e57"}


def test_an_event_is_none_until_more_arrives() -> None:
    parser = RequestParser(MAX_BODY_BYTES)
    parser.feed(OWL[:-3])
    assert parser.next_event() is not None
    assert parser.next_event() is parser.next_event() is None
    parser.feed(b"ow")
    assert parser.next_event() == b"ow"
    parser.feed(b"l")
    assert (parser.next_event(), parser.next_event(), parser.next_event()) == (b"l", END, None)
