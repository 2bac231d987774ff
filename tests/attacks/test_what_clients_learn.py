"""What nobody but the operator is told, and what nobody but the caller: asked for on every front."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.http_client import HTTP, connect
from support.lying import PLUGIN, TRANSFORM, lies
from support.poems import peer
from support.processes import Server, netstring, read_to_end, serving, wait_until, xformd
from support.secretive import BATCH, CARELESS, CLASSIC, REQUESTS, SECRET, SESSIONS, in_session, request

pytestmark = pytest.mark.slow

PASSWORD, KEY_FILE = "hunter2", "/etc/poems/key.pem"
FAILS = f"raise OSError(2, 'postgresql://owl:{PASSWORD}@db/poems', {KEY_FILE!r})"


@contextmanager
def server(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a server with a plugin that fails, and with transforms that quote their options, and a worker."""
    (plugins := folder / "plugins").mkdir()
    (plugins / "database.py").write_text(FAILS)
    (plugins / "careless.py").write_text(CARELESS)
    selection = ("--plugins=none", "--plugins-dir", str(plugins))
    options = (*selection, *HTTP, "--workers=1", "--access-log=stderr", "--trusted-proxies=127.0.0.1", *arguments)
    with serving(folder, *options) as running:
        yield running


@contextmanager
def proxy(folder: Path, upstream: str, *arguments: str) -> Iterator[Server]:
    """Run a caching proxy in front of a server."""
    (folder / "proxy").mkdir(parents=True)
    with serving(folder / "proxy", *arguments, upstream, verb=("proxy",), ready="the transforms of") as running:
        yield running


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send all, and return what comes back until the server closes."""
    with connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            return read_to_end(connection)
        except ConnectionResetError:
            return b""


GETS = (
    "/",
    "/transforms",
    "/transforms/databases",
    "/openapi.json",
    "/livez",
    "/readyz",
    "/metrics",
    "/transform/database",
)


def told_in_sessions(server: Server) -> list[bytes]:
    asked = ("1 !list.", "2 !ping.", "3 databases.poem", "4 database+upper.poem", f"5 {SECRET}.", "6 upper.poem")
    return [exchange(server.connect(), in_session(*asked)), exchange(server.connect(), netstring(b"databases.poem"))]


def told_over_http(server: Server) -> list[bytes]:
    batch = request("/batch", '{"spec": "databases", "poem": "owl"}\n{"spec": "raises", "poem": "owl"}')
    asked = [*(request(path, method="GET") for path in GETS), request("/transform/databases", "poem"), batch]
    return [exchange(connect(server), data) for data in asked]


def told_by_commands(server: Server) -> list[bytes]:
    asked = (("list-transforms",), ("list-transforms", "--json"), ("ping",), ("send", "databases"))
    done = [xformd(*words, "--server", server.address, stdin=b"poem") for words in asked]
    return [each.stdout + each.stderr for each in done]


def assert_untold(answers: Sequence[bytes], *marks: str) -> None:
    for answer in answers:
        assert not [mark for mark in marks if mark.encode() in answer], answer


def test_why_a_plugin_failed_reaches_no_client_and_the_operator(tmp_path: Path) -> None:
    marks = (PASSWORD, KEY_FILE, "OSError", "FileNotFoundError", str(tmp_path))
    with server(tmp_path) as running, proxy(tmp_path, running.address) as caching:
        answers = [*told_in_sessions(running), *told_over_http(running), *told_by_commands(running)]
        answers += [*told_in_sessions(caching), *told_by_commands(caching)]
        assert_untold(answers, *marks)
        assert sum(b"failed" in answer for answer in answers) >= 8
        wait_until(lambda: PASSWORD in running.log and KEY_FILE in running.log)
    local = xformd("list-transforms", "--plugins=none", "--plugins-dir", str(tmp_path / "plugins"))
    assert PASSWORD in local.stdout.decode()
    print(f"{len(answers)} answers of 2 servers told nothing of {len(marks)} secrets; the log and a local list told")


def test_a_proxy_passes_on_no_reason_that_an_older_server_tells(tmp_path: Path) -> None:
    failed = {**PLUGIN, "name": "database", "state": "failed", "reason": f"{PASSWORD} {KEY_FILE}"}
    listing = {"transforms": [TRANSFORM], "plugins": [PLUGIN, failed], "conflicts": []}
    refusal = f"no-such-transform.no transform 'databases' here; plugin database failed: {PASSWORD} {KEY_FILE}"
    with peer(lies(listing, refusal.encode())) as old, proxy(tmp_path, old.address) as caching:
        answers = [*told_in_sessions(caching), *told_by_commands(caching)]
    assert_untold(answers, PASSWORD, KEY_FILE)
    assert sum(b"failed" in answer for answer in answers) >= 4
    print(f"{len(answers)} answers of a proxy told nothing of what an older server tells")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_caller_sends_is_in_no_log(tmp_path: Path, log_format: str) -> None:
    own = ("--log-format", log_format)
    with server(tmp_path, *own) as running, proxy(tmp_path, running.address, *own) as caching:
        told = [exchange(connect(running), data) for data in REQUESTS]
        for each in (running, caching):
            exchange(each.connect(), f"{SECRET}.poem,".encode())
            exchange(each.connect(), request(f"/{SECRET}"))
            for string in CLASSIC:
                exchange(each.connect(), netstring(string.encode()))
            told += [exchange(each.connect(), in_session(*messages)) for messages in SESSIONS]
        wait_until(lambda: "[access] peer=" in running.log or '"namespace": "access"' in running.log)
        wait_until(lambda: "transform raises-here of plugin careless.py (careless) failed" in running.log)
        wait_until(lambda: "bad-options" in caching.log)
        for each in (running, caching):
            assert each.stop() == 0
            lines = [line for line in each.log.splitlines() if "SECRET" in line.upper()]
            assert lines == []
    assert sum(SECRET.encode() in answer for answer in told) > 50  # the caller itself is told what was wrong
    count = len(REQUESTS) + len(BATCH) + 2 * (len(CLASSIC) + len(SESSIONS) + 2)
    written = len((running.log + caching.log).splitlines())
    print(f"{count} requests with a secret on every front of 2 servers: none in {written} lines of their logs")
