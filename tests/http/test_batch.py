"""``/batch``: its lines, and how they run beside each other."""

import base64
import gc
import io
import itertools
import json
import time
from typing import Any

import pytest

from support.http_front import Client, Front, ask, connected, request
from support.memory import ELSEWHERE
from xformd.errors import BadRequest, TooLarge, XformError
from xformd.http.batch import BLANK_BYTES, MAX_BAD_LINES, MAX_LINE_BYTES, encode_result, parse_line, read_lines
from xformd.limits import MIB

UPPER = {"spec": "upper", "poem": "owl"}
LATER = {"spec": "later", "poem": "owl"}


def batch(*lines: dict[str, Any], **headers: str) -> bytes:
    return request("/batch", "".join(f"{json.dumps(line)}\n" for line in lines).encode(), **headers)


def results(client: Client) -> list[dict[str, Any]]:
    """Return the lines of a complete response."""
    (answer,) = client.received()
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(each) for each in answer.body.splitlines()]


def so_far(client: Client) -> list[dict[str, Any]]:
    """Return the lines that have arrived of a response."""
    _, _, sent = client.wire.value().partition(b"\r\n\r\n")
    return [json.loads(each) for each in sent.splitlines() if each.startswith(b"{")]


def test_each_line_gets_a_result_with_its_index() -> None:
    lines = [{"spec": "wrap:width=5", "poem": "owl"}, {"spec": "upper+wrap:width=4", "poem": "é"}]
    encoded = {"spec": "backwards", "poem_base64": base64.b64encode(b"\x00\xff").decode()}
    client = Front().client(batch(UPPER, *lines, encoded))
    assert "É".encode() in client.wire.value()
    assert results(client) == [
        {"index": 0, "result": "OWL"},
        {"index": 1, "result": "owl.."},
        {"index": 2, "result": "É..."},
        {"index": 3, "result_base64": base64.b64encode(b"\xff\x00").decode()},
    ]


def test_a_result_is_sent_while_other_lines_run() -> None:
    front, client = connected(batch(LATER, UPPER, LATER))
    assert so_far(client) == [{"index": 1, "result": "OWL"}]
    front.finish(1, client)
    assert [each["index"] for each in so_far(client)] == [1, 2]
    front.finish(0, client, "latest")
    assert results(client)[-1] == {"index": 0, "result": "latest"}


def test_a_failing_line_affects_no_other() -> None:
    codes = {
        "uppr": "no-such-transform",
        "picky": "gibberish",
        "raises": "transform-failed",
        "wrap:width=wide": "bad-options",
        "upper+": "bad-request",
    }
    lines = [*({"spec": spec, "poem": "owl"} for spec in codes), {"spec": "upper"}, UPPER]
    client = Front().client(batch(*lines, x_request_id="7e57"))
    *failed, last = results(client)
    assert [(each["index"], each["error"]["code"]) for each in failed] == [*enumerate([*codes.values(), "bad-request"])]
    assert (failed[0]["error"]["nearest"], failed[0]["error"]["request_id"]) == ("upper", "7e57")
    assert last == {"index": 6, "result": "OWL"}


@pytest.mark.parametrize("body", [b"", b"\n\n \r\n"])
def test_a_blank_batch_has_no_results(body: bytes) -> None:
    answer = ask(request("/batch", body, x_request_id="7e57"))
    assert (answer.status, answer.body) == (200, b"")
    assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("7e57", "no-store")


def test_the_number_of_running_lines_is_bounded() -> None:
    front, client = connected(batch(*[LATER] * 10), max_in_flight=4)
    for number in range(10):
        assert len(front.results) == min(10, 4 + number)
        front.finish(number, client)
    assert len(results(client)) == 10


def test_a_long_batch_lets_others_in() -> None:
    front = Front(stopwatch=time.perf_counter)
    client, other = front.open(), front.open(ELSEWHERE)
    data = batch(*[UPPER] * 20_000)
    for start in range(0, len(data), 65_536):
        client.protocol.dataReceived(data[start : start + 65_536])
    other.protocol.dataReceived(request("/transform/upper", b"owl"))
    assert len(so_far(client)) < 20_000
    assert other.received()[0].status == 200
    client.settle()
    assert len(results(client)) == 20_000


def test_a_batch_pauses_while_its_client_does_not_read() -> None:
    client = Front(max_unread_output_bytes=100_000).open()
    client.stop_reading()
    client.send(batch(*[{"spec": "repeat:times=1000", "poem": "owl"}] * 2_000))
    assert client.protocol.unread_bytes < 2_000_000
    client.leave()


def test_an_invalid_batch_is_rejected_as_a_whole() -> None:
    answer = Front(max_request_bytes=100).ask(batch(*[UPPER] * 10))
    assert (answer.status, answer.problem["code"]) == (413, "too-large")
    assert (ask(batch(UPPER, x_timeout_ms="soon"))).status == 400


def test_a_timeout_applies_to_each_line() -> None:
    front, client = connected(batch(LATER, x_timeout_ms="1000"))
    front.advance(1.1, client)
    assert results(client)[0]["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[" * 100_000,
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
        b'{"spec": "upper", "poem": ["a"]}',
        b'{"spec": "upper", "poem": {"a": "b"}}',
        b'{"a":[' + b"[[]]," * 1_000_000 + b"{}]}",
        b'{"spec": "upper", "poem": "\\ud800"}',
        b"\xff",
    ],
    ids=lambda text: repr(text[:60]),
)
def test_an_invalid_line_is_rejected_with_an_example(text: bytes) -> None:
    with pytest.raises(BadRequest, match="invalid line of a batch"):
        parse_line(text)


def test_braces_and_escapes_in_a_poem_are_its_own() -> None:
    for poem in ('{"a": [1]}', 'a "quoted" \\ [word]', "\\\\", "é\n"):
        assert parse_line(json.dumps({"spec": "upper", "poem": poem}).encode())[1] == poem.encode()


LINES = [b'{"spec": "upper", "poem": "a"}', b'{"spec": "upper", "poem": "bc"}']


def read(body: bytes) -> list[Any]:
    """Return what the lines of a batch say."""
    return [each if isinstance(each, XformError) else each[1] for each in read_lines(body) if each is not None]


@pytest.mark.parametrize("blank", [b"\n", b" ", b"\t\r\n"])
def test_many_blank_lines_are_skipped_in_turns(blank: bytes) -> None:
    body = blank * 1_000_000 + b" \r\n" + LINES[0] + b"\r\n"
    assert read(body) == [b"a"]
    assert len([*read_lines(body)]) > len(body) // BLANK_BYTES


@pytest.mark.parametrize("body", [b"%b\n%b", b"%b\n%b\n", b"\n\n%b\r\n \n%b"])
def test_blank_lines_are_skipped(body: bytes) -> None:
    assert read(body % (*LINES,)) == [b"a", b"bc"]


LONG_POEMS = {
    "ascii": "a" * 200_000,
    "escapes": '\\"\n' * 70_000,
    "controls": "\0" * 70_000,
    "three bytes": "\N{EURO SIGN}" * 70_000,
    "an odd byte": "a" + "\N{EURO SIGN}\N{OWL}" * 20_000,
}


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("poem", LONG_POEMS.values(), ids=LONG_POEMS)
def test_a_long_poem_is_read_and_its_result_written(poem: str, ensure_ascii: bool) -> None:
    members = {"spec": "upper", "poem": poem}
    for each in (members, dict(reversed(members.items()))):
        line = json.dumps(each, ensure_ascii=ensure_ascii).encode()
        assert read(b"%b \r\n%b" % (line, LINES[0])) == [poem.encode(), b"a"]
    assert json.loads(encode_result(7, poem.encode())) == {"index": 7, "result": poem}


def test_long_bytes_are_read_and_the_result_written() -> None:
    poem = bytes(range(256)) * 1_000
    encoded = base64.b64encode(poem).decode()
    for text in (encoded, encoded.replace("/", "\\/")):  # as some encoders write it
        assert read(b'{"spec": "upper", "poem_base64": "%b"}' % text.encode()) == [poem]
    assert json.loads(encode_result(7, poem)) == {"index": 7, "result_base64": encoded}
    cut = "\N{EURO SIGN}".encode() * 70_000 + b"\xe2\x82"
    assert base64.b64decode(json.loads(encode_result(7, cut))["result_base64"]) == cut


def test_a_line_that_is_too_long_is_refused_and_the_next_is_read() -> None:
    long = b'{"spec": "upper", "poem": "%b"}' % (b"a" * MAX_LINE_BYTES)
    refused, poem = read(long + b"\n" + LINES[0])
    assert isinstance(refused, TooLarge)
    assert poem == b"a"


LONG = b"a" * 200_000
BAD_LONG_LINES = {
    "no member": LONG,
    "nested": b'{"spec": "upper", "poem": [' + b"[]," * 100_000 + b"[]]}",
    "unterminated": b'{"spec": "upper", "poem": "' + LONG,
    "no brace": b'{"spec": "upper", "poem": "' + LONG + b'"',
    "no spec": b'{"poem": "' + LONG + b'"}',
    "another member": b'{"spec": "upper", "poem": "' + LONG + b'", "more": "' + LONG + b'"}',
    "a long key": b'{"' + LONG + b'": 1}',
    "a number": b'{"spec": "upper", "poem": ' + b"1" * 200_000 + b"}",
    "many members": b'{"spec": "upper", ' + b'"a": 1, ' * 50_000 + b'"poem": ""}',
    "not UTF-8": b'{"spec": "upper", "poem": "' + LONG + b'\xff"}',
    "half a character": b'{"spec": "upper", "poem": "' + LONG + b'\xe2"}',
    "a control": b'{"spec": "upper", "poem": "' + LONG + b'\x01"}',
    "an escape that is none": b'{"spec": "upper", "poem": "' + LONG + b'\\x"}',
    "half an escape": b'{"spec": "upper", "poem": "' + LONG + b'\\u12"}',
    "half a pair": b'{"spec": "upper", "poem": "' + LONG + b'\\ud83d"}',
    "two halves of no pair": b'{"spec": "upper", "poem": "' + LONG + b'\\ud83d\\ud83d"}',
    "no base64": b'{"spec": "upper", "poem_base64": "' + LONG + b'!"}',
    "padding inside": b'{"spec": "upper", "poem_base64": "' + LONG[:-4] + b"YQ==" + LONG + b'"}',
}


@pytest.mark.parametrize("line", BAD_LONG_LINES.values(), ids=BAD_LONG_LINES)
def test_an_invalid_long_line_is_rejected(line: bytes) -> None:
    (error,) = read(line)
    assert "invalid line of a batch" in error.message


def test_a_long_result_is_not_mixed_with_those_behind_it() -> None:
    poem = "\N{OWL}" * 40_000
    front, client = connected(batch(LATER, {"spec": "upper", "poem": poem}, UPPER, LATER))
    front.finish(1, client, "a" * 100_000)
    front.finish(0, client)
    found = {each["index"]: each["result"] for each in results(client)}
    assert found == {0: "late", 1: poem, 2: "OWL", 3: "a" * 100_000}


def test_a_result_that_is_too_long_is_an_error_of_its_line() -> None:
    front, client = connected(batch({"spec": "repeat:times=1000000", "poem": "a"}, UPPER, LATER))
    front.finish(0, client, "a" * 1_000_000)
    found = results(client)
    assert [each["index"] for each in found] == [0, 1, 2]
    assert [each["error"]["code"] for each in found if "error" in each] == ["too-large"] * 2
    assert "POST such a poem alone" in found[0]["error"]["detail"]


def test_a_batch_with_many_invalid_lines_is_read_no_further() -> None:
    client = Front().client(request("/batch", b"{}\n" * 50 + LINES[0] + b"\n{}" * 100_000))
    *_, before, last = found = results(client)
    assert [each["index"] for each in found] == [*range(MAX_BAD_LINES + 2)]
    assert "invalid line of a batch" in before["error"]["detail"]
    assert (
        last["error"]["detail"]
        == "100 lines of this batch are invalid: the rest is not read; correct them and send it again"
    )


def test_a_batch_takes_one_turn_at_a_time() -> None:
    def stopwatch() -> float:
        """Let every look at the clock end a turn, once ten lines run."""
        return next(ticks) if len(front.results) == 10 else 0

    ticks, front = itertools.count(), Front(stopwatch=stopwatch)
    client = front.open()
    client.protocol.dataReceived(batch(*[LATER] * 10, *[UPPER] * 50))
    for result in front.results:
        waiting = len(front.clock.getDelayedCalls())
        result.callback("late")
        assert len(front.clock.getDelayedCalls()) < waiting, "its timeout has gone, and no turn has come"
    client.settle()
    assert len(results(client)) == 60


def test_a_server_that_stops_starts_no_more_lines() -> None:
    front, client = connected(batch(*[LATER] * 4), max_in_flight=1)
    front.service.stop()
    client.settle()
    assert [line["error"]["code"] for line in results(client)] == ["shutting-down"] * 4
    assert len(front.results) == 1


def test_nothing_is_sent_to_a_client_that_has_left() -> None:
    front, client = connected(batch(*[{"spec": "later" + "+later" * 31, "poem": "owl"}] * 600), max_in_flight=600)
    client.wire.clear()
    client.leave()
    assert client.wire.value() == b""
    assert not front.clock.getDelayedCalls()


@pytest.mark.parametrize("line", [b'{"spec": "upper", "poem": "a', b"[[],"])
def test_a_body_is_forgotten_with_its_request(line: bytes) -> None:
    """At once, not when Python looks for cycles: many would fill the memory until then."""
    front = Front()
    gc.collect()
    gc.disable()
    try:
        client = front.client(request("/batch", line + line[-1:] * MIB, connection="close"))
        client.settle()
        client.leave()
        kept = [each for each in gc.get_objects() if isinstance(each, io.BytesIO) and not each.closed]
        assert not any(len(each.getvalue()) > MIB / 2 for each in kept)
    finally:
        gc.enable()
