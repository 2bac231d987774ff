"""The access log of classic and session requests: one line for each, without its poem or options."""

import json
from typing import Any

import pytest
from twisted.internet.address import UNIXAddress

from support.http_front import TRANSFORMS
from support.memory import MemoryAccessLog, MemoryServer, MemorySession
from xformd.wire.netstring import encode

POEM = "the-owl-and-the-pussycat"
WRAP = "wrap:fill=pea-green,width=wide"
SHOWN = ("front", "transform", "code", "poem_bytes", "result_bytes", "request_id")


@pytest.fixture
def log() -> MemoryAccessLog:
    return MemoryAccessLog()


@pytest.fixture
def server(log: MemoryAccessLog) -> MemoryServer:
    return MemoryServer(counts=True, access_log=log, transforms=TRANSFORMS, max_in_flight=4, max_request_bytes=100)


@pytest.fixture
def client(server: MemoryServer) -> MemorySession:
    return MemorySession(server)


def ask(server: MemoryServer, string: str) -> None:
    server.receive(encode(string.encode()))


# Classic.


@pytest.mark.parametrize(
    ("string", "line"),
    [
        (f"upper.{POEM}", ("upper", "ok", 24, 24)),
        (f"{WRAP}.{POEM}", ("wrap", "bad-options", 24, None)),
        (f"wrap:width=30,fill=%2A+upper.{POEM}", ("wrap+upper", "ok", 24, 30)),
        (f"uper.{POEM}", ("uper", "no-such-transform", 24, None)),
        (f"picky.{POEM}", ("picky", "gibberish", 24, None)),
        (f"raises.{POEM}", ("raises", "transform-failed", 24, None)),
        (POEM, (None, "bad-request", None, None)),
        (f"{POEM}?.{POEM}", (None, "bad-request", None, None)),
    ],
)
def test_a_classic_request_has_one_line(
    server: MemoryServer, log: MemoryAccessLog, string: str, line: tuple[Any, ...]
) -> None:
    ask(server, string)
    assert log.take(*SHOWN) == [("classic", *line, None)]


def test_a_classic_request_that_has_to_wait_has_its_line_when_it_is_done(
    server: MemoryServer, log: MemoryAccessLog
) -> None:
    ask(server, f"later.{POEM}")
    assert log.lines == []
    server.results[0].callback("late")
    (line,) = log.lines
    assert line.items() >= {"peer": "127.0.0.1", "code": "ok", "result_bytes": 4, "queue_s": 0.0}.items()
    assert {"run_s", "total_s", "time"} <= set(line)


def test_a_client_that_leaves_has_cancelled_its_request(server: MemoryServer, log: MemoryAccessLog) -> None:
    protocol, _ = server.receive(encode(b"later.a"))
    protocol.connectionLost()
    assert log.take("front", "code") == [("classic", "cancelled")]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"101:", b"01:a,"])
def test_what_is_no_netstring_has_a_line(server: MemoryServer, log: MemoryAccessLog, data: bytes) -> None:
    server.receive(data)
    assert [line[0] for line in log.take("front")] == ["netstring"]


def test_a_client_of_a_unix_socket_has_no_address(server: MemoryServer, log: MemoryAccessLog) -> None:
    protocol, wire = server.connect(UNIXAddress(None))
    wire.peerAddr = UNIXAddress(None)
    protocol.dataReceived(encode(b"upper.a"))
    assert log.take("peer") == [("unix",)]


def test_a_client_behind_a_proxy_has_the_address_that_the_proxy_names(
    server: MemoryServer, log: MemoryAccessLog
) -> None:
    protocol, _ = server.connect()
    server.factory.identify(protocol, "10.1.2.3")
    protocol.dataReceived(encode(b"upper.a"))
    assert log.take("peer") == [("10.1.2.3",)]


# Sessions.


def test_each_pipelined_request_has_a_line_with_its_id(client: MemorySession, log: MemoryAccessLog) -> None:
    requests = [f"1 upper.{POEM}", f"2 {WRAP}.{POEM}", f"3 upper.{POEM[:4]}", f"4 upper+backwards.{POEM}"]
    client.send(b"".join(encode(each.encode()) for each in requests))
    assert log.take(*SHOWN) == [
        ("session", "upper", "ok", 24, 24, "1"),
        ("session", "wrap", "bad-options", 24, None, "2"),
        ("session", "upper", "ok", 4, 4, "3"),
        ("session", "upper+backwards", "ok", 24, 24, "4"),
    ]


def test_requests_have_their_lines_in_the_order_in_which_they_end(
    server: MemoryServer, client: MemorySession, log: MemoryAccessLog
) -> None:
    for number in (1, 2, 3):
        client.ask(number, "later")
    client.control(2, "cancel")
    server.results[2].callback("owl")
    client.lose()
    assert log.take("code", "request_id") == [("cancelled", "2"), ("ok", "3"), ("cancelled", "1")]


@pytest.mark.parametrize(
    ("string", "line"),
    [
        (f"7 {POEM}", ("bad-request", "7")),
        (f"7 upper@-1.{POEM}", ("bad-request", "7")),
        (POEM, ("bad-frame", None)),
    ],
)
def test_a_malformed_request_has_a_line(
    client: MemorySession, log: MemoryAccessLog, string: str, line: tuple[Any, ...]
) -> None:
    client.send(encode(string.encode()))
    assert log.take("code", "request_id") == [line]
    client.lose()
    assert log.lines == []


def test_an_id_that_is_in_flight_ends_the_session_with_a_line(
    server: MemoryServer, client: MemorySession, log: MemoryAccessLog
) -> None:
    client.ask(1, "later")
    client.ask(1, "upper")
    assert log.take("transform", "code") == [(None, "bad-request"), ("later", "cancelled")]


def test_a_request_to_a_server_that_stops_has_a_line(
    server: MemoryServer, client: MemorySession, log: MemoryAccessLog
) -> None:
    client.ask(1, "later")
    server.factory.drain()
    client.ask(2, "upper")
    server.results[0].callback("owl")
    assert log.take("code", "request_id") == [("shutting-down", "2"), ("ok", "1")]


def test_messages_that_are_no_requests_have_no_lines(client: MemorySession, log: MemoryAccessLog) -> None:
    client.control(1, "ping")
    client.control(2, "list")
    client.control(3, "cancel")
    client.lose()
    assert log.lines == []


def test_no_line_has_a_poem_or_an_option(server: MemoryServer, client: MemorySession, log: MemoryAccessLog) -> None:
    for spec in ("upper", WRAP, f"upper:{POEM}=1", "wrap:fill=pea-green", "raises", "picky", f"{POEM} {POEM}"):
        ask(server, f"{spec}.{POEM}")
        client.send(encode(f"1 {spec}.{POEM}".encode()))
    assert len(log.lines) == 14
    text = json.dumps(log.lines)
    assert POEM not in text
    assert "pea-green" not in text


def test_without_the_log_requests_go_their_fast_way(log: MemoryAccessLog) -> None:
    server = MemoryServer(counts=True)
    MemorySession(server).ask(1)
    assert server.factory.counting["session"].prepare_call(b"upper") is not None
    logging = MemoryServer(counts=True, access_log=log)
    assert logging.factory.counting["session"].prepare_call(b"upper") is None
