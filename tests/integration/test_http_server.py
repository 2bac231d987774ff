"""``xformd serve --http``: the same service, with real sockets and worker processes."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.certificates import tls_endpoint
from support.hostile import Hostile, hostile_server, new_marker
from support.http_client import HTTP, Http, abort, connect, exchange
from support.http_front import request
from support.packages import Environment
from support.processes import DEADLINE_S, VERSES, environment, read_to_end, serving, wait_until, xformd, xformd_process
from support.session_client import step

OWL = request("/transform/upper", b"owl")


@pytest.fixture(scope="module")
def hostile(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A server with the hostile transforms that answers HTTP too."""
    with hostile_server(hostile_environment, tmp_path_factory.mktemp("server"), *HTTP) as running:
        yield running


def transform(name: str, poem: bytes = b"owl", **options: object) -> bytes:
    return request(f"/transform/{step(name, **options)}", poem)


# What goes wrong in a worker.


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("raises", 500, "transform-failed"),
        ("exit-1", 502, "transform-died"),
        ("huge", 413, "too-large"),
        ("no-such", 404, "no-such-transform"),
    ],
)
def test_an_error_of_the_table_has_its_status(hostile: Hostile, name: str, status: int, code: str) -> None:
    with exchange(hostile.server) as client:
        answer = client.ask(transform(name))
        assert (answer.status, answer.problem["code"]) == (status, code)
        assert "/" not in answer.problem["detail"]


def test_a_deadline_ends_a_transform(hostile: Hostile) -> None:
    marker = new_marker()
    with exchange(hostile.server) as client:
        start = time.monotonic()
        answer = client.ask(
            request(f"/transform/{step('sleep', seconds=30, marker=marker)}", b"owl", x_timeout_ms="300")
        )
        assert (answer.status, answer.problem["code"]) == (504, "timeout")
        assert time.monotonic() - start < 5
    wait_until(lambda: not hostile.left_of(marker))


def test_what_is_quarantined_says_when_to_come_again(hostile_environment: Environment, tmp_path: Path) -> None:
    with hostile_server(hostile_environment, tmp_path, *HTTP) as own, exchange(own.server) as client:
        for _ in range(5):
            assert client.ask(transform("crash-1")).status == 502
        answer = client.ask(transform("crash-1"))
        assert (answer.status, answer.problem["code"]) == (503, "unavailable")
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert 0 < answer.problem["retry_after_ms"] <= 60_000


def test_a_full_queue_says_so_at_once(hostile_environment: Environment, tmp_path: Path) -> None:
    marker = new_marker()
    flags = ("--max-queue", "1", "--workers", "1")
    with hostile_server(hostile_environment, tmp_path, *HTTP, *flags) as own:
        own.worker_pids(1)
        with exchange(own.server) as running, exchange(own.server) as waiting, exchange(own.server) as refused:
            running.send(transform("sleep", seconds=30, marker=marker))
            own.wait_for(marker)
            waiting.send(transform("sleep", seconds=0))

            def is_full() -> bool:
                return json.loads(refused.ask(request("/readyz")).body)["queue_length"] == 1

            wait_until(is_full)
            answer = refused.ask(transform("pid"))
            assert (answer.status, answer.problem["code"]) == (429, "busy")
            assert int(answer.headers["retry-after"]) > 0
            assert refused.ask(request("/readyz")).status == 503


# Who goes away.


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_client_that_goes_away_cancels(hostile: Hostile, how: str) -> None:
    marker = new_marker()
    connection = connect(hostile.server)
    connection.sendall(transform("sleep", seconds=30, marker=marker))
    hostile.wait_for(marker)
    abort(connection) if how == "reset" else connection.close()
    wait_until(lambda: not hostile.left_of(marker))


def test_a_batch_whose_client_goes_away_is_given_up(hostile: Hostile) -> None:
    markers = [new_marker(), new_marker()]
    lines = [json.dumps({"spec": step("sleep", seconds=30, marker=each), "poem": ""}) for each in markers]
    connection = connect(hostile.server)
    connection.sendall(request("/batch", "\n".join(lines).encode()))
    for marker in markers:
        hostile.wait_for(marker)
    abort(connection)
    wait_until(lambda: not any(map(hostile.left_of, markers)))


def test_a_client_that_has_only_sent_all_it_will_is_answered(hostile: Hostile) -> None:
    with exchange(hostile.server) as client:
        client.send(transform("sleep", b"an owl", seconds=1.5))
        client.socket.shutdown(socket.SHUT_WR)
        found = client.rest()
        assert (found[-1].status, found[-1].body) == (200, b"an owl")
        assert {answer.status for answer in found[:-1]} <= {100}


def test_the_first_line_of_a_batch_comes_while_the_last_runs(hostile: Hostile) -> None:
    marker = new_marker()
    slow = {"spec": step("sleep", seconds=30, marker=marker), "poem": ""}
    lines = [slow, {"spec": "upper", "poem": "owl"}]
    connection = connect(hostile.server)
    connection.sendall(request("/batch", "\n".join(map(json.dumps, lines)).encode()))
    received = b""
    while b'"index": 1' not in received:
        received += connection.recv(65_536)
    abort(connection)
    assert b"OWL" in received
    assert b'"index": 0' not in received
    wait_until(lambda: not hostile.left_of(marker))


# How a server ends, and changes.


def test_on_sigterm_what_is_in_flight_is_answered_and_nothing_else(
    hostile_environment: Environment, tmp_path: Path
) -> None:
    marker = new_marker()
    with hostile_server(hostile_environment, tmp_path, *HTTP, XFORMD_SHUTDOWN_GRACE_S="15") as own:
        server = own.server
        with exchange(server) as idle, exchange(server) as busy, exchange(server) as half, exchange(server) as silent:
            assert idle.ask(OWL).status == 200
            half.send(OWL[:-1])
            busy.send(transform("sleep", b"an owl", seconds=1, marker=marker))
            own.wait_for(marker)
            server.process.terminate()
            assert idle.rest() == []
            assert silent.rest() == []
            assert [answer.status for answer in half.rest()] == [503]
            with pytest.raises(ConnectionRefusedError):
                connect(server).close()
            (answer,) = busy.rest()
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"an owl", "close")
        assert server.process.wait(DEADLINE_S) == 0
        wait_until(lambda: not own.processes())
        assert "Traceback" not in server.log


def test_what_outlives_the_grace_period_is_told_so(hostile_environment: Environment, tmp_path: Path) -> None:
    marker = new_marker()
    with hostile_server(hostile_environment, tmp_path, *HTTP, XFORMD_SHUTDOWN_GRACE_S="0.3") as own:
        with exchange(own.server) as client:
            client.send(transform("deaf", marker=marker))
            own.wait_for(marker)
            own.server.process.terminate()
            (answer,) = client.rest()
            assert (answer.status, answer.problem["code"]) == (503, "shutting-down")
        assert own.server.process.wait(DEADLINE_S) == 0
        wait_until(lambda: not own.processes())


def test_plugins_are_loaded_anew_without_a_failed_request(hostile_environment: Environment, tmp_path: Path) -> None:
    with hostile_server(hostile_environment, tmp_path, *HTTP) as own:
        statuses: list[int] = []
        is_over = threading.Event()

        def load() -> None:
            with exchange(own.server) as client:
                while not is_over.is_set():
                    statuses.append(client.ask(transform("sleep", seconds=0.01)).status)

        threads = [threading.Thread(target=load) for _ in range(3)]
        before = own.worker_pids()
        for thread in threads:
            thread.start()
        own.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & own.processes())
        is_over.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert len(statuses) > 3
        assert {*statuses} == {200}


# Where it listens.


def test_it_answers_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with serving(tmp_path, "--plugins=none", "--http", f"unix:{path}") as server:
        assert server.greeting[1].endswith(f"http://unix:{path}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(path))
            assert Http(connection).ask(OWL).body == b"OWL"
            assert Http(connection).ask(OWL).body == b"OWL"


@pytest.mark.parametrize("is_closed", [True, False])
def test_it_answers_over_tls(tmp_path: Path, is_closed: bool) -> None:
    endpoint, trusted = tls_endpoint(tmp_path)
    context = ssl.create_default_context(cafile=str(trusted / "certificate.pem"))
    context.check_hostname = False
    poem = b"owl" * 300_000
    with serving(tmp_path, "--plugins=none", "--http", endpoint) as server:
        with connect(server) as plain, context.wrap_socket(plain) as connection:
            client = Http(connection)
            assert client.ask(request("/transform/upper", poem)).body == poem.upper()
            if is_closed:
                answer = client.ask(request("/transform/upper", poem, connection="close"))
                assert answer.body == poem.upper()
                assert read_to_end(connection) == b""
            else:
                client.send(OWL * 200)
                assert [each.body for each in client.receive(200)] == [b"OWL"] * 200
        assert server.stop() == 0


def test_without_the_extra_it_is_said_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('no starlette', name='starlette')\n")
    refused = xformd_process("serve", "--port", "0", *HTTP, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 78
    assert refused.stderr.decode().strip().endswith("http: starlette is not installed: pip install 'xformd[http]'")
    with serving(tmp_path, "--plugins=none", PYTHONPATH=str(tmp_path)) as server:
        assert server.ask(b"9:upper.owl,") == b"3:OWL,"


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", *HTTP) as server:
        place = urlsplit(server.http)
        second = xformd("serve", "--port", "0", "--http", f"tcp:{place.port}:interface=127.0.0.1")
    assert second.returncode == 69
    assert b"is another server running there?" in second.stderr


def test_other_clients_are_content(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none", *HTTP) as server:
        connection = http.client.HTTPConnection(urlsplit(server.http).netloc, timeout=DEADLINE_S)
        for _ in range(3):
            connection.request("POST", "/transform/upper", iter([b"o", b"wl"]), encode_chunked=True)
            assert connection.getresponse().read() == b"OWL"
        connection.close()


def test_a_poem_in_a_worker_comes_back_as_long_as_it_may_be(tmp_path: Path) -> None:
    poem = b"owl " * 2_000_000
    flags = ("--plugins=none", "--plugins-dir", str(VERSES), "--workers", "1")
    with serving(tmp_path, *flags, *HTTP) as server, exchange(server) as client:
        assert client.ask(request("/transform/backwards", poem)).body == poem[::-1]


def test_importing_the_server_needs_none_of_it() -> None:
    code = "import sys, xformd.server.app, xformd.cli; print({'starlette', 'uvicorn', 'asyncio'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(), timeout=DEADLINE_S, check=True
    )
    assert b"starlette" not in done.stdout
    assert b"uvicorn" not in done.stdout
