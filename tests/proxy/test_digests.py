"""The hash of a poem, remembered or not."""

from hashlib import sha256

import pytest

from xformd.proxy.digests import LONG_BYTES, Digests, sketch


def poem(number: int, size: int = LONG_BYTES) -> bytes:
    return b"%d" % number * size


@pytest.mark.parametrize("size", [0, 1, LONG_BYTES - 1, LONG_BYTES, 3 * LONG_BYTES, 3 * LONG_BYTES + 1])
def test_a_digest_is_that_of_the_poem_however_often_it_is_asked_for(size: int) -> None:
    digests = Digests(3 * LONG_BYTES)
    for _ in range(2):
        assert [digests.of(poem(number, size)) for number in range(9)] == [
            sha256(poem(number, size)).digest() for number in range(9)
        ]


def test_a_poem_that_takes_all_the_room_is_remembered() -> None:
    digests = Digests(3 * LONG_BYTES)
    digests.of(poem(1, 3 * LONG_BYTES))
    assert digests.size_bytes == 3 * LONG_BYTES


def test_a_poem_that_had_to_make_room_is_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests(3 * LONG_BYTES)
    known = [digests.of(poem(number)) for number in range(4)]
    monkeypatch.setattr("xformd.proxy.digests.hashlib", None)
    assert [digests.of(poem(number)) for number in (1, 2, 3)] == known[1:]
    with pytest.raises(AttributeError, match="sha256"):
        digests.of(poem(0))


def test_it_remembers_the_last_long_poems_within_its_bytes() -> None:
    digests = Digests(3 * LONG_BYTES)
    sizes = []
    for number in range(9):
        digests.of(poem(number))
        digests.of(poem(number))
        sizes.append(digests.size_bytes // LONG_BYTES)
    assert sizes == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    digests.of(b"short")
    digests.of(poem(1, 4 * LONG_BYTES))
    assert digests.size_bytes == 3 * LONG_BYTES


def test_a_poem_that_is_remembered_is_not_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = Digests(3 * LONG_BYTES)
    known = digests.of(poem(1))
    monkeypatch.setattr("xformd.proxy.digests.hashlib", None)
    assert digests.of(b"1" * LONG_BYTES) == known


def test_poems_that_differ_where_no_sketch_looks_are_told_apart_and_the_last_is_remembered() -> None:
    owl = b"o" * 2 * LONG_BYTES
    cat = owl[:5_001] + b"c" + owl[5_002:]
    assert sketch(owl) == sketch(cat)
    digests = Digests(10 * LONG_BYTES)
    for poem in (owl, cat, cat, owl):
        assert digests.of(poem) == sha256(poem).digest()
        assert digests.size_bytes == len(poem)
