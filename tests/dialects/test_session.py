"""Sessions on the server, in memory."""

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost

import xformd
from support.fakes import Site
from support.logs import Log, captured
from support.memory import ELSEWHERE, MIB, MemoryServer, MemorySession
from support.wires import Wire
from xformd.dialects.session import GOODBYE_S
from xformd.wire import session
from xformd.wire.netstring import Decoder, encode


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(
        request_timeout_s=30, idle_timeout_s=300, write_timeout_s=20, max_in_flight=3, max_unread_output_bytes=MIB
    )


@pytest.fixture
def client(server: MemoryServer) -> MemorySession:
    return MemorySession(server)


# Requests and replies.


def test_the_hello_has_the_limits(client: MemorySession) -> None:
    assert client.hello == session.Hello(f"xformd {xformd.__version__}", 10 * MIB, 3)


def test_a_client_need_not_wait_for_the_hello(server: MemoryServer) -> None:
    client = MemorySession(server, opened=False)
    client.send(session.encode_opening() + encode(b"1 upper.a") + encode(b"2 upper.b"))
    hello, *replies = client.strings()
    assert session.decode_hello(hello)
    assert replies == [b"1 ok.A", b"2 ok.B"]


def test_answers_come_in_any_order_and_the_session_stays(server: MemoryServer, client: MemorySession) -> None:
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


def test_a_reply_says_which_version_made_it_if_it_is_asked(server: MemoryServer, client: MemorySession) -> None:
    strings = (b"1 upper want=version.a", b"2 later want=version.a", b"3 upper+upper want=version.a", b"4 upper.a")
    client.send(b"".join(map(encode, strings)))
    server.results[0].callback("b")
    assert client.strings() == [
        b"1 ok version=upper/1%2E0.A",
        b"3 ok version=upper/1%2E0+upper/1%2E0.A",
        b"4 ok.A",
        b"2 ok version=later/1%2E0.b",
    ]
    client.send(encode(b"5 nope want=version.a") + encode(b"6 upper want=all.a"))
    assert [string.partition(b".")[0] for string in client.strings()] == [b"5 no-such-transform", b"6 ok"]


def test_the_requests_of_one_read_are_answered_in_one_write(client: MemorySession) -> None:
    client.ask(9, "later")
    writes: list[bytes] = []
    client.wire.write = writes.append  # type: ignore[method-assign, assignment]
    client.send(b"".join(encode(b"%d upper.a" % number) for number in range(10, 60)))
    assert len(writes) == 1
    assert writes[0].count(b" ok.A,") == 50


@pytest.mark.parametrize(
    ("string", "error"),
    [
        (b"7 nope.a", xformd.NoSuchTransform),
        (b"7 upper:loud=1.a", xformd.BadOptions),
        (b"7 Upper.a", xformd.BadRequest),
        (b"7 upper", xformd.BadRequest),
        (b"7 upper timeout=x.a", xformd.BadRequest),
        (b"7 !nope.", xformd.BadRequest),
        (b"7 upper.\xff", xformd.GibberishError),
        (b"7 grow.aaaaaaaaaaa", xformd.TooLarge),
    ],
)
def test_a_request_that_fails_does_not_end_the_session(client: MemorySession, string: bytes, error: type) -> None:
    client.send(encode(string) + encode(b"8 upper.b"))
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
def test_a_violation_ends_the_session_and_what_runs_on_it(
    server: MemoryServer, client: MemorySession, log: Log, data: bytes, error: type[xformd.XformError]
) -> None:
    client.ask(1, "later")
    client.send(encode(b"2 upper.b") + data + encode(b"3 upper.c"))
    assert client.replies() == {2: b"B", 0: error}
    assert client.wire.write_closed
    assert server.cancelled == 1
    (line,) = log.lines
    assert line.startswith(f"refused 192.168.1.1:54321: {error.code}: ")


def test_a_request_over_the_limit_is_refused_though_it_is_here_whole() -> None:
    client = MemorySession(MemoryServer(max_request_bytes=50))
    client.ask(1, poem=b"a" * 42)
    client.ask(2, poem=b"a" * 43)
    assert client.replies() == {1: b"A" * 42, 0: xformd.TooLarge}
    assert client.wire.write_closed


def test_a_clients_timeout_shortens_the_deadline_and_never_lengthens_it(
    server: MemoryServer, client: MemorySession
) -> None:
    client.ask(1, "later", timeout_ms=1_500)
    client.ask(2, "later", timeout_ms=10**9)
    server.clock.advance(1.5)
    assert client.replies() == {1: xformd.TransformTimeout}
    server.clock.advance(28.5)
    assert client.replies() == {2: xformd.TransformTimeout}


def test_cancel_reaches_the_transform_and_answers_its_request(server: MemoryServer, client: MemorySession) -> None:
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


def test_ping_and_list(client: MemorySession) -> None:
    client.control(5, "ping")
    client.control(6, "list")
    replies = client.replies()
    assert replies[5] == b""
    assert b'"name": "upper"' in replies[6]


def test_a_server_that_will_stop_says_so_to_who_pings_and_still_answers(
    server: MemoryServer, client: MemorySession
) -> None:
    server.factory.will_stop = True
    client.control(5, "ping")
    client.ask(6)
    assert client.replies() == {5: b"it will stop soon: send new requests elsewhere", 6: b"A"}


def test_new_limits_hold_for_new_connections(server: MemoryServer, client: MemorySession) -> None:
    server.factory.set_limits(attrs.evolve(server.limits, max_in_flight=5, max_request_bytes=1_000))
    assert MemorySession(server).hello == session.Hello(f"xformd {xformd.__version__}", 1_000, 5)
    client.ask(1, "upper", b"a" * 2_000)
    assert client.replies() == {1: b"A" * 2_000}


# Flow.


def test_the_server_reads_no_further_while_max_in_flight_requests_run(
    server: MemoryServer, client: MemorySession
) -> None:
    client.send(b"".join(encode(b"%d later.a" % number) for number in range(1, 8)))
    assert len(server.results) == 3
    assert client.wire.producerState == "paused"
    server.results[0].callback("x")
    assert len(server.results) == 4
    assert client.wire.producerState == "paused"
    for number in range(1, 7):
        server.results[number].callback("x")
    assert client.wire.producerState == "producing"
    assert set(client.replies()) == set(range(1, 8))


def test_a_client_that_does_not_read_gets_no_more_than_its_share(server: MemoryServer, client: MemorySession) -> None:
    client.send(b"".join(encode(b"%d grow.a" % number) for number in range(1, 100)))
    assert client.wire.producerState == "paused"
    assert client.protocol.unread_bytes <= 2 * MIB
    answered = 0
    while client.wire.producerState == "paused" or client.protocol.unread_bytes:
        server.clock.advance(19)
        answered += len(client.replies())
        client.wire.taken()
    assert answered + len(client.replies()) == 99


def test_nor_does_one_that_sends_one_request_at_a_time(client: MemorySession) -> None:
    for number in range(1, 20):
        client.ask(number, "grow")
        assert client.protocol.unread_bytes <= 2 * MIB
    assert client.wire.producerState == "paused"


def test_the_transport_is_told_the_length_of_the_current_or_last_request(
    server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hints: list[int] = []
    monkeypatch.setattr(Wire, "hint_read_size", lambda _, count: hints.append(count), raising=False)
    client = MemorySession(server)
    request = encode(b"1 upper." + b"a" * 1_000_000)
    for pieces, hint in (((request[:100_000], request[100_000:]), 1_000_008), ((b"9:2 up", b"per.a,"), 9)):
        for piece in pieces:
            client.send(piece)
            assert hints[-1] == hint


# Turns.


def tick(server: MemoryServer, seconds: float) -> None:
    """Let this time pass whenever the server reads its stopwatch."""
    times = itertools.count(0.0, seconds)
    server.factory.service.stopwatch = lambda: next(times)  # type: ignore[method-assign]


class Flood(MemorySession):
    """A client that has sent a hundred pings in one read, to a server that takes a millisecond for each."""

    def __init__(self, server: MemoryServer, *, before: bytes = b"") -> None:
        tick(server, 0.001)
        super().__init__(server)
        self.send(before + b"".join(encode(b"%d !ping." % number) for number in range(1_000, 1_100)))


def test_a_flood_is_answered_in_turns_and_not_read_meanwhile(server: MemoryServer) -> None:
    other, flood = MemorySession(server, peer=ELSEWHERE), Flood(server)
    same = MemorySession(server)
    turns = [[*flood.replies()]]
    flood.wire.write = lambda data: turns.append(  # type: ignore[method-assign]
        [session.decode_reply(string).id for string in Decoder(MIB).decode(data)]
    )
    assert flood.protocol._is_paused
    other.ask(1)
    assert other.replies() == {1: b"A"}
    same.ask(1)
    assert same.replies() == {}  # its turn is that of the same peer
    server.clock.advance(0)
    assert [*itertools.chain(*turns)] == [*range(1_000, 1_100)]
    assert {len(turn) for turn in turns[:-1]} <= {*range(5, 20)}
    assert not flood.protocol._is_paused
    flood.ask(1)
    assert turns[-1] == [1]


def test_plain_requests_are_answered_in_turns_too(server: MemoryServer, client: MemorySession) -> None:
    tick(server, 0.01)
    client.send(b"".join(encode(b"%d upper.a" % number) for number in range(1_000, 3_000)))
    assert len(client.replies()) < 2_000
    assert client.protocol._is_paused
    server.clock.advance(0)
    assert [*client.replies()][-1] == 2_999


def test_a_result_gives_a_flood_no_other_turn(server: MemoryServer) -> None:
    flood = Flood(server, before=encode(b"1 later.x"))
    flood.replies()
    server.results[0].callback("late")
    assert flood.replies() == {1: b"late"}
    assert flood.protocol._is_paused


def test_a_flood_whose_client_is_gone_has_no_other_turn(server: MemoryServer) -> None:
    flood = Flood(server)
    flood.lose(ConnectionLost())
    sent = flood.wire.value()
    server.clock.advance(0)
    assert flood.wire.value() == sent
    assert server.clock.getDelayedCalls() == []


def test_a_flood_that_half_closes_is_answered_to_the_last_message(server: MemoryServer) -> None:
    flood = Flood(server)
    flood.protocol.readConnectionLost()
    assert not flood.wire.disconnecting
    server.clock.advance(0)
    assert [*flood.replies()] == [*range(1_000, 1_100)]
    assert flood.wire.disconnecting


# Deadlines.


@pytest.mark.parametrize("start", [b"1", b"14:", b"14:1 upper.The", b"14:1 upper.The Ow"])
def test_no_byte_extends_the_deadline_of_a_request(server: MemoryServer, client: MemorySession, start: bytes) -> None:
    server.clock.advance(200)
    client.ask(1)
    server.clock.advance(200)
    rest = b"14:1 upper.The Ow"[len(start) :]
    client.send(start)
    for byte in rest:
        server.clock.advance(1)
        client.send(bytes([byte]))
    server.clock.advance(29.9 - len(rest))
    assert not client.wire.disconnected
    server.clock.advance(0.1)
    assert client.wire.disconnected


def test_each_request_has_a_deadline_of_its_own(server: MemoryServer, client: MemorySession) -> None:
    for number in range(1, 5):
        client.send(b"15:%d upp" % number)
        server.clock.advance(20)
        client.send(b"er.The Owl,")
    assert not client.wire.disconnected


def test_an_idle_session_is_told_and_closed_and_a_busy_one_is_not() -> None:
    server = MemoryServer(idle_timeout_s=10, transform_timeout_s=1_000)
    idle, busy = MemorySession(server), MemorySession(server)
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


@pytest.mark.parametrize(("data", "seconds"), [(b"10:1 upper", 5), (encode(b"1 grow.a"), 20)])
def test_a_client_that_takes_too_long_is_cut_off_without_a_message(data: bytes, seconds: float) -> None:
    server = MemoryServer(request_timeout_s=5, write_timeout_s=20)
    client = MemorySession(server)
    client.send(data)
    server.clock.advance(seconds - 0.1)
    assert not client.wire.disconnected
    server.clock.advance(0.1)
    assert client.wire.disconnected
    assert b" timeout." not in client.wire.value()


# The end.


def test_a_lost_session_cancels_its_requests(server: MemoryServer, client: MemorySession, log: Log) -> None:
    client.ask(1, "later")
    client.ask(2, "later")
    client.lose(ConnectionLost())
    assert (server.cancelled, log.lines) == (2, [])
    assert server.clock.getDelayedCalls() == []


def test_a_client_that_half_closes_gets_what_is_in_flight_and_the_close(
    server: MemoryServer, client: MemorySession
) -> None:
    client.ask(1, "later")
    client.protocol.readConnectionLost()
    assert not client.wire.disconnecting
    server.results[0].callback("done")
    assert client.replies() == {1: b"done"}
    assert client.wire.disconnecting


def test_a_client_that_has_half_closed_is_not_waited_for_long(log: Log) -> None:
    # It may be gone, which only an answer to it would show: work that gives none must not hold a worker for longer.
    server = MemoryServer(linger_timeout_s=5)
    client = MemorySession(server)
    client.ask(1, "later")
    client.ask(2, "later")
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


def test_a_client_that_half_closes_inside_a_request_is_told(client: MemorySession) -> None:
    client.send(b"12:1 upp")
    client.protocol.readConnectionLost()
    assert client.replies() == {0: xformd.BadFrame}
    assert client.wire.disconnecting


def test_a_stopping_server_says_so_answers_what_is_in_flight_and_closes(
    server: MemoryServer, client: MemorySession
) -> None:
    idle = MemorySession(server)
    client.ask(1, "later")
    drained = server.factory.drain()
    assert idle.replies() == {0: xformd.ShuttingDown}
    assert not idle.wire.write_closed
    client.ask(2)
    assert client.replies() == {0: xformd.ShuttingDown, 2: xformd.ShuttingDown}
    server.clock.advance(GOODBYE_S)
    assert (idle.wire.write_closed, client.wire.write_closed) == (True, False)
    server.results[0].callback("done")
    assert client.replies() == {1: b"done"}
    assert client.wire.write_closed
    for one in (client, idle):
        one.lose()
    assert drained.called
    assert server.clock.getDelayedCalls() == []


def test_a_request_that_crosses_the_goodbye_is_answered_that_it_has_not_begun(
    server: MemoryServer, client: MemorySession
) -> None:
    client.send(b"9:1 upp")
    server.factory.drain()
    client.send(b"er.a,")
    client.ask(2)
    assert client.wire.value().count(b" shutting-down retry-after=1000.") == 3
    assert client.replies() == {0: xformd.ShuttingDown, 1: xformd.ShuttingDown, 2: xformd.ShuttingDown}
    client.protocol.readConnectionLost()
    assert client.wire.disconnecting
    client.lose()
    assert server.clock.getDelayedCalls() == []


PIECES = [b"1 upper.a", b"2 later.b", b"3 nope.c", b"2 !cancel.", b"4 !ping.", b"5 !list.", b"x", b"6 grow.a"]


@given(
    st.lists(st.one_of(st.binary(max_size=10), st.sampled_from(list(map(encode, PIECES))))),
    st.lists(st.integers(0, 3)),
)
def test_nothing_that_a_client_sends_makes_a_traceback_or_leaves_a_timer(pieces: list[bytes], acts: list[int]) -> None:
    server = MemoryServer(max_request_bytes=50, max_in_flight=2, max_unread_output_bytes=100_000)
    with captured() as log:
        client = MemorySession(server)
        for number, piece in enumerate(pieces):
            client.send(piece)
            if number < len(acts) and acts[number] == 1:
                client.wire.taken()
            if server.results and acts and acts[-1] == 2 and not server.results[-1].called:
                server.results[-1].callback("done")
        client.protocol.readConnectionLost()
        client.lose()
    assert log.tracebacks == []
    server.clock.advance(1)  # the log's period
    assert server.clock.getDelayedCalls() == []


def test_output_that_is_about_to_be_sent_counts_as_unread(server: MemoryServer) -> None:
    @xformd.transform(inline=True)
    def fill(poem: str) -> str:
        return poem * 700_000

    site = Site(server.clock, fill)
    site.service.stopwatch = server.clock.seconds  # on a busy machine a turn would be over
    server.factory.service = site.service
    client = MemorySession(server)
    client.ask(1, "fill")
    assert client.wire.producerState == "producing"
    client.send(encode(b"2 fill.a") + encode(b"3 upper.x"))
    assert site.pool.poems() == []
    while client.protocol.unread_bytes:
        client.wire.taken()
    assert site.pool.poems() == [b"x"]
