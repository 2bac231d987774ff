"""``/batch``: its lines, and how they run beside each other."""

import asyncio
import base64
import json
from typing import Any

import pytest

from support.http_front import Client, Front, request
from xformd.errors import BadRequest, NoSuchTransform
from xformd.http.batch import encode_error, encode_result, parse_line, split_lines


def batch(*lines: dict[str, Any] | bytes) -> bytes:
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    return request("/batch", b"\n".join(written) + b"\n")


def line(spec: str, poem: str = "owl") -> dict[str, Any]:
    return {"spec": spec, "poem": poem}


def results(client: Client) -> list[dict[str, Any]]:
    """Return the lines of a complete response."""
    (answer,) = client.received()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(each) for each in answer.body.splitlines()]


def so_far(client: Client) -> list[dict[str, Any]]:
    """Return the lines that have arrived of a response."""
    _, _, sent = client.wire.value().partition(b"\r\n\r\n")
    return [json.loads(each) for each in sent.split(b"\r\n") if each.startswith(b"{") for each in each.splitlines()]


async def test_each_line_gets_a_result_with_its_index() -> None:
    client = Front().connect()
    await client.send(batch(line("upper"), line("wrap:width=5"), line("upper+wrap:width=4", "é")))
    assert results(client) == [
        {"index": 0, "result": "OWL"},
        {"index": 1, "result": "owl.."},
        {"index": 2, "result": "É..."},
    ]


async def test_a_result_is_sent_while_other_lines_run() -> None:
    front = Front()
    client = front.connect()
    await client.send(batch(line("later"), line("upper"), line("later")))
    assert so_far(client) == [{"index": 1, "result": "OWL"}]
    front.waiting[1].callback("late")
    await client.settle()
    assert [each["index"] for each in so_far(client)] == [1, 2]
    front.waiting[0].callback("latest")
    await client.settle()
    assert results(client)[-1] == {"index": 0, "result": "latest"}


async def test_a_failing_line_affects_no_other() -> None:
    bad = [b"{", b"[]", b'{"spec": "upper"}', b'{"spec": 1, "poem": "a"}', b'{"spec": "upper", "poem": "\\ud800"}']
    deep = b"[" * 100_000
    wrong = [line("uppr"), line("picky"), line("raises"), line("wrap:width=wide"), line("upper+")]
    codes = ["no-such-transform", "gibberish", "transform-failed", "bad-options", "bad-request"]
    client = Front().connect()
    await client.send(batch(*bad, deep, *wrong, line("upper")))
    found = results(client)
    assert [each["index"] for each in found] == list(range(12))
    assert [each["error"]["code"] for each in found[:-1]] == ["bad-request"] * 6 + codes
    assert found[6]["error"]["nearest"] == "upper"
    assert found[-1]["result"] == "OWL"


async def test_bytes_are_sent_in_base64() -> None:
    client = Front().connect()
    poem = base64.b64encode(b"\x00\xff").decode()
    await client.send(batch({"spec": "backwards", "poem_base64": poem}, {"spec": "upper", "poem_base64": "!"}))
    first, second = results(client)
    assert base64.b64decode(first["result_base64"]) == b"\xff\x00"
    assert second["error"]["code"] == "bad-request"


@pytest.mark.parametrize("body", [b"", b"\n\n \r\n"])
async def test_a_blank_batch_has_no_results(body: bytes) -> None:
    client = Front().connect()
    await client.send(request("/batch", body))
    assert results(client) == []


async def test_the_number_of_running_lines_is_bounded() -> None:
    front = Front(max_in_flight=4)
    client = front.connect()
    await client.send(batch(*[line("later")] * 10))
    for number in range(10):
        assert len(front.waiting) == min(10, 4 + number)
        front.waiting[number].callback("late")
        await client.settle()
    assert len(results(client)) == 10


async def test_a_long_batch_lets_others_in() -> None:
    front = Front()
    client, other = front.connect(), front.connect()
    data = batch(*[line("upper")] * 20_000)
    for start in range(0, len(data), 65_536):
        client.protocol.dataReceived(data[start : start + 65_536])
        await asyncio.sleep(0)
    other.protocol.dataReceived(request("/transform/upper", b"owl"))
    while not other.sent_bytes:
        await asyncio.sleep(0)
    assert len(so_far(client)) < 20_000
    assert [answer.status for answer in other.received()] == [200]
    while not client.wire.value().endswith(b"0\r\n\r\n"):
        await client.settle()
    assert len(results(client)) == 20_000


async def test_a_disconnect_cancels_every_line() -> None:
    front = Front(max_in_flight=4)
    client = front.connect()
    await client.send(batch(*[line("later")] * 10))
    client.leave()
    await client.settle()
    assert front.cancelled == 4
    assert len(front.waiting) == 4


async def test_a_batch_pauses_while_its_client_does_not_read() -> None:
    front = Front(max_unread_output_bytes=100_000)
    client = front.connect()
    client.stop_reading()
    await client.send(batch(*[line("repeat:times=1000")] * 2_000))
    unread_bytes = client.protocol.unread_bytes
    client.leave()
    assert unread_bytes < 2_000_000


async def test_an_invalid_batch_is_rejected_as_a_whole() -> None:
    front = Front(max_request_bytes=100)
    (answer,) = await front.ask(batch(*[line("upper")] * 10))
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    (answer,) = await front.ask(request("/batch", b"{}", x_timeout_ms="soon"))
    assert answer.status == 400
    (answer,) = await front.ask(request("/batch"))
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_a_timeout_applies_to_each_line() -> None:
    front = Front()
    client = front.connect()
    body = json.dumps(line("later")).encode()
    await client.send(request("/batch", body, x_timeout_ms="1000"))
    front.clock.advance(1.1)
    await client.settle()
    assert results(client)[0]["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    "text",
    [
        b'"spec"',
        b'["spec", "poem"]',
        b'{"spec": "upper"}',
        b'{"spec": "upper", "poem": "a", "poem_base64": "YQ=="}',
        b'{"spec": "upper", "poem": "a", "more": 1}',
        b'{"spec": "upper", "text": "a"}',
        b'{"spec": 1, "poem": "a"}',
        b'{"spec": "upper", "poem": 1}',
        b'{"spec": "upper", "poem": null}',
        b'{"spec": "upper", "poem_base64": 1}',
        b'{"spec": "upper", "poem_base64": "Y Q=="}',
        b'{"spec": "upper", "poem": "\\ud800"}',
        b"\xff",
    ],
)
def test_an_invalid_line_is_rejected_with_an_example(text: bytes) -> None:
    with pytest.raises(BadRequest, match="invalid line of a batch"):
        parse_line(text)


def test_results_and_errors_are_encoded() -> None:
    assert encode_result(3, "é".encode()).decode() == '{"index": 3, "result": "é"}\n'
    assert encode_result(3, b"\xff") == b'{"index": 3, "result_base64": "/w=="}\n'
    written = encode_error(3, NoSuchTransform("none"), "7e57")
    assert b'"index": 3, "error": {' in written
    assert b'"request_id": "7e57"' in written


@pytest.mark.parametrize("body", [b"a\nbc", b"a\nbc\n", b"\n\na\r\n \nbc"])
def test_blank_lines_are_skipped(body: bytes) -> None:
    assert [*split_lines(body)] == [b"a", b"bc"]


async def test_the_response_has_the_request_id_and_is_not_cached() -> None:
    (answer,) = await Front().ask(request("/batch", b"", x_request_id="7e57"))
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("7e57", "no-store")
