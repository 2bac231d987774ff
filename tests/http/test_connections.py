"""HTTP connections: pipelining, deadlines, limits, disconnects and shutdown."""

import asyncio
import gc
import weakref

import pytest

from support.http_front import Client, Front, request
from support.logs import Log
from xformd.http import connection
from xformd.http.connection import PIECE_BYTES
from xformd.http.requests import MAX_HEAD_BYTES

OWL = request("/transform/upper", b"owl")
LATER = request("/transform/later", b"owl")
HEAD = b"POST /transform/upper HTTP/1.1\r\nHost: a\r\n"
MORE_THAN_A_PIECE = PIECE_BYTES // len(OWL) + 1
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


# Pipelining.


async def test_pipelined_requests_are_answered_in_order() -> None:
    front = Front()
    client = front.connect()
    assert await client.ask(LATER + OWL + OWL) == []
    front.waiting[0].callback("late")
    await client.settle()
    assert [answer.body for answer in client.received()] == [b"late", b"OWL", b"OWL"]


async def test_pipelining_takes_bounded_memory() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER)
    client.protocol.dataReceived(request("/livez") * 2_000)
    cycles = sum("RequestResponseCycle" in repr(type(each)) for each in gc.get_objects())
    assert cycles < 200
    assert client.wire.producerState == "paused"


async def test_pipelined_requests_are_read_as_they_are_answered() -> None:
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


async def test_a_poem_behind_another_request_arrives_whole() -> None:
    front = Front()
    client, poem = front.connect(), b"owl" * 50_000
    client.protocol.dataReceived((LATER + request("/transform/upper", poem))[: 10 * PIECE_BYTES])
    await client.settle()
    front.waiting[0].callback("late")
    await client.settle()
    await client.send((LATER + request("/transform/upper", poem))[10 * PIECE_BYTES :])
    assert [answer.body for answer in client.received()] == [b"late", poem.upper()]


# Deadlines.


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
async def test_a_slow_request_gets_408(beginning: bytes) -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    await client.send(beginning)
    await cut_off(front, client, 5)
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (408, "bad-request")
    assert "request_timeout_s" in answer.problem["detail"]


async def test_a_dripping_request_gains_no_time() -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    for byte in (HEAD + b"X-Drip: drip drip")[:49]:
        await client.send(bytes([byte]))
        front.clock.advance(0.1)
    assert not client.is_closed
    await client.send(b"X")
    front.clock.advance(0.2)
    assert client.is_closed


@pytest.mark.parametrize(
    "behind",
    [
        HEAD + b"Content-Length: 3\r\n\r\now",
        OWL * MORE_THAN_A_PIECE + HEAD,
        OWL * MORE_THAN_A_PIECE + CHUNKED + b"3\r\no",
    ],
    ids=["parsed", "a head in the backlog", "a body in the backlog"],
)
async def test_a_pipelined_request_has_its_deadline_from_its_turn(behind: bytes) -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    await client.send(LATER + behind)
    front.clock.advance(20)
    front.waiting[0].callback("late")
    await client.settle()
    assert {answer.status for answer in client.received()} == {200}
    await cut_off(front, client, 5)
    assert [answer.status for answer in client.received()] == [408]


async def test_an_idle_connection_is_closed_silently() -> None:
    front = Front(idle_timeout_s=50, request_timeout_s=5)
    fresh, used = front.connect(), front.connect()
    await used.ask(OWL)
    front.clock.advance(49.9)
    await fresh.settle()
    assert (fresh.is_closed, used.is_closed) == (False, False)
    front.clock.advance(0.2)
    for client in (fresh, used):
        await client.settle()
        assert client.is_closed
        assert client.received() == []


async def test_connection_timeouts_do_not_limit_a_transform() -> None:
    front = Front(idle_timeout_s=1, request_timeout_s=1, transform_timeout_s=60)
    client = front.connect()
    await client.send(LATER)
    front.clock.advance(59)
    front.waiting[0].callback("late")
    await client.settle()
    assert client.received()[0].body == b"late"


async def test_a_rejected_request_s_body_has_a_deadline() -> None:
    front = Front(request_timeout_s=5)
    client = front.connect()
    missing = request("/transform/uppr", b"owl" * 100)
    assert [answer.status for answer in await client.ask(missing[:-10])] == [404]
    await cut_off(front, client, 5)
    assert client.received() == [], "it has its answer"


async def test_a_rejected_request_s_body_takes_no_time_from_the_next() -> None:
    front = Front(request_timeout_s=5, idle_timeout_s=50)
    client = front.connect()
    missing = request("/transform/uppr", b"owl" * 100)
    await client.ask(missing[:-10])
    await client.send(missing[-10:])
    await cut_off(front, client, 50)


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    front = Front(write_timeout_s=5)
    client = front.connect()
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000))
    client.wire.producer.pauseProducing()  # type: ignore[union-attr]
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000))
    front.clock.advance(5.1)
    assert client.wire.disconnected
    client.leave()


async def test_unread_output_pauses_the_connection() -> None:
    front = Front(max_unread_output_bytes=100_000)
    client = front.connect()
    client.stop_reading()
    await client.send(request("/transform/repeat:times=100", b"owl" * 1_000) * 20)
    unread_bytes, state = client.protocol.unread_bytes, client.wire.producerState
    client.leave()  # else it would be waited for
    assert unread_bytes < 1_000_000
    assert state == "paused"


# Limits.


async def test_an_endless_body_is_rejected_at_the_limit() -> None:
    front = Front(max_request_bytes=100_000)
    client = front.connect()
    await client.send(CHUNKED)
    for _ in range(24):
        await client.send(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    assert not client.is_closed
    (answer,) = await client.ask(b"1000\r\n" + b"a" * 4096 + b"\r\n")
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    assert client.is_closed


async def test_an_announced_length_over_the_limit_is_rejected_at_once() -> None:
    front = Front(max_request_bytes=100)
    (answer,) = await front.ask(HEAD + b"Content-Length: 101\r\n\r\n")
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    assert answer.headers["connection"] == "close"
    (answer,) = await front.ask(HEAD + b"Expect: 100-continue\r\nContent-Length: 101\r\n\r\n")
    assert answer.status == 413
    (answer,) = await front.ask(request("/transform/upper", b"a" * 100))
    assert answer.status == 200


async def test_one_byte_chunks_are_accepted() -> None:
    count = MAX_HEAD_BYTES // 4
    (answer,) = await Front().ask(CHUNKED + b"1\r\na\r\n" * count + b"0\r\n\r\n")
    assert answer.body == b"A" * count


async def test_a_rejected_client_is_logged_once(log: Log) -> None:
    front = Front()
    await front.ask(b"garbage\r\n\r\n")
    assert front.metrics.requests
    (line,) = [line for line in log.lines if "refused" in line]
    assert line.endswith(": bad-request: this is not an HTTP/1.1 request")


# Disconnects.


async def test_a_disconnect_cancels_the_request() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER + LATER)
    client.leave()
    await client.settle()
    assert front.cancelled == 1
    assert len(front.waiting) == 1, "what was next has not begun"


async def test_a_disconnect_cancels_a_pipelined_request() -> None:
    front = Front()
    client = front.connect()
    await client.send(OWL + LATER + OWL)
    client.leave()
    await client.settle()
    assert front.cancelled == 1


async def test_a_half_closed_client_gets_every_answer() -> None:
    front = Front()
    client = front.connect()
    await client.send(LATER + OWL * 1_000 + HEAD)
    client.protocol.readConnectionLost()
    front.waiting[0].callback("late")
    await client.settle()
    found = [answer.body for answer in client.received() if answer.status != 100]
    assert found == [b"late", *[b"OWL"] * 1_000]
    assert client.is_closed


async def test_probing_a_half_closed_client_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PROBE_S", 0.01)
    front = Front()
    client, old = front.connect(), front.connect()
    await client.send(LATER)
    await old.send(LATER.replace(b"1.1", b"1.0"))
    for each in (client, old):
        each.protocol.readConnectionLost()
    await asyncio.sleep(0.05)
    for waiting in front.waiting:
        waiting.callback("late")
    for each in (client, old):
        await each.settle()
    assert [answer.status for answer in client.received()] == [100, 200]
    assert [answer.status for answer in old.received()] == [200]


@pytest.mark.parametrize("sent", [b"", HEAD, OWL, LATER, LATER + OWL, OWL + HEAD, b"garbage\r\n\r\n"])
async def test_a_closed_connection_leaves_nothing(sent: bytes) -> None:
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


# Shutdown.


async def test_shutdown_answers_complete_requests_then_closes() -> None:
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
async def test_shutdown_rejects_an_incomplete_request(begun: bytes) -> None:
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


async def test_the_end_of_the_grace_period_answers_what_still_runs() -> None:
    front = Front(shutdown_grace_s=5)
    client = front.connect()
    await client.send(LATER)
    front.factory.drain()
    front.clock.advance(5.1)
    await client.settle()
    (answer,) = client.received()
    assert (answer.status, answer.problem["code"]) == (503, "shutting-down")
    assert client.is_closed


async def test_an_application_error_is_logged_and_not_shown(log: Log) -> None:
    async def broken(scope: object, receive: object, send: object) -> None:
        raise RuntimeError("our fault")

    front = Front(application=broken)
    (answer,) = await front.ask(OWL)
    assert answer.status == 500
    assert b"fault" not in answer.body
    assert len(log.tracebacks) == 1
