"""Whatever clients bring about in floods is few lines of the log, as text and as JSON, and the rest is counted."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from support.http_client import HTTP, connect
from support.http_front import request
from support.processes import Server, serving
from support.session_client import abort
from xformd.wire import netstring

pytestmark = pytest.mark.slow

FLOOD_S = 2.0
MAX_LINES = 60
"""What a flood may add to the log meanwhile: at first the 30 lines of its namespace's burst, then 10 a second; and its
plugin's namespace has such a budget too."""

PLUGIN = """
import logging, os, sys
import xformd
from twisted.internet.defer import fail

def deep(depth):
    if depth:
        deep(depth - 1)
    raise ValueError("no verse")

def make(number):
    @xformd.transform(name=f"fails-{number}", inline=True)
    def fails(poem: str) -> str:
        deep(number % 18)
    return fails

@xformd.transform(inline=True)
def prints(poem: str) -> str:
    print("one\\\\ntwo")
    print("three", file=sys.stderr)
    return poem

@xformd.transform(inline=True)
def forgets(poem: str) -> str:
    fail(ValueError("nobody looks"))
    return poem

@xformd.transform(inline=True)
def prints_it(poem: str) -> str:
    print(poem)
    return poem

@xformd.transform(inline=True)
def logs_it(poem: str) -> str:
    logging.warning(poem)
    return poem

@xformd.transform
def fails_there(poem: str) -> str:
    deep(18)

@xformd.transform
def prints_there(poem: str) -> str:
    print("a line\\\\n" * 1_000)
    return poem

@xformd.transform
def dies_there(poem: str) -> str:
    os._exit(3)

@xformd.hookimpl
def xformd_transforms():
    return [*map(make, range(100)), prints, prints_it, logs_it, forgets, fails_there, prints_there, dies_there]
"""


def ask(server: Server, *specs: str, poem: str = "owl") -> None:
    """Send requests in a session, and read until the last is answered."""
    with server.connect() as connection:
        connection.settimeout(5)
        opening = netstring.encode(b"xformd/2")
        requests = (netstring.encode(f"{number} {spec}.{poem}".encode()) for number, spec in enumerate(specs, 1))
        connection.sendall(opening + b"".join(requests))
        received = b""
        while received.count(b",") < len(specs) and (data := connection.recv(65_536)):
            received += data


def send(connection: socket.socket, data: bytes) -> None:
    """Send data, and wait for the server's end."""
    with connection, suppress(OSError):
        connection.settimeout(5)
        connection.sendall(data)
        while connection.recv(65_536):
            pass


def malformed(server: Server) -> None:
    for string in (
        b"rubbish",
        b"3:abc,",
        b"5:upper",
        b"12:uper.The Owl,",
        b"9:uppe+.abc,",
        b"10:wrap:a=b.a,",
        b"99999999:",
    ):
        with server.connect() as connection:
            connection.sendall(string)
            connection.shutdown(socket.SHUT_WR)
            send(connection, b"")


def malformed_http(server: Server) -> None:
    for data in (b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03", request("/x" * 40_000)):
        send(connect(server), data)


def too_many(server: Server) -> None:
    held = [connect(server) for _ in range(60)]
    for each in held:
        abort(each)  # or their ports would be taken for a minute


FLOODS: dict[str, Callable[[Server], None]] = {
    "malformed requests": malformed,
    "malformed HTTP": malformed_http,
    "too many connections": too_many,
    "a failing transform": lambda server: ask(server, *["fails-17"] * 60),
    "many failing transforms": lambda server: ask(server, *[f"fails-{number}" for number in range(60)]),
    "a failing transform in a worker": lambda server: ask(server, *["fails-there"] * 20),
    "dying workers": lambda server: ask(server, *["dies-there"] * 4),
    "what is printed": lambda server: ask(server, *["prints"] * 60),
    "a printed poem": lambda server: ask(server, *["prints-it"] * 4, poem="a\n" * 30_000),
    "a logged poem": lambda server: ask(server, *["logs-it"] * 4, poem="a\n" * 30_000),
    "what workers print": lambda server: ask(server, *["prints-there"] * 4),
    "forgotten failures": lambda server: ask(server, *["forgets"] * 60),
}


@pytest.fixture(scope="module", params=["text", "json"])
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "verses.py").write_text(PLUGIN)
    options = ("--plugins-dir", str(plugins), "--log-format", request.param, "--max-connections-per-peer", "40", *HTTP)
    with serving(folder, *options, XFORMD_WORKERS="2") as running:
        yield running


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_few_lines_of_the_log(
    server: Server, flood: Callable[[Server], None], request: pytest.FixtureRequest
) -> None:
    before, times, ends_at = server.log.count("\n"), 0, time.monotonic() + FLOOD_S
    while time.monotonic() < ends_at:
        with suppress(OSError):
            flood(server)
        time.sleep(0.01)  # so that the connections leave other tests their ports
        times += 1
    lines = server.log.splitlines()[before:]
    print(f"{request.node.callspec.id}: {times} times, {len(lines) / FLOOD_S:.1f} lines of log a second")
    assert 0 < len(lines) <= MAX_LINES
    if "json" in request.node.callspec.id:
        assert max(json.loads(line).get("count", 1) for line in lines) > 1
    else:
        assert any("the last of" in line or "dropped" in line for line in lines)
