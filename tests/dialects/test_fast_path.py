"""The hot path of a session answers what the careful path would, byte for byte, however the stream is split."""

import itertools
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import xformd
from support.deferreds import has_fired
from support.logs import Log, captured
from support.registries import registry_of
from support.wires import Wire
from xformd import transform
from xformd.dialects.session import answer_plain_requests
from xformd.limits import Limits
from xformd.protocol import TransformFactory
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.spec import SHORT_CHARACTERS, Spec, parse
from xformd.wire.netstring import encode

OPENING = encode(b"xformd/2")
PEER = IPv4Address("TCP", "127.0.0.1", 1)


def shout(poem: str, *, marks: int = 1) -> str:
    return poem.upper() + "!" * marks


class Side:
    """A server with one session; everything that its transforms were asked is kept.

    Args:
        is_careful: whether it has the careful path alone.
        limits: of the server.
    """

    def __init__(self, *, is_careful: bool, **limits: Any) -> None:
        self.ran: list[str | bytes] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0
        self.now_s = 0.0
        all_limits = Limits(**limits)
        self.clock = Clock()
        registry = registry_of(*self._transforms())
        self.inline = InlineRunner(all_limits.max_result_bytes, self.clock, lambda: self.now_s)
        self.service = TransformService(Generation(registry, self.inline), all_limits, self.clock)
        if is_careful:
            self.service.prepare_call = lambda words: None  # type: ignore[method-assign]
        protocol = TransformFactory(self.service, all_limits, self.clock).buildProtocol(PEER)
        assert protocol is not None
        self.protocol = protocol
        self.wire = Wire()
        protocol.makeConnection(self.wire)

    def _transforms(self) -> list[Any]:
        def upper(poem: str) -> str:
            self.ran.append(poem)
            return poem.upper()

        def backwards(poem: bytes, *, times: int = 1, more: int = 0) -> bytes:
            self.ran.append(poem)
            return poem[::-1] * (times + more)

        async def slowly(poem: str) -> str:
            self.ran.append(poem)
            return poem

        def heavy(poem: str) -> str:
            self.now_s += float(poem)
            return poem

        def ponderous(poem: str) -> str:
            return heavy(poem)

        def moody(poem: str) -> str:
            self.ran.append(poem)
            return self._give(poem)  # type: ignore[no-any-return]

        def outside(poem: str) -> str:
            self.ran.append(poem)
            return poem

        return [
            *map(transform(inline=True), (upper, shout, backwards, slowly, heavy, ponderous, moody)),
            transform(outside),
        ]

    def _give(self, poem: str) -> Any:
        """Give what a transform may give, by the poem's first character."""
        if poem.startswith("w"):
            self.waiting.append(Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1)))
            return self.waiting[-1]
        if poem.startswith("g"):
            raise xformd.GibberishError("no poem")
        if poem.startswith("s"):
            raise SystemExit
        odd: dict[str, Any] = {"u": "\udc80", "n": None, "l": "x" * 200}
        return odd.get(poem[:1], poem)

    def say(self, data: bytes) -> None:
        """Send, once the server reads: until then, take what it has written, and let what runs come to its end."""
        while self.protocol._is_paused:
            self._go_on()
        self.protocol.dataReceived(data)

    def _go_on(self) -> None:
        self.wire.taken()
        self.clock.advance(0)  # what has had its turn has another
        if self.protocol._is_paused:
            self.waiting.pop(0).callback("done")

    def end(self) -> tuple[Any, ...]:
        """Let everything come to its end, and give all that can be seen from outside."""
        while self.protocol._is_paused:
            self._go_on()
        for waiting in self.waiting:
            if not waiting.called:
                waiting.callback("done")
        self.protocol.readConnectionLost()
        self.wire.taken()
        return self.wire.value(), self.ran, self.cancelled, self.wire.write_closed, self.wire.disconnecting


POEMS = st.sampled_from([b"", b"a", b".", b"1,2:", b"w", b"g", b"s", b"u", b"n", b"l", b"\xff", b"a" * 90])
SPECS = [
    *(b"upper", b"moody", b"backwards", b"backwards:times=2", b"shout:marks=3", b"backwards:times=60"),
    *(b"backwards:times=x", b"slowly"),
    *(b"outside", b"upper+upper", b"nope", b"", b"upper ", b"upper timeout=9", b"moody timeout=x", b"upper a=1 a=2"),
    *(b"!ping", b"!cancel", b"!no", b"Upper", b"upper:", b"upper" + b" k=" + b"v" * 300),
]
IDS = [b"1", b"2", b"3", b"0", b"01", b"", b"x", b"-1", b"999999999999999", b"9007199254740991", b"9007199254740992"]
USUAL = st.builds(lambda number, spec: b"%d %b" % (number, spec), st.integers(1, 40), st.sampled_from(SPECS[:5]))
ODD = st.builds(lambda number, spec: b"%b %b" % (number, spec), st.sampled_from(IDS), st.sampled_from(SPECS))
REQUESTS = st.builds(lambda head, dot, poem: encode(head + dot + poem), USUAL, st.just(b"."), POEMS)
ODD_REQUESTS = st.builds(lambda head, dot, poem: encode(head + dot + poem), ODD, st.sampled_from([b".", b""]), POEMS)
BROKEN = st.sampled_from(
    [b"09:1 upper.a,", b"10:1 upper.a,", b"8:1 upper.a,", b"9:1 upper.ab", b"999:", b"1 upper.a", b":"]
)
STREAMS = st.tuples(
    st.lists(st.one_of(REQUESTS, REQUESTS, ODD_REQUESTS), max_size=12), st.one_of(st.just(b""), BROKEN, ODD_REQUESTS)
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


@given(
    STREAMS,
    st.lists(st.integers(0, 5_000), max_size=5),
    st.lists(st.integers(0, 5_000), max_size=5),
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
@example(([b"09:1 upper.a,"], b""), [], [], 100_000, 100_000, 64)
def test_it_answers_what_the_careful_path_does(
    stream: tuple[list[bytes], bytes],
    cuts: list[int],
    other_cuts: list[int],
    max_request_bytes: int,
    max_unread_output_bytes: int,
    max_in_flight: int,
) -> None:
    limits: dict[str, Any] = {
        "max_request_bytes": max_request_bytes,
        "max_unread_output_bytes": max_unread_output_bytes,
        "max_in_flight": max_in_flight,
        "max_result_bytes": 100,
    }
    data = OPENING + b"".join(stream[0]) + stream[1]
    with captured():
        seen = []
        for is_careful, places in [(False, cuts), (True, other_cuts)]:
            side = Side(is_careful=is_careful, **limits)
            for piece in pieces(data, places):
                side.say(piece)
            seen.append(side.end())
    assert seen[0] == seen[1]


def careful_requests(side: Side, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect what takes the careful path."""
    asked: list[object] = []
    xform = side.service.xform

    def asking(spec: Spec, poem: bytes, **others: Any) -> Any:
        asked.append(poem)
        return xform(spec, poem, **others)

    monkeypatch.setattr(side.service, "xform", asking)
    return asked


def test_plain_requests_do_not_take_the_careful_path(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(is_careful=False)
    careful = careful_requests(side, monkeypatch)
    side.say(OPENING + b"".join(encode(b"%d upper.a" % number) for number in range(1, 50)))
    assert side.wire.value().count(b" ok.A,") == 49
    assert careful == []


def test_after_a_request_that_was_cut_in_two_the_rest_takes_the_hot_path_again(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Side(is_careful=False)
    careful = careful_requests(side, monkeypatch)
    side.say(OPENING)
    data = b"".join(encode(b"%d upper.%b" % (number, b"x" * number)) for number in range(10, 50))
    for piece in pieces(data, [101, 303]):
        side.say(piece)
    assert side.wire.value().count(b"X,") == 40
    assert len(careful) == 2


def test_long_words_are_not_remembered() -> None:
    service = Side(is_careful=False).service
    assert service.prepare_call(b"upper k=" + b"v" * (SHORT_CHARACTERS - 8)) is not None
    assert service.prepare_call(b"upper k=" + b"v" * (SHORT_CHARACTERS - 7)) is None


def test_words_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xformd.spec.MAX_REMEMBERED", 10)
    side = Side(is_careful=False)
    side.say(OPENING)
    for number in range(1, 100):
        side.say(encode(b"%d upper timeout=%d.a" % (number, number)))
        assert len(side.service._generation.prepared_calls) <= 10
    assert side.wire.value().count(b" ok.A,") == 99


@pytest.mark.parametrize("is_careful", [False, True])
def test_a_transform_that_holds_the_server_is_named_once_a_minute(is_careful: bool, log: Log) -> None:
    side = Side(is_careful=is_careful)
    side.say(OPENING + encode(b"1 upper.a") + encode(b"2 heavy.0.04") + encode(b"3 upper.a"))
    assert log.lines == []
    side.say(encode(b"4 heavy.0.12") + encode(b"5 upper.a") + encode(b"6 heavy.0.3"))
    side.say(encode(b"7 upper.a") + encode(b"8 heavy.0.2"))
    warning = (
        "transform heavy of plugin xformd-verses 1.0 (verses) held the server for {};"
        " --isolate heavy runs it in a worker"
    )
    assert log.lines == [warning.format("120 ms")]
    side.clock.advance(60)
    assert log.lines[1:] == [warning.format("200 ms, the last of 2 times within a minute")]


def test_each_transform_that_holds_the_server_is_named(log: Log) -> None:
    side = Side(is_careful=False)
    side.say(OPENING + encode(b"1 heavy.0.1") + encode(b"2 ponderous.0.2"))
    assert [line.partition(" of ")[0] for line in log.lines] == ["transform heavy", "transform ponderous"]


def waiting_side(monkeypatch: pytest.MonkeyPatch, *requests: bytes) -> Side:
    """Give a server with requests that wait for a transform that said it would give its results at once."""
    side = Side(is_careful=False, transform_timeout_s=30)
    careful = careful_requests(side, monkeypatch)
    side.say(OPENING + b"".join(map(encode, requests)))
    assert len(side.waiting) == len(requests)
    assert careful == []
    side.wire.clear()
    return side


def test_who_waits_after_all_waits_no_longer_than_his_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_stop_gives_up_what_waits_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    side = waiting_side(monkeypatch, b"1 moody.w", b"2 moody.w")
    side.service.stop()
    assert side.cancelled == 2
    assert side.wire.value().count(b" shutting-down.") == 2


def test_a_swap_waits_for_what_waits_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    side = waiting_side(monkeypatch, b"1 moody.w")
    swapped = side.service.swap(Generation(registry_of(), side.inline))
    assert not has_fired(swapped)
    side.waiting[0].callback("done")
    assert side.wire.value() == b"9:1 ok.done,"
    assert has_fired(swapped)


def test_requests_of_one_transform_that_hold_the_server_together_are_told() -> None:
    side = Side(is_careful=False)
    with captured() as log:
        side.say(OPENING + b"".join(encode(b"%d heavy.0.01" % number) for number in range(1, 11)))
    assert len(log.lines) == 1
    assert "held the server for 100 ms" in log.lines[0]


def test_the_pass_stops_once_there_is_enough_to_send() -> None:
    side = Side(is_careful=False)
    data = b"".join(encode(b"%d upper.a" % number) for number in range(1, 10))
    end, replies, pending = answer_plain_requests(side.service, data, 0, (), 20)
    assert (data[:end], pending) == (b"".join(encode(b"%d upper.a" % number) for number in (1, 2, 3)), None)
    assert replies == [b"6:%d ok.A," % number for number in (1, 2, 3)]
    assert side.service.xform(parse("upper"), b"a") == b"A"
