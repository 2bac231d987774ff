"""Sessions on the server, in memory: a client made of the pure wire code talks to a real protocol."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

import xformd
from support.fakes import REGISTRY, Pool
from support.logs import Log, captured
from support.registries import registry_of
from support.wires import Server, Wire
from xformd.protocol import TransformProtocol
from xformd.runners.generation import Generation
from xformd.runners.inline import InlineRunner
from xformd.service import TransformService
from xformd.spec import parse
from xformd.wire import session
from xformd.wire.netstring import Decoder, encode
from xformd.wire.session import ControlRequest, Reply, Request

MIB = 1024 * 1024


class Client:
    """The other side of a connection: says messages, and reads what the server has sent."""

    def __init__(self, server: Server, *, opened: bool = True) -> None:
        self.protocol: TransformProtocol
        self.wire: Wire
        self.protocol, self.wire = server.connect()
        self._decoder = Decoder(20 * MIB)
        if opened:
            self.say(session.encode_opening())
            self.hello = session.decode_hello(self.strings()[0])

    def say(self, data: bytes) -> None:
        if not self.protocol._is_paused:
            self.protocol.dataReceived(data)

    def ask(self, request_id: int, spec: str = "upper", poem: bytes = b"a", timeout_ms: int | None = None) -> None:
        self.say(session.encode_request(Request(request_id, parse(spec), poem, timeout_ms)))

    def control(self, request_id: int, control: session.Control) -> None:
        self.say(session.encode_control(ControlRequest(request_id, control)))

    def strings(self) -> list[bytes]:
        data = self.wire.value()
        self.wire.clear()
        return self._decoder.decode(data)

    def replies(self) -> dict[int, Any]:
        """What has been answered since the last time: a poem, or the error's class."""
        replies = map(session.decode_reply, self.strings())
        return {reply.id: reply.poem if isinstance(reply, Reply) else type(reply.error) for reply in replies}

    def lose(self, reason: Exception | None = None) -> None:
        self.protocol.connectionLost(Failure(reason or ConnectionDone()))


@pytest.fixture
def server() -> Server:
    return Server(
        request_timeout_s=30, idle_timeout_s=300, write_timeout_s=20, max_in_flight=3, max_unread_output_bytes=MIB
    )


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)


def test_a_server_says_what_it_allows(client: Client) -> None:
    assert client.hello == session.Hello(f"xformd {xformd.__version__}", 10 * MIB, 3)


def test_the_client_need_not_wait_for_the_hello(server: Server) -> None:
    client = Client(server, opened=False)
    client.say(session.encode_opening() + encode(b"1 upper.a") + encode(b"2 upper.b"))
    hello, *replies = client.strings()
    assert session.decode_hello(hello)
    assert replies == [b"1 ok.A", b"2 ok.B"]


def test_answers_come_in_any_order_and_the_session_stays(server: Server, client: Client) -> None:
    client.ask(1, "later")
    client.ask(2, "later")
    client.ask(3, "upper", b"c")
    assert client.replies() == {3: b"C"}
    server.results[1].callback("second")
    server.results[0].callback("first")
    assert list(client.replies().items()) == [(2, b"second"), (1, b"first")]
    client.ask(1)
    assert client.replies() == {1: b"A"}
    assert not client.wire.disconnecting


def test_a_reads_worth_of_requests_is_answered_in_one_write(server: Server, client: Client) -> None:
    client.ask(9, "later")
    writes: list[bytes] = []
    client.wire.write = writes.append  # type: ignore[method-assign, assignment]
    client.say(b"".join(encode(b"%d upper.a" % number) for number in range(10, 60)))
    assert len(writes) == 1
    assert writes[0].count(b" ok.A,") == 50


ERRORS = [
    (b"7 nope.a", xformd.NoSuchTransform),
    (b"7 upper:loud=1.a", xformd.BadOptions),
    (b"7 Upper.a", xformd.BadRequest),
    (b"7 upper", xformd.BadRequest),
    (b"7 upper timeout=x.a", xformd.BadRequest),
    (b"7 !nope.", xformd.BadRequest),
    (b"7 upper.\xff", xformd.GibberishError),
    (b"7 grow.aaaaaaaaaaa", xformd.TooLarge),
]


@pytest.mark.parametrize(("string", "error"), ERRORS)
def test_a_request_that_fails_is_told_why_and_the_session_goes_on(client: Client, string: bytes, error: type) -> None:
    client.say(encode(string) + encode(b"8 upper.b"))
    assert client.replies() == {7: error, 8: b"B"}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"rubbish", xformd.BadFrame),
        (encode(b"no id.a"), xformd.BadFrame),
        (encode(b"0 upper.a"), xformd.BadFrame),
        (b"99999999999:", xformd.TooLarge),
        (encode(b"1 later.a"), xformd.BadRequest),
    ],
)
def test_a_violation_is_told_and_ends_the_connection_and_what_runs_on_it(
    server: Server, client: Client, data: bytes, error: type
) -> None:
    client.ask(1, "later")
    with captured() as log:
        client.say(encode(b"2 upper.b") + data + encode(b"3 upper.c"))
    assert client.replies() == {2: b"B", 0: error}
    assert client.wire.write_closed
    assert server.cancelled == 1
    assert len(log.lines) == 1
    assert log.lines[0].startswith(f"refused 192.168.1.1:54321: {error.code}: ")  # type: ignore[attr-defined]


def test_no_more_than_allowed_run_at_a_time_and_the_rest_is_not_read(server: Server, client: Client) -> None:
    client.say(b"".join(encode(b"%d later.a" % number) for number in range(1, 8)))
    assert len(server.results) == 3
    assert client.wire.producerState == "paused"
    server.results[0].callback("x")
    assert len(server.results) == 4
    assert client.wire.producerState == "paused"
    for number in range(1, 7):
        server.results[number].callback("x")
    assert client.wire.producerState == "producing"
    assert set(client.replies()) == set(range(1, 8))


def test_a_client_that_does_not_read_gets_no_more_than_its_share(server: Server, client: Client) -> None:
    client.say(b"".join(encode(b"%d grow.a" % number) for number in range(1, 100)))
    assert client.wire.producerState == "paused"
    assert client.protocol.unread_bytes <= 3 * MIB
    answered = 0
    while client.wire.producerState == "paused":
        server.clock.advance(19)
        answered += len(client.replies())
        client.wire.taken()
    answered += len(client.replies())
    while client.protocol.unread_bytes:
        client.wire.taken()
        answered += len(client.replies())
    assert answered == 99


def test_nor_does_one_that_asks_for_one_thing_at_a_time(server: Server, client: Client) -> None:
    for number in range(1, 20):
        client.ask(number, "grow")
        assert client.protocol.unread_bytes <= 2 * MIB
    assert client.wire.producerState == "paused"


def test_a_request_that_is_too_large_is_refused_though_it_comes_whole() -> None:
    client = Client(Server(max_request_bytes=50))
    client.ask(1, poem=b"a" * 42)
    client.ask(2, poem=b"a" * 43)
    assert client.replies() == {1: b"A" * 42, 0: xformd.TooLarge}
    assert client.wire.write_closed


def test_a_client_that_takes_nothing_is_aborted(server: Server, client: Client) -> None:
    client.ask(1, "grow")
    server.clock.advance(19.9)
    assert not client.wire.disconnected
    server.clock.advance(0.1)
    assert client.wire.disconnected


def test_a_clients_timeout_shortens_the_deadline_and_never_lengthens_it(server: Server, client: Client) -> None:
    client.ask(1, "later", timeout_ms=1_500)
    client.ask(2, "later", timeout_ms=10**9)
    server.clock.advance(1.5)
    assert client.replies() == {1: xformd.TransformTimeout}
    server.clock.advance(28.5)
    assert client.replies() == {2: xformd.TransformTimeout}


def test_cancel_reaches_the_transform_and_answers_its_request(server: Server, client: Client) -> None:
    client.ask(1, "later")
    client.ask(2, "later")
    client.control(1, "cancel")
    assert client.replies() == {1: xformd.Cancelled}
    assert server.cancelled == 1
    client.control(1, "cancel")
    client.control(99, "cancel")
    assert client.replies() == {}
    server.results[1].callback("still there")
    assert client.replies() == {2: b"still there"}


def test_ping_and_list(client: Client) -> None:
    client.control(5, "ping")
    client.control(6, "list")
    replies = client.replies()
    assert replies[5] == b""
    assert b'"name": "upper"' in replies[6]


def tick(server: Server, seconds: float) -> None:
    """Let so much time go by whenever somebody looks how late it is."""
    times = itertools.count(0.0, seconds)
    server.factory.service.stopwatch = lambda: next(times)


class Flood(Client):
    """A client that has sent a hundred pings in one read, on a server that takes a millisecond for each."""

    def __init__(self, server: Server, *, before: bytes = b"") -> None:
        tick(server, 0.001)
        super().__init__(server)
        self.say(before + b"".join(encode(b"%d !ping." % number) for number in range(1_000, 1_100)))


def test_a_flood_has_one_turn_after_the_other_and_is_not_read_meanwhile(server: Server) -> None:
    other, flood = Client(server), Flood(server)
    turns = [[*flood.replies()]]
    flood.wire.write = lambda data: turns.append([*map(number_of, Decoder(MIB).decode(data))])  # type: ignore[method-assign]
    assert flood.protocol._is_paused
    other.ask(1)
    assert other.replies() == {1: b"A"}
    server.clock.advance(0)
    assert [*itertools.chain(*turns)] == [*range(1_000, 1_100)]
    assert {len(turn) for turn in turns[:-1]} <= {*range(5, 20)}
    assert not flood.protocol._is_paused
    flood.ask(1)
    assert turns[-1] == [1]


def number_of(string: bytes) -> int:
    return session.decode_reply(string).id


def test_an_answer_that_comes_meanwhile_gives_a_flood_no_other_turn(server: Server) -> None:
    flood = Flood(server, before=encode(b"1 later.x"))
    flood.replies()
    server.results[0].callback("late")
    assert flood.replies() == {1: b"late"}
    assert flood.protocol._is_paused


def test_a_flood_whose_client_is_gone_has_no_other_turn(server: Server) -> None:
    flood = Flood(server)
    flood.lose(ConnectionLost())
    assert server.clock.getDelayedCalls() == []


def test_a_flood_that_ends_is_answered_to_the_last_message(server: Server) -> None:
    flood = Flood(server)
    flood.protocol.readConnectionLost()
    assert not flood.wire.disconnecting
    server.clock.advance(0)
    assert [*flood.replies()] == [*range(1_000, 1_100)]
    assert flood.wire.disconnecting


def test_what_is_plain_has_turns_too(server: Server) -> None:
    client = Client(server)
    tick(server, 0.01)
    client.say(b"".join(encode(b"%d upper.a" % number) for number in range(1_000, 3_000)))
    assert len(client.replies()) < 2_000
    assert client.protocol._is_paused
    server.clock.advance(0)
    assert [*client.replies()][-1] == 2_999


def test_a_client_that_leaves_has_its_requests_dropped(server: Server, client: Client, log: Log) -> None:
    client.ask(1, "later")
    client.ask(2, "later")
    client.lose(ConnectionLost())
    assert server.cancelled == 2
    assert log.lines == []
    assert server.clock.getDelayedCalls() == []


def test_a_client_that_half_closes_gets_what_is_in_flight_and_the_close(server: Server, client: Client) -> None:
    client.ask(1, "later")
    client.protocol.readConnectionLost()
    assert not client.wire.disconnecting
    server.results[0].callback("done")
    assert client.replies() == {1: b"done"}
    assert client.wire.disconnecting


def test_a_client_that_has_ended_its_side_and_may_be_gone_is_not_waited_for_long(log: Log) -> None:
    """Each answer shows that it is still there; work that gives none holds nobody's worker for longer."""
    server = Server(linger_timeout_s=5)
    client = Client(server)
    for request_id in (1, 2):
        client.ask(request_id, "later")
    client.protocol.readConnectionLost()
    server.clock.advance(4)
    server.results[0].callback("done")
    assert client.replies() == {1: b"done"}
    server.clock.advance(4)
    assert not client.wire.disconnected
    server.clock.advance(1)
    assert client.wire.disconnected
    client.lose()
    assert server.cancelled == 1
    assert log.lines == ["cut off 192.168.1.1:54321: it took too long"]


def test_a_client_that_half_closes_inside_a_request_is_told(client: Client) -> None:
    client.say(b"12:1 upp")
    client.protocol.readConnectionLost()
    assert client.replies() == {0: xformd.BadFrame}
    assert client.wire.disconnecting


def test_a_server_that_stops_says_so_answers_what_is_in_flight_and_closes(server: Server, client: Client) -> None:
    idle = Client(server)
    client.ask(1, "later")
    drained = server.factory.drain()
    assert idle.replies() == {0: xformd.ShuttingDown}
    assert idle.wire.write_closed
    client.ask(2)
    assert client.replies() == {0: xformd.ShuttingDown, 2: xformd.ShuttingDown}
    server.results[0].callback("done")
    assert client.replies() == {1: b"done"}
    assert client.wire.write_closed
    for one in (client, idle):
        one.lose()
    assert drained.called
    assert server.clock.getDelayedCalls() == []


@pytest.mark.parametrize("start", [b"1", b"14:", b"14:1 upper.The", b"14:1 upper.The Ow"])
def test_no_byte_extends_the_deadline_of_a_request(server: Server, client: Client, start: bytes) -> None:
    server.clock.advance(200)
    client.ask(1)
    server.clock.advance(200)
    rest = b"14:1 upper.The Ow"[len(start) :]
    client.say(start)
    for byte in rest:
        server.clock.advance(1)
        client.say(bytes([byte]))
    server.clock.advance(29.9 - len(rest))
    assert not client.wire.disconnected
    server.clock.advance(0.1)
    assert client.wire.disconnected


def test_each_request_has_a_deadline_of_its_own(server: Server, client: Client) -> None:
    for number in range(1, 5):
        client.say(b"15:%d upp" % number)
        server.clock.advance(20)
        client.say(b"er.The Owl,")
    assert not client.wire.disconnected


def test_an_idle_session_is_told_and_closed_and_a_busy_one_is_not() -> None:
    server = Server(idle_timeout_s=10, transform_timeout_s=1_000)
    idle, busy = Client(server), Client(server)
    busy.ask(1, "later")
    server.clock.advance(10)
    assert idle.strings() == [b"0 timeout.no request for 10 s (idle_timeout_s)"]
    assert (idle.wire.write_closed, idle.wire.disconnected) == (True, False)
    server.clock.advance(500)
    assert idle.wire.disconnected  # it neither closed its side nor went on
    assert not busy.wire.write_closed
    server.results[0].callback("done")
    server.clock.advance(9.9)
    assert not busy.wire.write_closed
    server.clock.advance(0.1)
    assert busy.wire.write_closed


def test_a_slow_request_is_cut_off_without_a_word() -> None:
    client = Client(server := Server(idle_timeout_s=10, request_timeout_s=5))
    client.say(b"10:1 upper")
    server.clock.advance(5)
    assert client.wire.disconnected
    assert client.strings() == []


PIECES = [b"1 upper.a", b"2 later.b", b"3 nope.c", b"2 !cancel.", b"4 !ping.", b"5 !list.", b"x", b"6 grow.a"]


@given(
    st.lists(st.one_of(st.binary(max_size=10), st.sampled_from(list(map(encode, PIECES))))),
    st.lists(st.integers(0, 3)),
)
def test_nothing_that_a_client_sends_makes_a_traceback_or_leaves_a_timer(pieces: list[bytes], acts: list[int]) -> None:
    server = Server(max_request_bytes=50, max_in_flight=2, max_unread_output_bytes=100_000)
    with captured() as log:
        client = Client(server)
        for number, piece in enumerate(pieces):
            client.say(piece)
            if number < len(acts) and acts[number] == 1:
                client.wire.taken()
            if server.results and acts and acts[-1] == 2 and not server.results[-1].called:
                server.results[-1].callback("done")
        client.protocol.readConnectionLost()
        client.lose()
    assert log.tracebacks == []
    assert server.clock.getDelayedCalls() == []


def test_the_transport_is_told_how_long_a_request_is_and_that_the_next_may_be_as_long(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Wire, "hint_read_size", lambda _, count: told.append(count), raising=False)
    client = Client(server)
    request = encode(b"1 upper." + b"a" * 1_000_000)
    client.say(request[:100_000])
    assert told[-1] == 1_000_008
    client.say(request[100_000:])
    assert told[-1] == 1_000_008
    client.say(b"9:2 up")
    client.say(b"per.a,")
    assert told[-1] == 9


# With workers.


@pytest.fixture
def pool(server: Server) -> Pool:
    """Workers for what the server is asked for."""
    limits = server.factory.limits
    pool = Pool(server.clock).start()
    generation = Generation(REGISTRY, InlineRunner(10 * MIB, server.clock), pool.pool)
    server.factory.service = TransformService(generation, limits, server.clock)
    return pool


def test_work_does_not_begin_while_its_client_does_not_read(server: Server, pool: Pool) -> None:
    client = Client(server)
    for request_id in (1, 2, 3):
        client.ask(request_id, poem=b"%d" % request_id)
    pool.worker_of(b"1").answer(b"x" * 2 * MIB)  # more than a client may leave unread
    assert pool.poems() == [b"1"]
    while client.wire.held_bytes > 65_536:
        client.wire.taken()
    pool.worker_of(b"2").answer()
    pool.worker_of(b"3").answer()
    assert list(client.replies()) == [1, 2, 3]


def test_what_is_about_to_be_sent_counts_as_unread(server: Server, pool: Pool) -> None:
    @xformd.transform(inline=True)
    def fill(poem: str) -> str:
        return poem * 700_000

    registry = registry_of(fill, *(entry.transform for entry in REGISTRY.entries.values()))
    generation = Generation(registry, InlineRunner(10 * MIB, server.clock), pool.pool)
    server.factory.service = TransformService(generation, server.factory.limits, server.clock)
    client = Client(server)
    client.ask(1, "fill")
    assert client.wire.producerState == "producing"
    client.say(encode(b"2 fill.a") + encode(b"3 upper.x"))
    assert pool.poems() == []
    while client.protocol.unread_bytes:
        client.wire.taken()
    assert pool.poems() == [b"x"]


def test_cancel_takes_a_request_from_the_queue_unrun(server: Server, pool: Pool) -> None:
    client = Client(server)
    client.ask(1, poem=b"1")
    client.ask(2, poem=b"2")
    client.control(2, "cancel")
    assert client.replies() == {2: xformd.Cancelled}
    pool.worker_of(b"1").answer()
    assert client.replies() == {1: b"1"}
    assert pool.poems() == [b"1"]


def test_a_client_that_leaves_takes_its_work_along(server: Server, pool: Pool) -> None:
    client, other = Client(server), Client(server)
    client.ask(1, poem=b"1")
    client.ask(2, poem=b"2")
    other.ask(1, poem=b"other")
    worker = pool.worker_of(b"1")
    client.lose()
    assert worker.killed
    pool.worker_of(b"other").answer()
    assert other.replies() == {1: b"other"}
    assert b"2" not in pool.poems()
    worker.end()
    pool.make_ready()


def test_a_client_hears_that_its_worker_died_and_the_session_goes_on(server: Server, pool: Pool) -> None:
    client = Client(server)
    client.ask(1, poem=b"1")
    client.ask(2, poem=b"2")
    pool.worker_of(b"1").end()
    pool.worker_of(b"2").answer()
    assert client.replies() == {1: xformd.TransformDied, 2: b"2"}


def test_the_list_says_what_is_in_quarantine(server: Server, pool: Pool) -> None:
    client = Client(server)
    client.control(1, "list")
    listed = json.loads(client.replies()[1])
    assert {described["state"] for described in listed["transforms"]} == {"active"}
