"""Two servers that are asked the same: one with the fast path of sessions, and one without."""

import itertools
from typing import Any

from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

import xformd
from support.registries import registry_of
from support.wires import Wire
from xformd import transform
from xformd.limits import Limits
from xformd.protocol import TransformFactory, TransformProtocol
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.wire.netstring import encode

OPENING = encode(b"xformd/2")


def shout(poem: str, *, marks: int = 1) -> str:
    return poem.upper() + "!" * marks


class Side:
    """A server with one session, which keeps every poem that its transforms are given."""

    def __init__(self, *, has_fast_path: bool = True, **limits: Any) -> None:
        self.ran: list[str | bytes] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0
        self.now_s = 0.0
        all_limits = Limits(**limits)
        self.clock = Clock()
        registry = registry_of(*self._transforms())
        self.inline = InlineRunner(all_limits.max_result_bytes, self.clock, lambda: self.now_s)
        self.service = TransformService(Generation(registry, self.inline), all_limits, self.clock)
        if not has_fast_path:
            self.service.prepare_call = lambda words: None  # type: ignore[method-assign]
        self.factory = TransformFactory(self.service, all_limits, self.clock)
        protocol = self.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        assert isinstance(protocol, TransformProtocol)
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
            return self._moody_result(poem)  # type: ignore[no-any-return]

        def outside(poem: str) -> str:
            self.ran.append(poem)
            return poem

        inline: list[Any] = [upper, shout, backwards, slowly, heavy, ponderous, moody]
        return [*map(transform(inline=True), inline), transform(outside)]

    def _moody_result(self, poem: str) -> Any:
        if poem.startswith("w"):
            self.waiting.append(Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1)))
            return self.waiting[-1]
        if poem.startswith("g"):
            raise xformd.GibberishError("no poem")
        if poem.startswith("s"):
            raise SystemExit
        odd: dict[str, Any] = {"u": "\udc80", "n": None, "l": "x" * 200}
        return odd.get(poem[:1], poem)

    def send(self, data: bytes) -> None:
        """Send, once the server reads: until then, read what it has sent, and let what runs end."""
        self._let_it_read()
        self.protocol.dataReceived(data)

    def _let_it_read(self) -> None:
        while self.protocol._is_paused:
            self.wire.taken()
            self.clock.advance(0)  # the next turn of a session with many messages
            if self.protocol._is_paused:
                self.waiting.pop(0).callback("done")

    def end(self) -> tuple[Any, ...]:
        """Let everything end, and return all that can be seen from outside."""
        self._let_it_read()
        for waiting in self.waiting:
            if not waiting.called:
                waiting.callback("done")
        self.protocol.readConnectionLost()
        self.wire.taken()
        return self.wire.value(), self.ran, self.cancelled, self.wire.write_closed, self.wire.disconnecting


POEMS = st.sampled_from([b"", b"a", b".", b"1,2:", b"w", b"g", b"s", b"u", b"n", b"l", b"\xff", b"a" * 90])
SPECS = [
    *b"upper moody backwards backwards:times=2 shout:marks=3 backwards:times=60 backwards:times=x slowly".split(),
    *b"outside upper+upper nope !ping !cancel !no Upper upper:".split(),
    *(b"", b"upper ", b"upper timeout=9", b"upper timeout=0", b"moody timeout=x", b"upper a=1 a=2"),
    b"upper k=" + b"v" * 300,
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
CUTS = st.lists(st.integers(0, 5_000), max_size=5)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]
