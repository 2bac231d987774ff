"""HTTP connections: pipelining, deadlines, limits, disconnects, eviction and shutdown."""

import contextlib
import gc
import itertools
import socket
import weakref
from typing import Any, cast

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from support.http_front import Client, Front, ask, connected, request
from support.logs import Log
from support.memory import HERE
from xformd.http.connection import PROBE_AGAIN_S, PROBE_S, HttpHandler
from xformd.http.messages import Request, Response
from xformd.wire.http1 import MAX_HEAD_BYTES

OWL = request("/transform/upper", b"owl")
LATER = request("/transform/later", b"owl")
LONG = request("/transform/repeat:times=100", b"owl" * 1_000)
HEAD = b"POST /transform/upper HTTP/1.1\r\nHost: a\r\n"
PART = HEAD + b"Content-Length: 3\r\n\r\now"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MANY = 100


def batch(lines: int) -> bytes:
    return request("/batch", b'{"spec": "later", "poem": "owl"}\n' * lines)


def statuses(client: Client) -> list[int]:
    return [answer.status for answer in client.received()]


# Pipelining.


def test_pipelining_takes_bounded_memory() -> None:
    client = Front().client(LATER)
    client.protocol.dataReceived(request("/livez") * 2_000)
    assert sum(type(each) is Request for each in gc.get_objects()) < 10
    assert client.wire.producerState == "paused"


def test_pipelined_requests_are_read_as_they_are_answered() -> None:
    front, client = connected(LATER)
    client.send(LATER * 3 + OWL)
    assert client.wire.producerState == "paused"
    for number in range(4):
        assert len(front.results) == number + 1
        front.finish(number, client)
    assert client.wire.producerState == "producing"
    assert len(client.received()) == 5


def test_a_poem_behind_another_request_arrives_whole() -> None:
    front, poem = Front(), b"owl" * 50_000
    client, data = front.open(), LATER + request("/transform/upper", poem)
    client.protocol.dataReceived(data[:40_000])
    client.settle()
    front.finish(0, client)
    client.send(data[40_000:])
    assert [answer.body for answer in client.received()] == [b"late", poem.upper()]


# Deadlines.


def assert_cut_off(front: Front, client: Client, after_s: float) -> None:
    front.advance(after_s - 0.1, client)
    assert not client.is_closed
    front.advance(0.2, client)
    assert client.is_closed


@pytest.mark.parametrize(
    ("begun", "more"),
    [
        (b"P", b"OST "),
        (PART, b""),
        (HEAD, b"1111"),
        (HEAD + b"X: y", b"yyyy"),
        (HEAD + b"Content-Length: 9\r\n\r\n", b"owls"),
        (CHUNKED, b"1111"),
        (CHUNKED + b"1;", b"xxxx"),
        (CHUNKED + b"0\r\nX: ", b"yyyy"),
    ],
)
def test_a_slow_request_gets_408(begun: bytes, more: bytes) -> None:
    front, client = connected(begun, request_timeout_s=5)
    for byte in more:
        client.send(bytes([byte]))
        front.advance(1, client)
    assert_cut_off(front, client, 5 - len(more))
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (408, "bad-request")
    assert "request_timeout_s" in answer.problem["detail"]


@pytest.mark.parametrize(
    "behind",
    [PART, OWL * MANY + HEAD, OWL * MANY + CHUNKED + b"3\r\no"],
    ids=["parsed", "a head in the backlog", "a body in the backlog"],
)
def test_a_pipelined_request_has_its_deadline_from_its_turn(behind: bytes) -> None:
    front, client = connected(LATER + behind, request_timeout_s=5, idle_timeout_s=10)
    front.clock.advance(20)  # neither timeout limits a transform
    front.finish(0, client)
    assert {*statuses(client)} == {200}
    assert_cut_off(front, client, 5)
    assert statuses(client) == [408]


def test_an_idle_connection_is_closed_silently() -> None:
    front = Front(idle_timeout_s=50, request_timeout_s=5)
    fresh, used = front.open(), front.open()
    used.ask(OWL)
    front.advance(49.9, fresh)
    assert (fresh.is_closed, used.is_closed) == (False, False)
    front.advance(0.2, fresh)
    assert (fresh.is_closed, used.is_closed) == (True, True)
    assert fresh.received() == used.received() == []


@pytest.mark.parametrize("pieces", [[b"\r\n"], [b"\r", b"\n"], [b"\r", b"\n\r", b"\n"]])
def test_empty_lines_gain_no_time(pieces: list[bytes]) -> None:
    """A client that sends half of one now and then would otherwise stay for ever."""
    front, client = connected(b"", idle_timeout_s=50, request_timeout_s=30)
    for piece in pieces * 100:
        if client.is_closed:
            break
        client.send(piece)
        front.advance(1, client)
    assert front.clock.seconds() <= 51
    assert client.received() == []


@pytest.mark.parametrize(("rest_bytes", "cut_off_after_s"), [(0, 5), (30, 50)])
def test_a_rejected_request_s_body_has_its_own_deadline(rest_bytes: int, cut_off_after_s: float) -> None:
    missing = request("/transform/uppr", b"owl" * 100)
    front, client = connected(missing[:-30], request_timeout_s=5, idle_timeout_s=50)
    assert statuses(client) == [404]
    client.send(missing[-30:][:rest_bytes])
    assert_cut_off(front, client, cut_off_after_s)
    assert client.received() == [], "it has its answer"


def test_a_client_that_does_not_read_is_paused_and_cut_off() -> None:
    front = Front(write_timeout_s=5, max_unread_output_bytes=100_000)
    client = front.open()
    client.stop_reading()
    client.send(LONG * 20)
    assert client.protocol.unread_bytes < 1_000_000
    assert (client.wire.producerState, client.wire.disconnected) == ("paused", False)
    front.clock.advance(5.1)
    assert client.wire.disconnected
    client.leave()


# Limits.


def test_an_endless_body_is_rejected_at_the_limit() -> None:
    client = Front(max_request_bytes=100_000).client(CHUNKED)
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    client.send(chunk * 24)
    assert not client.is_closed
    (answer,) = client.ask(chunk)
    assert (answer.status, answer.problem["code"], client.is_closed) == (413, "too-large", True)


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
def test_an_announced_length_over_the_limit_is_rejected_at_once(expects: bytes) -> None:
    front = Front(max_request_bytes=100)
    answer = front.ask(HEAD + expects + b"Content-Length: 101\r\n\r\n")
    assert (answer.status, answer.problem["code"], answer.headers["connection"]) == (413, "too-large", "close")
    assert (front.ask(request("/transform/upper", b"a" * 100))).status == 200


def test_one_byte_chunks_are_accepted() -> None:
    count = MAX_HEAD_BYTES // 4
    assert (ask(CHUNKED + b"1\r\na\r\n" * count + b"0\r\n\r\n")).body == b"A" * count


def test_many_rejected_clients_are_one_line_a_second(log: Log) -> None:
    front = Front()
    for _ in range(50):
        front.ask(b"garbage\r\n\r\n")
    front.clock.advance(1)
    assert [line.count("the last of 49 within a second") for line in log.lines] == [0, 1]


def test_a_rejected_client_is_logged_and_counted(log: Log) -> None:
    front = Front()
    front.ask(b"garbage\r\n\r\n")
    assert front.requests == {("(none)", "http", "bad-request"): 1}
    (line,) = [line for line in log.lines if "refused" in line]
    assert line.endswith(": bad-request: this is not an HTTP/1.1 request")


@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"3\r\nowls", 404), (b"0\r\nX\r\n\r\n", 404), (b"FFFFFFFFF\r\n", 404), (b"1;" + b"x" * MAX_HEAD_BYTES, 404)],
)
def test_a_request_that_has_its_answer_is_counted_once_whatever_follows(rest: bytes, status: int) -> None:
    front, client = connected(CHUNKED.replace(b"upper", b"uppr") + rest)
    assert statuses(client) == [status]
    assert client.is_closed
    assert front.requests == {("(unknown)", "http", "no-such-transform"): 1}


# Disconnects.


def test_a_half_closed_client_gets_every_answer() -> None:
    front, client = connected(LATER + OWL * 1_000 + HEAD)
    client.protocol.readConnectionLost()
    front.finish(0, client)
    found = [answer.body for answer in client.received() if answer.status != 100]
    assert found == [b"late", *[b"OWL"] * 1_000]
    assert client.is_closed


@pytest.mark.parametrize(("version", "expected"), [(b"1.1", [100, 200]), (b"1.0", [200])])
def test_probing_a_half_closed_client_does_no_harm(version: bytes, expected: list[int]) -> None:
    front, client = connected(LATER.replace(b"1.1", version))
    client.protocol.readConnectionLost()
    front.advance(PROBE_S, client)
    front.finish(0, client)
    assert statuses(client) == expected


@pytest.mark.parametrize(
    ("sent", "running"),
    [
        *((sent, 0) for sent in (b"", HEAD, OWL, OWL + HEAD, b"garbage\r\n\r\n")),
        *((sent, 1) for sent in (LATER, LATER * 2, OWL + LATER + OWL)),
        (batch(2), 2),
        (batch(9), 4),
    ],
)
def test_a_disconnect_cancels_what_runs_and_leaves_nothing(sent: bytes, running: int, log: Log) -> None:
    front, client = connected(sent, max_in_flight=4)
    client.leave()
    assert front.cancelled == len(front.results) == running
    assert not log.tracebacks
    assert not front.factory.connections
    front.clock.advance(1)  # the end of the log's period
    assert not front.clock.getDelayedCalls()
    left = weakref.ref(client.protocol)
    front.results.clear()
    log.clear()
    del client
    gc.collect()
    assert left() is None


# Eviction.


def makes_room(front: Front, *clients: Client) -> list[bool]:
    """Return whether a new connection is accepted, and whether each of these clients was evicted for it."""
    is_accepted = front.factory.buildProtocol(HERE) is not None
    evicted = [client.wire.disconnected for client in clients]
    for client in clients:
        if client.wire.disconnected and client.protocol in front.factory.connections:
            client.protocol.connectionLost()
    return [is_accepted, *evicted]


def test_the_longest_idle_connection_is_evicted_and_none_that_waits_for_an_answer() -> None:
    front = Front(max_connections=3)
    busy, used, slow = [front.open() for _ in range(3)]
    busy.send(LATER)
    slow.send(HEAD)
    used.ask(OWL)
    assert makes_room(front, busy, used, slow) == [True, False, False, True]
    front.open()
    used.ask(OWL)
    used.send(LATER)
    assert makes_room(front, busy, used) == [True, False, False]


def test_a_new_connection_is_refused_when_all_others_are_busy_or_gone() -> None:
    front = Front(max_connections=1)
    gone = front.open()
    gone.leave()
    front.client(LATER)
    assert makes_room(front, gone) == [False, False]


def test_a_connection_whose_request_is_still_unread_is_spared() -> None:
    with contextlib.ExitStack() as ends:
        ours, theirs = map(ends.enter_context, socket.socketpair())
        theirs.sendall(b"G")
        front = Front(max_connections=2)
        first, second = front.open(), front.open()
        first.wire.fileno = ours.fileno  # type: ignore[attr-defined]
        assert makes_room(front, first, second) == [True, False, True]
        assert makes_room(front, first) == [True, False]


def test_nothing_is_evicted_for_a_peer_over_its_own_limit() -> None:
    front = Front(max_connections_per_peer=1)
    assert makes_room(front, front.open()) == [False, False]


@pytest.mark.parametrize("last", [b"X\r\n", request("/livez", connection="close")])
def test_connections_that_have_all_they_get_are_the_first_to_go(last: bytes) -> None:
    front = Front(max_connections=3)
    idle, done = front.open(), front.open()
    waiting = front.open()
    waiting.send(LATER)
    done.send(last)
    assert done.is_closed
    assert makes_room(front, idle, done, waiting) == [True, False, True, False]


def test_an_address_evicts_its_own_idle_connections_and_those_of_the_one_with_the_most() -> None:
    front = Front(max_connections=4)
    others = [front.open(IPv4Address("TCP", f"192.0.2.{number}", 1)) for number in (1, 2)]
    busy, idle = front.open(), front.open()
    busy.send(LATER)
    assert makes_room(front, *others, busy, idle) == [True, False, False, False, True]
    front.client(LATER)  # it has the most, and nothing idle
    assert makes_room(front, *others, busy) == [False, False, False, False]
    assert front.factory.buildProtocol(IPv4Address("TCP", "192.0.2.3", 1)) is not None
    assert [each.wire.disconnected for each in (*others, busy)] == [False, False, True]


def test_a_client_that_does_not_read_is_evicted_in_the_end() -> None:
    front = Front(max_connections=2, max_unread_output_bytes=100_000)
    unread, idle = front.open(), front.open()
    unread.stop_reading()
    unread.send(LONG * 20)
    assert makes_room(front, unread, idle) == [True, False, True]
    front.client(LATER)
    assert makes_room(front, unread) == [True, True]


# Shutdown.


def test_shutdown_answers_complete_requests_then_closes() -> None:
    front = Front()
    idle, busy = front.open(), front.open()
    idle.ask(OWL)
    busy.send(LATER + OWL)
    front.factory.drain()
    assert idle.is_closed
    assert front.factory.buildProtocol(None) is None
    front.finish(0, busy)
    first, second = busy.received()
    assert (first.body, second.body, second.headers["connection"]) == (b"late", b"OWL", "close")
    assert busy.is_closed


@pytest.mark.parametrize("begun", [HEAD, PART])
@pytest.mark.parametrize("is_behind_another", [False, True])
def test_shutdown_rejects_an_incomplete_request(begun: bytes, is_behind_another: bool) -> None:
    front, client = connected(LATER * is_behind_another + begun)
    front.factory.drain()
    if is_behind_another:
        front.finish(0, client)
    answer = client.received()[-1]
    assert (answer.status, answer.problem["code"], answer.headers["retry-after"]) == (503, "shutting-down", "1")
    assert client.is_closed


def test_the_end_of_the_grace_period_answers_what_still_runs() -> None:
    front, client = connected(LATER, shutdown_grace_s=5)
    front.factory.drain()
    front.advance(5.1, client)
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"], client.is_closed) == (503, "shutting-down", True)


def broken(_: object) -> Any:
    raise RuntimeError("our fault")


def test_an_application_error_is_logged_and_not_shown(log: Log) -> None:
    front = Front()
    front.application.respond = broken
    answer = front.ask(OWL)
    assert answer.status == 500
    assert b"fault" not in answer.body
    assert len(log.tracebacks) == 1


# What a review has found.


def test_a_client_that_reads_slowly_has_more_time_than_its_request_had() -> None:
    front = Front(request_timeout_s=5, write_timeout_s=20)
    client = front.open()
    client.wire.max_held_bytes = 65_536
    last = request("/transform/repeat:times=10", b"owl" * 50_000, connection="close")
    client.protocol.dataReceived(last[:100])
    client.protocol.dataReceived(last[100:])
    for _ in range(15):
        front.clock.advance(2)
        client.wire.taken()
    assert not client.wire.disconnected
    (answer,) = client.received()
    assert len(answer.body) == 1_500_000
    assert client.is_closed


def test_a_half_closed_client_is_probed_again() -> None:
    front, client = connected(LATER)
    client.protocol.readConnectionLost()
    for _ in range(3):
        front.advance(PROBE_AGAIN_S, client)
    assert statuses(client) == [100] * 3
    front.finish(0, client)
    assert statuses(client) == [200]


def test_short_requests_behind_a_long_body_are_read_in_short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    hints: list[int] = []
    monkeypatch.setattr("support.wires.Wire.hint_read_size", lambda _, count: hints.append(count), raising=False)
    client = Front().client(request("/transform/upper", b"owl" * 100_000))
    assert hints == [300_000, 0]
    client.send(OWL * 3)
    assert hints == [300_000, 0]


def test_what_is_sent_behind_a_batch_waits_for_its_end() -> None:
    ticks = itertools.count()
    front = Front(stopwatch=lambda: next(ticks) / 10)  # every look at the clock ends a turn
    client = front.client(batch(2) + OWL)
    for number in range(2):
        front.finish(number, client)
    assert [answer.status for answer in client.received()] == [200, 200]


class AtOnce:
    """A body that ends before its response does."""

    def start(self, writer: HttpHandler) -> None:
        writer.write(b"owl")
        writer.end()

    def resume(self) -> None: ...
    def cancel(self) -> None: ...


def test_a_late_response_may_end_as_soon_as_it_starts() -> None:
    front, late = Front(), [Deferred[Response](), Deferred[Response]()]
    waiting = iter(late)
    front.application.respond = lambda _: lambda body: next(waiting)
    client = front.client(OWL + OWL)
    late[0].callback(Response(200, b"", cast(Any, AtOnce())))
    assert statuses(client) == [200]
    late[1].callback(Response(200, b"", b"cat"))
    assert statuses(client) == [200]
