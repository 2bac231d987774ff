"""The netstring decoder: every vector at every split, and what else hypothesis finds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.costs import Traced
from xformd.errors import BadFrame, TooLarge
from xformd.wire.netstring import Decoder, NetstringError, encode

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "netstrings.json").read_text())

LIMIT = 1_000


def decode_all(pieces: list[bytes], max_length: int) -> tuple[list[bytes], str | None, int | None, int]:
    """Return the strings, the violation and its offset, and how many bytes had been fed by then."""
    decoder = Decoder(max_length)
    strings: list[bytes] = []
    fed = 0
    try:
        for piece in pieces:
            fed += len(piece)
            strings += decoder.decode(piece)
    except NetstringError as error:
        return [*strings, *error.strings], error.violation, error.offset, fed
    return strings, "incomplete" if decoder.is_inside else None, fed if decoder.is_inside else None, fed


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yield a stream whole, byte by byte, and in two pieces at every place."""
    yield [data]
    yield [data[place : place + 1] for place in range(len(data))]
    for place in range(len(data) + 1):
        yield [data[:place], data[place:]]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_vector_decodes_the_same_at_every_split(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    for pieces in splits(data):
        strings, violation, offset, fed = decode_all(pieces, vector["max_length"])
        assert [string.hex() for string in strings] == vector["payloads"]
        assert violation == vector["error"]
        if vector["reject_at"] is not None:
            assert offset == vector["reject_at"]
            assert fed == vector["reject_at"] + 1 or max(map(len, pieces)) > 1  # no later byte is needed


def test_no_vector_is_missing() -> None:
    assert len(VECTORS) == 101


@given(st.lists(st.binary(max_size=40)), st.data())
def test_strings_survive_any_split(strings: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(encode, strings))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode_all(pieces, LIMIT)[:2] == (strings, None)


@given(st.lists(st.one_of(st.binary(), st.text("0123456789:,", max_size=8).map(str.encode))), st.integers(0, 50))
def test_any_bytes_decode_or_raise_bad_frame(pieces: list[bytes], max_length: int) -> None:
    decoder = Decoder(max_length)
    try:
        for piece in pieces:
            assert all(len(string) <= max_length for string in decoder.decode(piece))
    except BadFrame:
        pass


@given(st.text("0123456789:,a", max_size=30).map(str.encode), st.integers(0, 20))
def test_splitting_never_changes_the_outcome(stream: bytes, max_length: int) -> None:
    outcomes = {repr(decode_all(pieces, max_length)[:3]) for pieces in splits(stream)}
    assert len(outcomes) == 1


def test_decoding_stops_after_max_strings() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.decode(b"1:a,1:b,1:c,x", max_strings=2) == [b"a", b"b"]
    assert decoder.has_unread
    assert decoder.decode(max_strings=1) == [b"c"]
    with pytest.raises(NetstringError) as caught:
        decoder.decode()
    assert caught.value.offset == 12


def test_unread_bytes_join_what_arrives_next() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.decode(b"1:a,3:b", max_strings=1) == [b"a"]
    assert decoder.decode(b"cd,", max_strings=1) == [b"bcd"]
    assert not decoder.has_unread
    assert not decoder.is_inside


def test_no_string_wanted_means_no_byte_read() -> None:
    assert Decoder(LIMIT).decode(b"rubbish", max_strings=0) == []


def test_strings_before_a_violation_are_not_lost() -> None:
    with pytest.raises(NetstringError) as caught:
        Decoder(LIMIT).decode(b"1:a,1:b,x")
    assert caught.value.strings == [b"a", b"b"]


def test_a_broken_decoder_stays_broken() -> None:
    decoder = Decoder(LIMIT)
    for _ in range(2):
        with pytest.raises(NetstringError, match=r"byte 0 of the stream"):
            decoder.decode(b"x")


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"100000:", TooLarge, "10000 bytes or more; the limit is 1000 bytes"),
        (b"x", BadFrame, "byte 0 of the stream"),
    ],
)
def test_a_violation_is_reported_as_an_error_of_the_table(data: bytes, kind: type, says: str) -> None:
    with pytest.raises(NetstringError, match=says) as caught:
        Decoder(LIMIT).decode(data)
    assert type(caught.value.wire_error) is kind


def test_a_length_alone_allocates_nothing() -> None:
    with Traced() as memory:
        with pytest.raises(NetstringError):
            Decoder(10_000_000).decode(b"99999999999999999999:")
        Decoder(10_000_000).decode(b"9999999:only the start")
    assert memory.peak_bytes < 100_000


def test_a_string_in_single_bytes_costs_little_memory() -> None:
    length = 200_000
    decoder = Decoder(length)
    decoder.decode(b"%d:" % length)
    with Traced() as memory:
        for _ in range(length):
            decoder.decode(b"x")
    assert memory.peak_bytes < 1.5 * length
    assert decoder.decode(b",") == [b"x" * length]


@pytest.mark.parametrize("is_decoded_by_caller", [False, True])
def test_nothing_is_kept_of_a_decoded_read(is_decoded_by_caller: bool) -> None:
    decoder = Decoder(10**6)
    with Traced() as memory:
        data = encode(b"x" * 10**6)
        if is_decoded_by_caller:
            decoder.feed(data, len(data))
        else:
            assert len(decoder.decode(data)) == 1
        del data
    assert memory.held_bytes < 10_000


def test_string_bytes_is_the_length_of_the_current_or_last_string() -> None:
    decoder = Decoder(1_000)
    lengths = []
    for piece in (b"1", b"0:", b"abc", b"defghij", b",", b"3", b":a", b"bc,", b"2:ab,4:abcd,"):
        decoder.decode(piece)
        lengths.append(decoder.string_bytes)
    assert lengths == [0, 10, 10, 10, 10, 10, 3, 3, 4]


def test_bytes_that_the_caller_decoded_count_for_offsets() -> None:
    decoder = Decoder(1_000)
    decoder.feed(b"1:a,1:b,1:c,", 4)
    assert decoder.decode(max_strings=1) == [b"b"]
    data, position = decoder.unread
    assert data[position:] == b"1:c,"
    decoder.skip_to(len(data))
    decoder.feed(b"1:d,", 4)
    with pytest.raises(NetstringError) as raised:
        decoder.decode(b"1:ex")
    assert raised.value.offset == 19
