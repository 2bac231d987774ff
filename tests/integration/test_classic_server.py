"""The server over real sockets: the tutorial's clients, hostile bytes, limits, signals."""

import shutil
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import VERSES, Server, netstring, read_to_end, resident_bytes, serving, wait_until, xformd

LIMIT = 10 * 1024 * 1024


def test_a_client_of_ten_lines_gets_its_answer_and_the_close(server: Server) -> None:
    host, port = server.address.split(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(b"27:cummingsify.HERE IS MY POEM,")
    answer = b""
    while data := client.recv(100):
        answer += data
    client.close()
    assert answer == b"15:here is my poem,"


def test_a_request_in_single_bytes_is_the_same_request(server: Server) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"27:cummingsify.HERE IS MY POEM,":
            connection.sendall(bytes([byte]))
        assert read_to_end(connection) == b"15:here is my poem,"


BINARY = bytes(range(256))
LONG = b"x" * (LIMIT - len(b"upper."))


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (netstring(b"upper.a") + b"x" * 1_000_000, b"A"),  # what follows costs no reply
        (netstring(b"wrap:width=7+number-lines:separator=%2E%20.one two three"), b"1. one two\n2. three"),
        (netstring(b"backwards+backwards." + BINARY), BINARY),
        (netstring(b"upper." + LONG), LONG.upper()),
    ],
    ids=["more-follows", "a-pipeline-with-options", "binary", "as-long-as-may-be"],
)
def test_a_client_that_half_closes_gets_its_answer(server: Server, sent: bytes, received: bytes) -> None:
    assert server.ask(sent, half_close=True) == netstring(received)


REFUSED = [
    (b"GET / HTTP/1.1\r\n\r\n", "bad-frame"),
    (b"007:upper.a,", "bad-frame"),
    (netstring(b"upper.a")[:-1] + b";", "bad-frame"),
    (netstring(b"no dot"), "bad-request"),
    (netstring(b"wrap:width=4 .poem"), "bad-request"),
    (netstring(b"wrap:width=wide.poem"), "bad-options"),
    (netstring(b"cumingsify.poem"), "no-such-transform"),
    (netstring(b"upper.\xff\xfe"), "gibberish"),
    (netstring(b"picky.poem"), "gibberish"),
    (str(LIMIT + 1).encode(), "too-large"),
    (netstring(b"repeat:times=2000000.poem12"), "too-large"),
    (netstring(b"raises.poem"), "transform-failed"),
    (netstring(b"exits.poem"), "transform-failed"),
    (netstring(b"wrong-type.poem"), "transform-failed"),
    (netstring(b"never.poem"), "timeout"),
]


@pytest.mark.parametrize(("request_bytes", "code"), REFUSED)
def test_whatever_is_wrong_the_server_closes_sends_nothing_and_logs_one_line(
    tmp_path: Path, server: Server, request_bytes: bytes, code: str
) -> None:
    before = len(server.log)
    with server.connect() as connection:
        port = connection.getsockname()[1]
        connection.sendall(request_bytes)
        assert read_to_end(connection) == b""
    wait_until(lambda: f":{port}: {code}: " in server.log[before:])
    assert server.ask(b"7:upper.a,") == b"1:A,"


def test_a_name_that_two_plugins_provide_is_nobodys(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        shutil.copy(VERSES / "verses.py", tmp_path / name)
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(tmp_path)) as server:
        assert server.read_line().startswith(
            "conflict: transform backwards is provided by one.py (one) and two.py (two): none"
        )
        assert server.ask(netstring(b"backwards.poem")) == b""
        wait_until(lambda: ": ambiguous-transform: " in server.log)
        sent = xformd("send", "backwards", "--server", server.address, stdin=b"poem")
    assert sent.returncode == 66
    assert sent.stderr.startswith(
        b"xformd: ambiguous-transform: transform backwards is provided by one.py (one) and two.py (two)"
    )


@pytest.mark.slow
def test_only_a_transforms_own_exception_makes_a_traceback_and_just_one(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", "--workers=1", "--plugins-dir", str(VERSES)) as server:
        for request, _ in REFUSED:
            server.ask(request)
        assert server.stop() == 0
        log = server.log
    assert log.count("Traceback") == 2
    assert log.count("transform raises of plugin verses.py (verses) failed") == 1
    assert log.count("transform exits of plugin verses.py (verses) failed") == 1
    assert log.count("ValueError\n") == 1


def test_a_request_over_the_limit_is_refused_at_its_digit_and_costs_no_memory(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.ask(b"7:upper.a,")
        before = resident_bytes(server)
        for _ in range(5):
            with server.connect() as connection:
                connection.sendall(b"99999999:")
                connection.sendall(b"x" * (16 * 1024 * 1024))
                connection.shutdown(socket.SHUT_WR)
                assert read_to_end(connection) == b""
        limited = "99999999 bytes or more; the limit is 10485760 bytes"
        wait_until(lambda: limited in server.log)
        with ExitStack() as stack:
            for _ in range(100):  # no more does a length that is only announced
                stack.enter_context(server.connect()).sendall(b"10485760:upper.")
            server.ask(b"7:upper.a,")
            assert resident_bytes(server) - before < 4 * 1024 * 1024


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered_before_a_signalled_server_ends(tmp_path: Path, number: int) -> None:
    with serving(tmp_path, "--plugins=none", "--plugins-dir", str(VERSES), GATE=str(tmp_path)) as server:
        waiting, idle, half_sent = server.connect(), server.connect(), server.connect()
        with waiting, idle, half_sent:
            half_sent.sendall(b"11:gate.po")
            waiting.sendall(netstring(b"gate.poem"))
            wait_until((tmp_path / "started").exists)
            server.process.send_signal(number)
            assert read_to_end(idle) == b""
            assert read_to_end(half_sent) == b""
            with pytest.raises(ConnectionRefusedError):
                server.connect()
            (tmp_path / "open").touch()
            assert read_to_end(waiting) == b"4:POEM,"
        assert server.process.wait(timeout=90) == 0
        assert "Traceback" not in server.log
