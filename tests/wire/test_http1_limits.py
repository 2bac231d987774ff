"""The limits of the parser of HTTP requests, and what it costs in memory and time."""

import contextlib
import re
from re import _constants, _parser  # private, and the only way to see a pattern's parts
from typing import Any

import pytest

from support.costs import Traced
from support.http_streams import CHUNKED, HEAD, LINE, MAX_BODY_BYTES, OWL, parse, singly, splits, whole
from xformd.wire import http1
from xformd.wire.http1 import FREE_FRAMING_BYTES, MAX_FIELDS, MAX_HEAD_BYTES, HttpError, RequestParser

# Limits.


def assert_just_fits(fitting: bytes, too_long: bytes, status: int = 431) -> None:
    for pieces in ([fitting], singly(fitting)):
        outcome = parse(pieces, 10**6)
        assert outcome.status is None
        assert outcome.requests[-1].is_complete
    for pieces in ([too_long], [too_long, b"rest"], singly(too_long)):
        assert parse(pieces, 10**6).status == status


def test_a_head_has_a_limit() -> None:
    room = MAX_HEAD_BYTES - len(HEAD + b"X: \r\n\r\n")
    assert_just_fits(HEAD + b"X: " + b"y" * room + b"\r\n\r\n", HEAD + b"X: " + b"y" * (room + 1) + b"\r\n\r\n")
    empty = b"\r\n" * 100
    room -= len(empty)
    assert_just_fits(
        empty + HEAD + b"X:" + b" " * room + b" \r\n\r\n", empty + HEAD + b"X:" + b" " * room + b"  \r\n\r\n"
    )


def test_empty_lines_count_as_a_part_of_the_head() -> None:
    lines = b"\r\n" * (MAX_HEAD_BYTES // 2 + 1)
    for rest in (b"\r\n", b"G", b"garbage", OWL):
        for pieces in ([lines + rest], [lines, rest], singly(lines + rest)):
            assert parse(pieces).status == 431, rest[:10]


def test_a_head_has_a_limit_of_fields() -> None:
    fields = b"X: y\r\n" * (MAX_FIELDS - 1)
    assert_just_fits(HEAD + fields + b"\r\n", HEAD + fields + b"X: y\r\n\r\n")


def test_trailers_have_a_limit_of_fields() -> None:
    fields = b"X: y\r\n" * MAX_FIELDS
    assert_just_fits(CHUNKED + b"0\r\n" + fields + b"\r\n", CHUNKED + b"0\r\n" + fields + b"X: y\r\n\r\n")


def test_framing_has_a_limit_of_its_own() -> None:
    room = MAX_HEAD_BYTES - len(b"0;\r\n")
    assert_just_fits(
        CHUNKED + b"0;" + b"x" * (room - 4) + b"\r\n\r\n", CHUNKED + b"0;" + b"x" * (room + 1) + b"\r\n\r\n"
    )


def test_framing_is_free_for_the_bytes_that_it_frames() -> None:
    chunk = b"1;" + b"x" * (FREE_FRAMING_BYTES - 6) + b"\r\na\r\n"
    dearer = b"1;" + b"x" * (FREE_FRAMING_BYTES - 5) + b"\r\na\r\n"
    many = MAX_HEAD_BYTES + 10
    assert whole(CHUNKED + chunk * many + b"0\r\n\r\n", many).requests[0].is_complete
    assert whole(CHUNKED + dearer * many + b"0\r\n\r\n", many).status == 431


def test_a_chunk_over_the_limit_is_refused_when_it_is_announced() -> None:
    for before in (b"", b"2\r\nab\r\n"):
        room = MAX_BODY_BYTES - len(before[3:-2])
        for pieces in splits(before + b"%x\r\n" % (room + 1)):
            assert parse([CHUNKED, *pieces]).status == 413
        assert whole(CHUNKED + before + b"%x\r\n" % room + b"x" * room + b"\r\n0\r\n\r\n").requests[0].is_complete
        assert whole(CHUNKED + before + b"%x\r\n" % room + b"x" * room + b"\r\n1\r\n").status == 413


def test_each_request_has_the_limits_for_itself() -> None:
    fields = b"X: " + b"y" * 40_000 + b"\r\n"
    request = (
        HEAD + fields + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 40_000 + b"\r\na\r\n0\r\n" + fields + b"\r\n"
    )
    assert whole(request.replace(b"x" * 40_000, b"x" * 9) * 5).status is None
    assert whole(request).status == 431


# What it costs.


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"", b"\r\n"),
        (HEAD, b"X: y\r\n"),
        (HEAD + b"X:", b" "),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"x"),
        (CHUNKED, b"00000001\r\nx\r\n"),
        (CHUNKED + b"1;", b"x"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
        (b"", OWL),
    ],
    ids=repr,
)
def test_what_is_kept_is_bounded(first: bytes, again: bytes) -> None:
    parser, piece = RequestParser(10**9), again * (8_000 // len(again))
    with Traced() as memory, contextlib.suppress(HttpError):
        for data in (first, *[piece] * 60):
            parser.feed(data)
            while parser.next_event() is not None:
                pass
    assert memory.held_bytes < MAX_HEAD_BYTES + 40_000
    assert memory.peak_bytes < 8 * MAX_HEAD_BYTES


@pytest.mark.parametrize(
    "data", [b"\r\n" * 10_000, OWL * 1_000, CHUNKED + b"0\r\n\r\n"], ids=["empty lines", "requests", "chunks"]
)
def test_nothing_is_kept_of_a_parsed_read(data: bytes) -> None:
    parser = RequestParser(MAX_BODY_BYTES)
    with Traced() as memory:
        parser.feed(data * 2)
        while parser.next_event() is not None:
            pass
    assert memory.held_bytes < 2_000


def test_an_announced_length_allocates_nothing() -> None:
    with Traced() as memory:
        assert whole(HEAD + b"Content-Length: 18446744073709551615\r\n\r\nx").status is None
        assert whole(CHUNKED + b"FFFFFFFFFFFFFFF\r\nx", 2**64).status is None
    assert memory.peak_bytes < 50_000


class Counted:
    """A function that looks at a stretch of a stream, and adds up how long these stretches are.

    A search that begins where the last one ended looks at each byte once; how often a pattern itself goes back is
    another matter: see ``test_no_pattern_goes_back``.
    """

    looked_at = 0

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, data: bytes, start: int = 0, end: int | None = None) -> Any:
        found = self.function(data, start, *(() if end is None else (end,)))
        last = found.end() if isinstance(found, re.Match) else len(data) if end is None else min(end, len(data))
        Counted.looked_at += max(1, last - start)
        return found


PATTERNS = {
    name: value.__self__
    for name, value in vars(http1).items()
    if isinstance(getattr(value, "__self__", None), re.Pattern)
}


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"X: " + b"y" * 60_000 + b"\r\n\r\n",
        HEAD + b"X: y\r\n" * 900 + b"\r\n",
        HEAD + b"".join(b"X%d: y\r\n" % number for number in range(900)) + b"\r\n",
        b"GET /" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://" + b"x" * 60_000 + b"/ HTTP/1.1\r\nHost: a\r\n\r\n",
        LINE + b"Host: " + b"x" * 60_000 + b"\r\n\r\n",
        b"\r\n" * 30_000 + OWL,
        CHUNKED + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n",
        CHUNKED + b"1;" + b"x" * 60_000 + b"\r\na\r\n0\r\n\r\n",
        CHUNKED + b"0\r\n" + b"X: " + b"y" * 60_000 + b"\r\n\r\n",
        OWL * 1_000,
    ],
    ids=lambda data: repr(data[:60]),
)
@pytest.mark.parametrize("step", [1, 1_000, 10**6])
def test_each_byte_is_looked_at_a_few_times(data: bytes, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PATTERNS:
        monkeypatch.setattr(http1, name, Counted(getattr(http1, name)))
    monkeypatch.setattr(Counted, "looked_at", 0)
    outcome = parse((data[start : start + step] for start in range(0, len(data), step)), 10**6)
    assert outcome.requests[-1].is_complete
    assert Counted.looked_at < 12 * len(data)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_goes_back(name: str) -> None:
    """A repetition without bound is possessive: nothing that follows it can make it give up what it has taken."""

    def check(node: Any) -> None:
        if isinstance(node, tuple):
            assert not (node[0] in (_constants.MAX_REPEAT, _constants.MIN_REPEAT) and node[1][1] > 20), node
        for each in node if isinstance(node, tuple | list | _parser.SubPattern) else ():
            check(each)

    pattern = PATTERNS[name]
    check(_parser.parse(pattern.pattern, pattern.flags))


class Value(bytes):
    """A field's value that adds up how many bytes are copied to join it with others."""

    copied = 0

    def strip(self, characters: Any = None) -> "Value":
        return Value(super().strip(characters))

    def __add__(self, other: Any) -> "Value":
        Value.copied += len(self) + len(other)
        return Value(bytes(self) + other)


def test_fields_of_one_name_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To join them one by one would copy the first of them a thousand times."""
    find = http1._find_fields
    monkeypatch.setattr(http1, "_find_fields", lambda block: [(name, Value(value)) for name, value in find(block)])
    (parsed,) = whole(HEAD + b"X:%b\r\n" % (b"y" * 50) * (MAX_FIELDS - 1) + b"\r\n").requests
    assert parsed.head.headers[b"x"] == b", ".join([b"y" * 50] * (MAX_FIELDS - 1))
    assert Value.copied < MAX_HEAD_BYTES
