"""The fast path of a session answers what the other path would, byte for byte, however the stream is split."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.deferreds import has_fired
from support.logs import Log, captured
from support.registries import registry_of
from support.sides import CUTS, OPENING, STREAMS, Side, pieces
from xformd.dialects.session import answer_plain_requests
from xformd.runners.generation import Generation
from xformd.runners.policy import LONG_POEM_BYTES
from xformd.spec import SHORT_CHARACTERS, Spec, parse
from xformd.wire.netstring import encode


def framed(*requests: bytes) -> bytes:
    return b"".join(map(encode, requests))


def requests(words: bytes, *numbers: int) -> bytes:
    """Return the bytes of requests that differ in their ids alone."""
    return framed(*(b"%d %b" % (number, words) for number in numbers))


@given(
    STREAMS,
    CUTS,
    CUTS,
    st.sampled_from([60, 150, 100_000]),
    st.sampled_from([100, 100_000]),
    st.sampled_from([1, 2, 64]),
)
@example(([encode(b"1 moody.w"), encode(b"1 upper.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"1 moody.l"), encode(b"2 upper.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"9007199254740992 upper.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"1 shout:marks=3.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"1 upper." + 60 * b"a")], b""), [len(OPENING)], [], 60, 100_000, 64)
@example(([encode(b"01 upper.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"0 upper.a")], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"1 upper." + 60 * b"a"), encode(b"2 upper.a")], b""), [], [], 60, 100_000, 64)
@example(([b"19:1 backwards:times=2,more=1.a,"], b""), [], [], 100_000, 100_000, 64)
@example(([b"10:1 upper.a,", b"1:,,"], b""), [], [], 100_000, 100_000, 64)
@example(([encode(b"1 upper timeout=0.a")], b""), [], [], 100_000, 100_000, 64)
@example(([b"09:1 upper.a,"], b""), [], [], 100_000, 100_000, 64)
def test_both_paths_answer_the_same(
    stream: tuple[list[bytes], bytes],
    cuts: list[int],
    other_cuts: list[int],
    max_request_bytes: int,
    max_unread_output_bytes: int,
    max_in_flight: int,
) -> None:
    data = OPENING + b"".join(stream[0]) + stream[1]
    seen = []
    with captured():
        for has_fast_path, places in [(True, cuts), (False, other_cuts)]:
            side = Side(
                has_fast_path=has_fast_path,
                max_request_bytes=max_request_bytes,
                max_unread_output_bytes=max_unread_output_bytes,
                max_in_flight=max_in_flight,
                max_result_bytes=100,
            )
            for piece in pieces(data, places):
                side.send(piece)
            seen.append(side.end())
    assert seen[0] == seen[1]


def poems_past_the_fast_path(side: Side, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that collects the poems of requests that take the other path."""
    poems: list[bytes] = []
    xform = side.service.xform

    def collecting(spec: Spec, poem: bytes, **others: Any) -> Any:
        poems.append(poem)
        return xform(spec, poem, **others)

    monkeypatch.setattr(side.service, "xform", collecting)
    return poems


def test_plain_requests_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    others = poems_past_the_fast_path(side, monkeypatch)
    side.send(OPENING + requests(b"upper.a", *range(1, 50)))
    assert side.wire.value().count(b" ok.A,") == 49
    assert others == []


def test_only_requests_that_are_cut_in_two_leave_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    others = poems_past_the_fast_path(side, monkeypatch)
    side.send(OPENING)
    for piece in pieces(framed(*(b"%d upper.%b" % (number, b"x" * number) for number in range(10, 50))), [101, 303]):
        side.send(piece)
    assert side.wire.value().count(b"X,") == 40
    assert len(others) == 2


@pytest.mark.parametrize("more", [0, 1])
def test_a_long_poem_leaves_the_fast_path(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side()
    others = poems_past_the_fast_path(side, monkeypatch)
    poem = b"x" * (LONG_POEM_BYTES + more)
    side.send(OPENING + framed(b"1 upper.a", b"2 upper." + poem, b"3 upper.c"))
    assert side.wire.value().endswith(framed(b"1 ok.A", b"2 ok." + poem.upper(), b"3 ok.C"))
    assert others == [poem] * more


def test_long_words_are_not_prepared() -> None:
    service = Side().service
    assert service.prepare_call(b"upper k=" + b"v" * (SHORT_CHARACTERS - 8)) is not None
    assert service.prepare_call(b"upper k=" + b"v" * (SHORT_CHARACTERS - 7)) is None


@pytest.mark.parametrize("has_fast_path", [True, False])
def test_a_slow_inline_transform_is_logged_once_a_minute(has_fast_path: bool, log: Log) -> None:
    side = Side(has_fast_path=has_fast_path)
    side.send(OPENING + framed(b"1 upper.a", b"2 heavy.0.04", b"3 upper.a"))
    assert log.lines == []
    side.send(framed(b"4 heavy.0.12", b"5 upper.a", b"6 heavy.0.3"))
    side.send(framed(b"7 upper.a", b"8 heavy.0.2"))
    held = "transform heavy of plugin xformd-verses 1.0 (verses) held the server for"
    assert log.lines == [f"{held} 120 ms; --isolate heavy runs it in a worker"]
    side.clock.advance(60)
    assert log.lines[1].endswith("it in a worker (the last of 2 within 60 s)")


def test_each_slow_transform_of_a_read_is_logged(log: Log) -> None:
    Side().send(OPENING + framed(b"1 heavy.0.1", b"2 ponderous.0.2"))
    assert [line.partition(" of ")[0] for line in log.lines] == ["transform heavy", "transform ponderous"]


def test_requests_of_one_transform_are_slow_together(log: Log) -> None:
    Side().send(OPENING + requests(b"heavy.0.01", *range(1, 11)))
    assert len(log.lines) == 1
    assert "held the server for 100 ms" in log.lines[0]


def waiting_side(monkeypatch: pytest.MonkeyPatch, *given: bytes) -> Side:
    """Return a server with requests on the fast path whose transform has returned a Deferred."""
    side = Side(transform_timeout_s=30)
    others = poems_past_the_fast_path(side, monkeypatch)
    side.send(OPENING + framed(*given))
    assert len(side.waiting) == len(given)
    assert others == []
    side.wire.clear()
    return side


def test_a_deferred_of_the_fast_path_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    side = waiting_side(monkeypatch, b"1 moody.w", b"2 moody timeout=1500.w", b"3 moody timeout=99999.w")
    side.clock.advance(1.4)
    assert side.wire.value() == b""
    side.clock.advance(0.1)
    assert b":2 timeout.moody took longer than its 1.5 s," in side.wire.value()
    side.clock.advance(28.4)
    assert side.cancelled == 1
    side.clock.advance(0.1)
    assert side.cancelled == 3
    assert side.wire.value().count(b" timeout.moody took longer than its 30 s,") == 2


def test_a_stop_cancels_a_deferred_of_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    side = waiting_side(monkeypatch, b"1 moody.w", b"2 moody.w")
    side.service.stop()
    assert side.cancelled == 2
    assert side.wire.value().count(b" shutting-down.") == 2


def test_a_swap_waits_for_a_deferred_of_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    side = waiting_side(monkeypatch, b"1 moody.w")
    swapped = side.service.swap(Generation(registry_of(), side.inline))
    assert not has_fired(swapped)
    side.waiting[0].callback("done")
    assert side.wire.value() == b"9:1 ok.done,"
    assert has_fired(swapped)


def test_the_fast_path_looks_at_the_clock_after_each_long_poem() -> None:
    side = Side()
    poem = b"x" * LONG_POEM_BYTES
    data = framed(*(b"%d upper.%b" % (number, poem) for number in range(1, 6)))
    end, replies, *_ = answer_plain_requests(side.service, data, 0, (), 10**9)
    assert (len(replies), end) == (1, len(data) // 5)


def test_the_fast_path_stops_when_there_is_enough_to_send() -> None:
    side = Side()
    data = requests(b"upper.a", *range(1, 10))
    end, replies, pending, _ = answer_plain_requests(side.service, data, 0, (), 20)
    assert (data[:end], pending) == (requests(b"upper.a", 1, 2, 3), None)
    assert replies == [b"6:%d ok.A," % number for number in (1, 2, 3)]
    assert side.service.xform(parse("upper"), b"a") == b"A"
