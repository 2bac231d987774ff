"""``xformd serve --http`` with real sockets and worker processes."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.certificates import tls_endpoint
from support.hostile import Hostile, hostile_server, new_marker
from support.http_client import HTTP, Http, connect, exchange
from support.http_front import request
from support.packages import Environment
from support.processes import DEADLINE_S, read_to_end, serving, wait_until, xformd_process
from support.session_client import abort, step

pytestmark = pytest.mark.slow

OWL = request("/transform/upper", b"owl")


@pytest.fixture(scope="module")
def hostile(hostile_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A server with the hostile transforms that also answers HTTP."""
    with hostile_server(hostile_environment, tmp_path_factory.mktemp("server"), *HTTP) as running:
        yield running


def transform(name: str, poem: bytes = b"owl", **options: object) -> bytes:
    return request(f"/transform/{step(name, **options)}", poem)


# Errors in a worker.


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
        target = f"/transform/{step('sleep', seconds=300, marker=marker)}"
        answer = client.ask(request(target, b"owl", x_timeout_ms="300"))
        assert (answer.status, answer.problem["code"]) == (504, "timeout")
    wait_until(lambda: not hostile.left_of(marker))


def test_a_full_queue_is_answered_at_once(hostile_environment: Environment, tmp_path: Path) -> None:
    marker = new_marker()
    with hostile_server(hostile_environment, tmp_path, *HTTP, "--max-queue", "1", "--workers", "1") as own:
        own.worker_pids(1)
        with exchange(own.server) as running, exchange(own.server) as waiting, exchange(own.server) as refused:
            running.send(transform("sleep", seconds=300, marker=marker))
            own.wait_for(marker)
            waiting.send(transform("sleep", seconds=0))
            wait_until(lambda: refused.ask(request("/readyz")).status == 503)
            assert json.loads(refused.ask(request("/readyz")).body)["queue_length"] == 1
            answer = refused.ask(transform("pid"))
            assert (answer.status, answer.problem["code"]) == (429, "busy")
            assert int(answer.headers["retry-after"]) > 0


# Clients that disconnect.


@pytest.mark.parametrize("how", ["reset", "closed"])
def test_a_disconnect_cancels_the_transform(hostile: Hostile, how: str) -> None:
    marker = new_marker()
    connection = connect(hostile.server)
    connection.sendall(transform("sleep", seconds=300, marker=marker))
    hostile.wait_for(marker)
    abort(connection) if how == "reset" else connection.close()
    wait_until(lambda: not hostile.left_of(marker))


def test_a_half_closed_client_is_answered(hostile: Hostile) -> None:
    with exchange(hostile.server) as client:
        client.send(transform("sleep", b"an owl", seconds=1.5))
        client.socket.shutdown(socket.SHUT_WR)
        found = client.rest()
        assert (found[-1].status, found[-1].body) == (200, b"an owl")
        assert {answer.status for answer in found[:-1]} <= {100}


# Shutdown.


def test_sigterm_lets_requests_in_flight_finish(hostile_environment: Environment, tmp_path: Path) -> None:
    marker = new_marker()
    with hostile_server(hostile_environment, tmp_path, *HTTP, XFORMD_SHUTDOWN_GRACE_S="15") as own:
        server = own.server
        with exchange(server) as idle, exchange(server) as busy, exchange(server) as half, exchange(server) as silent:
            assert idle.ask(OWL).status == 200
            half.send(OWL[:-1])
            busy.send(transform("sleep", b"an owl", seconds=1, marker=marker))
            own.wait_for(marker)
            server.process.terminate()
            assert idle.rest() == silent.rest() == []
            assert [answer.status for answer in half.rest()] == [503]
            with pytest.raises(ConnectionRefusedError):
                connect(server).close()
            (answer,) = busy.rest()
            assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"an owl", "close")
        assert server.process.wait(DEADLINE_S) == 0
        wait_until(lambda: not own.processes())
        assert "Traceback" not in server.log


# Listening.


def test_it_answers_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http"
    with serving(tmp_path, "--plugins=none", "--http", f"unix:{path}") as server:
        assert server.greeting[1].endswith(f"http://unix:{path}")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_S)
            connection.connect(str(path))
            assert Http(connection).ask(OWL).body == b"OWL"
            assert Http(connection).ask(OWL).body == b"OWL"


def test_it_answers_over_tls(tmp_path: Path) -> None:
    endpoint, trusted = tls_endpoint(tmp_path)
    context = ssl.create_default_context(cafile=str(trusted / "certificate.pem"))
    context.check_hostname = False
    poem = b"owl" * 300_000
    with serving(tmp_path, "--plugins=none", "--http", endpoint) as server:
        with connect(server) as plain, context.wrap_socket(plain) as connection:
            client = Http(connection)
            assert client.ask(request("/transform/upper", poem)).body == poem.upper()
            client.send(OWL * 200)
            assert [each.body for each in client.receive(200)] == [b"OWL"] * 200
            assert client.ask(request("/transform/upper", poem, connection="close")).body == poem.upper()
            assert read_to_end(connection) == b""
        assert server.stop() == 0


def test_a_port_in_use_is_reported(hostile: Hostile) -> None:
    port = urlsplit(hostile.server.http).port
    second = xformd_process("serve", "--port", "0", "--http", f"tcp:{port}:interface=127.0.0.1")
    assert second.returncode == 69
    assert b"is another server running there?" in second.stderr


def test_http_client_of_the_standard_library_works(hostile: Hostile) -> None:
    connection = http.client.HTTPConnection(urlsplit(hostile.server.http).netloc, timeout=DEADLINE_S)
    for _ in range(3):
        connection.request("POST", "/transform/upper", iter([b"o", b"wl"]), encode_chunked=True)
        assert connection.getresponse().read() == b"OWL"
    connection.close()
