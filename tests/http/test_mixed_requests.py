"""Requests of every kind on one connection, whose client pipelines, half-closes, reads slowly, or leaves."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.http_front import Client, Front, connected, request
from support.logs import Log

ID: dict[str, Any] = {"x_request_id": "7e57"}
CHUNKED: dict[str, Any] = {"transfer_encoding": "chunked", "content_length": None} | ID
URL = "/transform/upper?poem=owl"

MIXED = [
    (request("/transform/upper", b"owl", **ID), 200),
    (request(URL, **ID), 200),
    (request(URL, method="HEAD", **ID), 200),
    (b"\r\n" + request("/transform/upper", b"2\r\now\r\n1;x\r\nl\r\n0\r\nX: y\r\n\r\n", **CHUNKED), 200),
    (request(URL, if_none_match="*", **ID), 304),
    (request("/transform/uppr", b"owl", **ID), 404),
    (request("/", method="OPTIONS", **ID), 204),
    (request("/transform/upper", method="PUT", **ID), 405),
    (request("/batch", b'{"spec": "upper", "poem": "owl"}\n', **ID), 200),
    (request("/transform/picky", b"owl", **ID), 422),
    (request("/transform/later", b"owl", **ID), 200),
    (request("/transforms", b"a body that nobody asked for", method="GET", **ID), 200),
]
STREAM = b"".join(data for data, _ in MIXED)
STATUSES = [status for _, status in MIXED]
ENDS = [sum(len(data) for data, _ in MIXED[: number + 1]) for number in range(len(MIXED))]


def statuses(client: Client) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", client.wire.value())]


def finish_all(front: Front, client: Client) -> None:
    """Let every transform return that has begun, or begins then."""
    for number in range(2):
        if number < len(front.results) and not front.results[number].called:
            front.finish(number, client)


def output(*pieces: bytes) -> bytes:
    """Return what is answered to a stream in these pieces, without any times."""
    front = Front()
    client = front.open()
    for piece in pieces:
        client.send(piece)
        finish_all(front, client)
    assert not client.is_closed
    return re.sub(rb"(date|server-timing): .*\r\n", b"", client.wire.value())


WHOLE = output(STREAM)


def test_each_of_many_requests_at_once_gets_its_answer_in_order() -> None:
    front, client = connected(STREAM)
    finish_all(front, client)
    assert statuses(client) == STATUSES


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
@settings(max_examples=40)
def test_what_is_answered_does_not_depend_on_the_split(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert output(*(STREAM[start:end] for start, end in itertools.pairwise(places))) == WHOLE


def test_what_is_answered_is_the_same_byte_by_byte() -> None:
    assert output(*(STREAM[place : place + 1] for place in range(len(STREAM)))) == WHOLE


PLACES = [*range(0, len(STREAM), 5), *ENDS]


def test_a_half_closed_client_gets_the_answer_of_each_complete_request(log: Log) -> None:
    for ends_at in PLACES:
        front, client = connected(STREAM[:ends_at])
        client.protocol.readConnectionLost()
        finish_all(front, client)
        complete = sum(end <= ends_at for end in ENDS)
        found = statuses(client)
        assert found == STATUSES[: len(found)], ends_at
        assert complete <= len(found) <= complete + 1, f"{ends_at}: a request may be answered before its end"
        assert client.is_closed, ends_at
        assert not log.tracebacks, ends_at


@pytest.mark.parametrize("step", [7, 65_536])
def test_a_client_that_leaves_at_any_byte_leaves_nothing(step: int, log: Log) -> None:
    for leaves_at in PLACES:
        front = Front()
        client = front.open()
        client.send(STREAM[:leaves_at], step=step)
        client.leave()
        assert not front.factory.connections, leaves_at
        assert not front.clock.getDelayedCalls(), leaves_at
        assert not front.service.in_flight, leaves_at
        assert front.cancelled == len(front.results), leaves_at
        assert not log.tracebacks, leaves_at


def test_a_very_slow_reader_gets_every_answer_whole() -> None:
    long = request("/transform/repeat:times=50", b"owl" * 1_000)
    front = Front(max_unread_output_bytes=100_000, write_timeout_s=10)
    client = front.open()
    client.wire.max_held_bytes = 1_000
    client.send(long * 20)
    turns = 0
    while len(statuses(client)) < 20 or client.protocol.unread_bytes:
        turns += 1
        front.advance(5, client)  # each time less than write_timeout_s
        client.wire.taken()
        client.settle()
        assert not client.wire.disconnected
    assert turns > 20
    assert [(answer.status, len(answer.body)) for answer in client.received()] == [(200, 150_000)] * 20


@pytest.mark.parametrize(
    "given", [['"x"', "ETAG"], ["ETAG", '"x"'], ['"x", "y"', 'W/"z"', "W/ETAG"], ["", "ETAG"], ["*"]]
)
def test_every_line_of_if_none_match_counts(given: list[str]) -> None:
    front = Front()
    etag = front.ask(request(URL)).headers["etag"]
    fields = "".join(f"If-None-Match: {each}\r\n" for each in given).replace("ETAG", etag)
    answer = front.ask(f"GET {URL} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
    assert (answer.status, answer.headers["etag"]) == (304, etag)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (["ETAG"], 200),
        (['"x"', "ETAG"], 200),
        (["*"], 200),
        (['"x"'], 412),
        (["W/ETAG"], 412),
        ([""], 412),
        (['"x"', '"y"'], 412),
    ],
)
def test_if_match_compares_strongly(given: list[str], status: int) -> None:
    front = Front()
    etag = front.ask(request(URL)).headers["etag"]
    fields = "".join(f"If-Match: {each}\r\n" for each in given).replace("ETAG", etag)
    answer = front.ask(f"GET {URL} HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
    assert answer.status == status


def test_if_match_comes_before_if_none_match() -> None:
    assert Front().ask(request(URL, if_match='"x"', if_none_match="*")).status == 412
    assert Front().ask(request(URL, if_match="*", if_none_match="*")).status == 304


@pytest.mark.parametrize("query", ["poem=owl&", "&poem=owl", "poem=owl&&", "&&poem=owl&"])
def test_an_ampersand_too_many_in_a_query_does_no_harm(query: str) -> None:
    answer = Front().ask(request(f"/transform/upper?{query}"))
    assert (answer.status, answer.body) == (200, b"OWL")


@pytest.mark.parametrize("query", ["", "&", "&&"])
def test_an_empty_query_is_none(query: str) -> None:
    assert Front().ask(request(f"/transform/upper?{query}", b"owl")).body == b"OWL"
