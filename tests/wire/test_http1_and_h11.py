"""Whatever our parser accepts, h11 accepts too, and reads the same: no request can be smuggled past one of them.

``REFUSED`` lists what ours refuses beyond that, which ``docs/http.md`` sums up.
"""

from pathlib import Path

import h11
import pytest
from hypothesis import given, settings

from support.http_front import CASES, Case
from support.http_streams import Parsed, parse, singly, streams
from support.oracle import assert_h11_agrees, read_with_h11
from xformd.wire.http1 import MAX_FIELDS, MAX_HEAD_BYTES, METHODS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "data" / "http").glob("*.http"))
MAX_BODY_BYTES = 10**6


def assert_h11_agrees_about_all(stream: bytes) -> list[Parsed]:
    """Check every request of a stream that we accept, and return them."""
    requests = parse(singly(stream), MAX_BODY_BYTES).requests
    start = 0
    for request in requests:
        end = None if request.end is None else request.end - start
        assert_h11_agrees(stream[start:], Parsed(request.head, request.body, end))
        start = request.end or start
    return requests


@pytest.mark.parametrize("case", [case for case in CASES if len(case.send) < 100_000], ids=lambda case: case.name)
def test_h11_agrees_about_the_raw_requests(case: Case) -> None:
    assert_h11_agrees_about_all(case.send)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_h11_agrees_about_what_went_wrong_elsewhere(file: Path) -> None:
    assert_h11_agrees_about_all(file.read_bytes())


@given(streams())
@settings(max_examples=400)
def test_h11_agrees_about_whatever_is_accepted(stream: bytes) -> None:
    assert_h11_agrees_about_all(stream)


@pytest.mark.slow
@given(streams())
@settings(max_examples=1_500)
def test_h11_agrees_about_whatever_is_accepted_of_very_many(stream: bytes) -> None:
    assert_h11_agrees_about_all(stream)


# What is refused beyond h11.

LINE = b"POST /x HTTP/1.1\r\n"
HEAD = LINE + b"Host: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"Content-Length: 3\r\n"

REFUSED = {
    "lines that end with LF alone": [
        b"POST /x HTTP/1.1\nHost: a\n\n",
        HEAD + b"X: y\n\r\n",
        CHUNKED + b"0\r\nX: y\n\r\n",
    ],
    "a header field that goes on in the next line": [
        HEAD + b"X: y\r\n z\r\n\r\n",
        CHUNKED + b"0\r\nX: y\r\n\tz\r\n\r\n",
    ],
    "control characters in a field": [
        HEAD + b"X: \x01\r\n\r\n",
        HEAD + b"X: \x7f\r\n\r\n",
        CHUNKED + b"0\r\nX: \x1b\r\n\r\n",
    ],
    f"a method other than {', '.join(f'`{each}`' for each in METHODS[:-1])} and `{METHODS[-1]}`, or in lower case": [
        b"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    "`CONNECT`": [b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n"],
    "another version that is called HTTP/1": [
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.9\r\nHost: a\r\n\r\n",
    ],
    "another version": [b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", b"GET / HTTP/0.9\r\n\r\n"],
    "a target that is no path and no http URL": [
        b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    "`*`, but for `OPTIONS`": [b"POST * HTTP/1.1\r\nHost: a\r\n\r\n"],
    "a fragment in the target": [b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a#x HTTP/1.1\r\nHost: a\r\n\r\n"],
    "a user in the target": [
        b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    "a `Host` that is no host with an optional port": [
        *(LINE + b"Host: %b\r\n\r\n" % host for host in (b"a:80:80", b"a:b", b"a%zz", b"u@a", b"a b", b"[::1", b"\xe9"))
    ],
    "`Content-Length` and `Transfer-Encoding`": [
        HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n",
    ],
    "`Transfer-Encoding` in HTTP/1.0": [b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
    "a `Content-Length` more than once": [HEAD + LENGTH * 2 + b"\r\nowl", HEAD + b"Content-Length: 3, 3\r\n\r\nowl"],
    "a `Content-Length` of 2⁶⁴ or more": [HEAD + b"Content-Length: 18446744073709551616\r\n\r\n"],
    "white space behind the size of a chunk": [CHUNKED + b"3 \r\nowl\r\n0\r\n\r\n", CHUNKED + b"0\t\r\n\r\n"],
    "control characters in a chunk's extension": [CHUNKED + b"0;\x01\r\n\r\n", CHUNKED + b"0;\r\r\n\r\n"],
    "a size of a chunk with more than 16 digits": [CHUNKED + b"00000000000000003\r\nowl\r\n0\r\n\r\n"],
    "`Content-Length` or `Transfer-Encoding` in a trailer": [
        CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n",
        CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    "a head, or the framing of a body, of more than 64 KiB": [
        HEAD + b"X: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        CHUNKED + b"0;" + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        CHUNKED + b"0000001\r\nx\r\n" * MAX_HEAD_BYTES + b"0\r\n\r\n",
    ],
    "more than 1,000 fields": [
        HEAD + b"X: y\r\n" * MAX_FIELDS + b"\r\n",
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 1_001 + b"\r\n",
    ],
    "a body in chunks of more than `max_request_bytes`": [CHUNKED + b"%x\r\n" % (MAX_BODY_BYTES + 1)],
}
"""What ours refuses and h11 accepts."""

OTHER_STATUSES = {
    "another version": 505,
    "a head, or the framing of a body, of more than 64 KiB": 431,
    "more than 1,000 fields": 431,
    "a body in chunks of more than `max_request_bytes`": 413,
}
"""Of what is not answered 400."""

EXAMPLES = [(what, example) for what, examples in REFUSED.items() for example in examples]


@pytest.mark.parametrize(("what", "example"), EXAMPLES, ids=[f"{what}-{example[:60]!r}" for what, example in EXAMPLES])
def test_each_is_accepted_by_h11_and_refused_by_us(what: str, example: bytes) -> None:
    assert read_with_h11(example)
    for pieces in ([example], singly(example)):
        assert parse(pieces, MAX_BODY_BYTES).status == OTHER_STATUSES.get(what, 400)


@pytest.mark.parametrize("example", [b"\r\n" + HEAD + b"\r\n"])
def test_empty_lines_before_a_request_are_all_that_only_we_accept(example: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        read_with_h11(example)
    assert parse([example]).requests[0].is_complete
