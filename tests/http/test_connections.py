"""HTTP connections: what is pipelined, what takes too long, who is gone, and how a connection ends."""

import asyncio
import gc
import weakref

import pytest

from support.http_front import Client, Front, request
from support.logs import Log
from xformd.http.connection import PIECE_BYTES, PROBE_S
from xformd.http.requests import MAX_HEAD_BYTES

OWL = request("/transform/upper", b"owl")
LATER = request("/transform/later", b"owl")
HEAD = b"POST /transform/upper HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


# Pipelining.


async def test_answers_come_in_turn_also_when_the_first_takes_longest() -> None:
    front = Front()
    client = front.connect()
    assert await client.ask(LATER + OWL + OWL) == []
    front.waiting[0].callback("late")
    await client.settle()
    assert [answer.body for answer in client.received()] == [b"late", b"OWL", b"OWL"]


async def test_what_is_pipelined_does_not_fill_the_memory() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER)
    client.protocol.dataReceived(request("/livez") * 2_000)
    cycles = sum("RequestResponseCycle" in repr(type(each)) for each in gc.get_objects())
    assert cycles < 200
    assert client.wire.producerState == "paused"


async def test_a_client_that_pipelines_without_end_is_read_no_faster_than_it_is_answered() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER)
    await client.send(LATER * 3 + OWL)
    assert client.wire.producerState == "paused"
    for number in range(4):
        assert len(front.waiting) == number + 1
        front.waiting[number].callback("late")
        await client.settle()
    assert client.wire.producerState == "producing"
    assert len(client.received()) == 5


async def test_a_poem_that_waits_behind_another_request_arrives_whole() -> None:
    front = Front()
    client, poem = front.connect(), b"owl" * 50_000
    client.protocol.dataReceived((LATER + request("/transform/upper", poem))[: 10 * PIECE_BYTES])
    await client.settle()
    front.waiting[0].callback("late")
    await client.settle()
    await client.send((LATER + request("/transform/upper", poem))[10 * PIECE_BYTES :])
    assert [answer.body for answer in client.received()] == [b"late", poem.upper()]


# What takes too long.


async def cut_off(front: Front, client: Client, after_s: float) -> None:
    front.clock.advance(after_s - 0.1)
    await client.settle()
    assert not client.is_closed
    front.clock.advance(0.2)
    await client.settle()
    assert client.is_closed


@pytest.mark.parametrize(
    "beginning",
    [b"P", HEAD, HEAD + b"X: y", HEAD + b"Content-Length: 3\r\n\r\now", CHUNKED, CHUNKED + b"3\r\nowl\r\n0\r\nX: "],
)
async def test_a_request_that_does_not_arrive_in_time_is_told_so(beginning: bytes) -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    await client.send(beginning)
    await cut_off(front, client, 5)
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (408, "bad-request")
    assert "request_timeout_s" in answer.problem["detail"]


async def test_no_byte_gives_a_request_more_time() -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    for byte in (HEAD + b"X-Drip: drip drip")[:49]:
        await client.send(bytes([byte]))
        front.clock.advance(0.1)
    assert not client.is_closed
    await client.send(b"X")
    front.clock.advance(0.2)
    assert client.is_closed


async def test_a_request_behind_another_one_has_its_time_from_when_it_is_its_turn() -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    await client.send(LATER + HEAD + b"Content-Length: 3\r\n\r\now")
    front.clock.advance(20)
    front.waiting[0].callback("late")
    await client.settle()
    assert [answer.status for answer in client.received()] == [200]
    await cut_off(front, client, 5)
    assert [answer.status for answer in client.received()] == [408]


@pytest.mark.parametrize("rest", [HEAD, CHUNKED + b"3\r\no"])
async def test_so_it_is_where_a_whole_read_waits(rest: bytes) -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    await client.send(LATER + OWL * (PIECE_BYTES // len(OWL) + 1) + rest)
    front.clock.advance(20)
    front.waiting[0].callback("late")
    await client.settle()
    client.received()
    await cut_off(front, client, 5)
    assert [answer.status for answer in client.received()] == [408]


async def test_who_has_nothing_to_say_is_left_without_a_word() -> None:
    front = Front(idle_timeout_s=50, request_timeout_s=5)
    fresh, used = front.connect(), front.connect()
    await used.ask(OWL)
    for client in (fresh, used):
        assert not client.is_closed
    front.clock.advance(49.9)
    await fresh.settle()
    assert not fresh.is_closed
    assert not used.is_closed
    front.clock.advance(0.2)
    for client in (fresh, used):
        await client.settle()
        assert client.is_closed
        assert client.received() == []


async def test_an_answer_has_all_the_time_that_the_service_gives_it() -> None:
    front = Front(idle_timeout_s=1, request_timeout_s=1, transform_timeout_s=60)
    client = front.connect()
    await client.send(LATER)
    front.clock.advance(59)
    front.waiting[0].callback("late")
    await client.settle()
    assert client.received()[0].body == b"late"


async def test_a_body_that_nobody_wants_has_an_end_too() -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    missing = request("/transform/uppr", b"owl" * 100)
    assert [answer.status for answer in await client.ask(missing[:-10])] == [404]
    await cut_off(front, client, 5)
    assert client.received() == [], "it has its answer"


async def test_after_a_body_that_nobody_wanted_the_next_request_has_all_its_time() -> None:
    front = Front(request_timeout_s=5, idle_timeout_s=50)
    client = front.connect()
    missing = request("/transform/uppr", b"owl" * 100)
    await client.ask(missing[:-10])
    await client.send(missing[-10:])
    await cut_off(front, client, 50)


async def test_who_does_not_read_is_cut_off() -> None:
    front = Front(write_timeout_s=5)
    client = front.connect()
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000))
    client.wire.producer.pauseProducing()
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000))
    front.clock.advance(5.1)
    assert client.wire.disconnected
    client.leave()


async def test_answers_that_nobody_reads_are_not_piled_up() -> None:
    front = Front(max_unread_output_bytes=100_000)
    client = front.connect()
    client.wire.write = lambda data: client.wire.producer.pauseProducing()  # type: ignore[method-assign]
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000) * 20)
    unread_bytes, state = client.protocol.unread_bytes, client.wire.producerState
    client.leave()  # else it would be waited for
    assert unread_bytes < 1_000_000
    assert state == "paused"


# Too much.


async def test_a_body_without_end_is_cut_at_the_limit() -> None:
    front = Front(max_request_bytes=100_000)
    client = front.connect()
    await client.send(CHUNKED)
    for _ in range(24):
        await client.send(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    assert not client.is_closed
    (answer,) = await client.ask(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    assert client.is_closed


async def test_what_would_be_too_long_is_refused_before_it_is_sent() -> None:
    front = Front(max_request_bytes=100)
    (answer,) = await front.ask(HEAD + b"Content-Length: 101\r\n\r\n")
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    assert answer.headers["connection"] == "close"
    (answer,) = await front.ask(HEAD + b"Expect: 100-continue\r\nContent-Length: 101\r\n\r\n")
    assert answer.status == 413
    (answer,) = await front.ask(request("/transform/upper", b"a" * 100))
    assert answer.status == 200


async def test_a_body_byte_by_byte_is_no_abuse() -> None:
    count = MAX_HEAD_BYTES // 4
    (answer,) = await Front().ask(CHUNKED + b"1\r\na\r\n" * count + b"0\r\n\r\n")
    assert answer.body == b"A" * count


async def test_the_log_names_a_refused_client_once(log: Log) -> None:
    front = Front()
    await front.ask(b"garbage\r\n\r\n")
    assert front.metrics.requests
    (line,) = [line for line in log.lines if "refused" in line]
    assert line.endswith(": bad-request: this is not an HTTP/1.1 request")


# Who goes away.


async def test_a_client_that_is_gone_cancels() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER + LATER)
    client.leave()
    await client.settle()
    assert front.cancelled == 1
    assert len(front.waiting) == 1, "what was next has not begun"


async def test_it_cancels_also_behind_an_answered_request_and_before_another() -> None:
    front = Front()
    client = front.connect()
    await client.send(OWL + LATER + OWL)
    client.leave()
    await client.settle()
    assert front.cancelled == 1


async def test_who_has_sent_all_is_answered() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER + OWL * 1_000 + HEAD)
    client.protocol.readConnectionLost()
    front.waiting[0].callback("late")
    await client.settle()
    found = [answer.body for answer in client.received() if answer.status != 100]
    assert found == [b"late", *[b"OWL"] * 1_000]
    assert client.is_closed


async def test_who_may_be_gone_is_asked_without_harm() -> None:
    front = Front()
    client, old = front.connect(), front.connect()
    await client.send(LATER)
    await old.send(LATER.replace(b"1.1", b"1.0"))
    for each in (client, old):
        each.protocol.readConnectionLost()
    await asyncio.sleep(PROBE_S + 0.05)
    for waiting in front.waiting:
        waiting.callback("late")
    for each in (client, old):
        await each.settle()
    assert [answer.status for answer in client.received()] == [100, 200]
    assert [answer.status for answer in old.received()] == [200]


@pytest.mark.parametrize("sent", [b"", HEAD, OWL, LATER, LATER + OWL, OWL + HEAD, b"garbage\r\n\r\n"])
async def test_nothing_is_left_of_a_connection(sent: bytes) -> None:
    front = Front()
    client = front.connect()
    await client.send(sent)
    client.leave()
    await client.settle()
    left = weakref.ref(client.protocol)
    front.waiting.clear()
    del client
    gc.collect()
    assert left() is None
    assert not front.factory.connections
    assert not front.clock.getDelayedCalls()


# The server stops.


async def test_a_server_that_stops_answers_what_it_has_and_says_so() -> None:
    front = Front()
    idle, busy = front.connect(), front.connect()
    await idle.ask(OWL)
    await busy.send(LATER + OWL)
    front.factory.drain()
    assert idle.is_closed
    assert front.factory.buildProtocol(None) is None
    front.waiting[0].callback("late")
    await busy.settle()
    first, second = busy.received()
    assert (first.body, second.body) == (b"late", b"OWL")
    assert second.headers["connection"] == "close"
    assert busy.is_closed


@pytest.mark.parametrize("begun", [HEAD, HEAD + b"Content-Length: 3\r\n\r\now"])
async def test_what_has_not_arrived_when_the_server_stops_may_be_sent_elsewhere(begun: bytes) -> None:
    front = Front()
    client, behind = front.connect(), front.connect()
    await client.send(begun)
    await behind.send(LATER + begun)
    front.factory.drain()
    front.waiting[0].callback("late")
    for each in (client, behind):
        await each.settle()
        answer = each.received()[-1]
        assert (answer.status, answer.problem["code"]) == (503, "shutting-down")
        assert answer.headers["retry-after"] == "1"
        assert each.is_closed


async def test_when_the_grace_period_is_over_what_is_left_is_answered_too() -> None:
    front = Front(shutdown_grace_s=5)
    client = front.connect()
    await client.send(LATER)
    front.factory.drain()
    front.clock.advance(5.1)
    await client.settle()
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (503, "shutting-down")
    assert client.is_closed


async def test_a_fault_of_the_application_is_in_the_log_and_not_in_the_answer(log: Log) -> None:
    async def broken(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("our fault")

    front = Front(application=broken)
    (answer,) = await front.ask(OWL)
    assert answer.status == 500
    assert b"fault" not in answer.body
    assert len(log.tracebacks) == 1
