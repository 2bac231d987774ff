"""What HTTP clients send is read in turns: hostile bodies and heads keep no other client waiting."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.http_client import HTTP, connect, exchange
from support.http_front import request
from support.processes import Server, serving
from support.timing import assert_within
from xformd.http.batch import MAX_LINE_BYTES
from xformd.http.requests import MAX_RECODED_BYTES

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
BODY = 10 * MIB - 1024
"""Nearly ``max_request_bytes``."""

ATTACK_S = 0.5
MAX_P99_S = 0.06
MAX_GROWTH_BYTES = 160 * MIB
"""Of the server's memory at its peak: what is read, a body, a line's poem and its result have 10 MiB each."""


def batch(line: bytes) -> bytes:
    return request("/batch", line, connection="close")


def repeated(part: bytes, length: int = BODY) -> bytes:
    return part * (length // len(part))


def long_line(part: bytes, name: bytes = b"poem") -> bytes:
    return long_lines(b'{"spec": "no-such", "%b": "%b"}' % (name, repeated(part, MAX_LINE_BYTES - 100)))


def long_lines(line: bytes) -> bytes:
    return batch(b"\n".join([line] * (BODY // (len(line) + 1))))


def recoded(charset: str, part: bytes) -> bytes:
    return request(
        "/transform/first",
        repeated(part, MAX_RECODED_BYTES),
        content_type=f"text/plain; charset={charset}",
        connection="close",
    )


def get(target: str, **headers: str) -> bytes:
    return request(target, None, method="GET", connection="close", **headers)


LONG_STEP = f"first:a={'%41' * 78}"
CHUNKED = b"POST /transform/first HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
ATTACKS: dict[str, Callable[[], bytes]] = {
    "too long": lambda: batch(repeated(b"[[],")),
    "nested": lambda: long_lines(repeated(b"[[],", MAX_LINE_BYTES)),
    "letters": lambda: long_line(b"a"),
    "backslashes": lambda: long_line(b"\\\\"),
    "escapes": lambda: long_line(b"\\u0000"),
    "pairs": lambda: long_line(b"\\ud83d\\ude00"),
    "three bytes": lambda: long_line("\N{EURO SIGN}".encode()),
    "base64": lambda: long_line(b"YWFh", b"poem_base64"),
    "unterminated": lambda: long_lines(b'{"spec": "upper", "poem": "' + repeated(b"a", MAX_LINE_BYTES - 100)),
    "quotes": lambda: long_lines(repeated(b'{"', MAX_LINE_BYTES)),
    "many members": lambda: long_lines(b"{%b}" % repeated(b'"a":1,', MAX_LINE_BYTES - 9)),
    "a number": lambda: long_lines(b'{"spec": "upper", "poem": %b}' % repeated(b"1", MAX_LINE_BYTES - 99)),
    "blank lines": lambda: batch(repeated(b"\n")),
    "spaces": lambda: batch(repeated(b" ")),
    "two bytes": lambda: batch(repeated(b"{}\n")),
    "long results": lambda: long_lines(b'{"spec": "first", "poem": "%b"}' % repeated(b"\\n", MAX_LINE_BYTES - 99)),
    "results of bytes": lambda: long_lines(b'{"spec": "invert", "poem": "%b"}' % repeated(b"a", MAX_LINE_BYTES - 99)),
    "shift_jis": lambda: recoded("shift_jis", b"\xa1\xa1"),
    "koi8-r": lambda: recoded("koi8-r", b"\xc1"),
    "utf-16": lambda: recoded("utf-16", b"\xac\x20"),
    "a query": lambda: get("/transform/first?" + "&".join(f"k{number}=%41" for number in range(5_000))),
    "repeated fields": lambda: get("/transform/first?" + "&".join(f"k{number % 999}=" for number in range(5_000))),
    "a poem in a URL": lambda: get("/transform/first?poem=" + "%41" * 16_000),
    "a long spec": lambda: request(
        "/transform/" + "+".join([f"first:a={'%41' * 78}"] * 32), b"owl", connection="close"
    ),
    "a name": lambda: get(f"/transforms/{'a' * 60_000}"),
    "tags": lambda: get("/transform/first?poem=a", if_none_match=",".join(['"a"'] * 15_000)),
    "elements": lambda: get("/livez", forwarded=",".join(["for=1.2.3.4"] * 5_000)),
    "a quoted element": lambda: get("/livez", forwarded='for="' + "\\a" * 30_000 + '"'),
    "a prefix": lambda: get("/openapi.json", x_forwarded_prefix="/a"),
    "the listing": lambda: request("/transforms", method="GET") * 100 + get("/transforms"),
    "the page": lambda: request("/", method="GET") * 100 + get("/"),
    "metrics": lambda: request("/metrics", method="GET") * 20 + get("/metrics"),
    "readiness": lambda: request("/readyz", method="GET") * 100 + get("/readyz"),
    "fields": lambda: get("/livez", **{f"a{number}": "b" for number in range(990)}),
    "chunks": lambda: (
        b"POST /transform/first HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\na\r\n" * 100_000
        + b"0\r\n\r\n"
    ),
}

PLUGIN = """
import xformd

@xformd.transform(inline=True, deterministic=True)
def first(poem: str) -> str:
    return poem

@xformd.transform(inline=True)
def invert(poem: bytes) -> bytes:
    return bytes(len(poem)) + b"\\xff"

@xformd.hookimpl
def xformd_transforms():
    return [first, invert]
"""


OWL = request("/transform/first", b"owl")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "verses.py").write_text(PLUGIN)
    with serving(folder, "--plugins-dir", str(plugins), "--trusted-proxies", "127.0.0.1", *HTTP) as running:
        yield running


def memory_bytes(server: Server, field: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def attack(server: Server, data: bytes, stop: threading.Event, answered: list[int]) -> None:
    """Send a request again and again, on one connection after the other, and read what comes back."""
    while not stop.is_set():
        with connect(server) as connection, contextlib.suppress(ConnectionError):
            connection.settimeout(0.05)
            rest = memoryview(data)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    if rest:
                        rest = rest[connection.send(rest) :]
                    elif not connection.recv(1 << 20):
                        break
        answered[0] += 1


def measure(server: Server, name: str, data: bytes) -> tuple[float, int]:
    """Return how long others' requests take beside an attack, 99 of 100, and how much the server's memory grows."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    before = memory_bytes(server, "VmRSS")
    stop, answered, waits = threading.Event(), [0], list[float]()
    attacker = threading.Thread(target=attack, args=(server, data, stop, answered))
    attacker.start()
    try:
        with exchange(server) as client:
            ends_at = time.monotonic() + ATTACK_S
            while time.monotonic() < ends_at:
                started_s = time.monotonic()
                assert client.ask(OWL).body == b"owl"
                waits.append(time.monotonic() - started_s)
                time.sleep(0.001)
    finally:
        stop.set()
        attacker.join()
    p99_s, growth_bytes = sorted(waits)[int(len(waits) * 0.99)], memory_bytes(server, "VmHWM") - before
    print(
        f"{name}: {answered[0]} x {len(data)} bytes; others' p99 of {len(waits)}: {1000 * p99_s:.1f} ms,"
        f" worst {1000 * max(waits):.1f} ms; {growth_bytes / MIB:.0f} MiB more"
    )
    return p99_s, growth_bytes


@pytest.mark.timing
@pytest.mark.parametrize("name", ATTACKS)
def test_others_do_not_wait_while_hostile_requests_are_read(server: Server, name: str) -> None:
    data = ATTACKS[name]()

    def p99_s() -> float:
        waited_s, growth_bytes = measure(server, name, data)
        assert growth_bytes <= MAX_GROWTH_BYTES
        return waited_s

    assert_within(MAX_P99_S, p99_s)
