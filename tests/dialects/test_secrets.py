"""What a caller sends is the caller's: whatever is wrong with it, no line of the log has it."""

from types import ModuleType

import pytest

from support.http_front import Front
from support.logs import Log
from support.memory import MemoryAccessLog, MemoryServer
from support.processes import netstring
from support.secretive import CARELESS, CLASSIC, REQUESTS, SECRET, SESSIONS, in_session
from xformd import Transform
from xformd.plugins.builtin import poetry, text
from xformd.telemetry.logs import as_json, as_text


@pytest.fixture(scope="module")
def transforms() -> list[Transform]:
    """Transforms that quote their options, in the server, and built-in ones."""
    exec(CARELESS, (careless := ModuleType("careless")).__dict__)
    made = [each for each in careless.xformd_transforms() if each.name != "dies"]
    return [*made, *poetry.xformd_transforms(), *text.xformd_transforms()]


def assert_kept(log: Log, access_log: MemoryAccessLog, at_least: int) -> None:
    assert len(log) >= at_least
    for event in log:
        assert "SECRET" not in (as_text(event) + as_json(event) + str(event.get("reason"))).upper()
    assert access_log.lines
    assert "SECRET" not in str(access_log.lines).upper()


def test_no_log_has_what_comes_in_netstrings(transforms: list[Transform], log: Log) -> None:
    access_log = MemoryAccessLog()
    server = MemoryServer(counts=True, access_log=access_log, transforms=transforms)
    strings = [*(netstring(string.encode()) for string in CLASSIC), *(in_session(*messages) for messages in SESSIONS)]
    told = 0
    for data in (*strings, SECRET.encode(), f"GET /{SECRET} HTTP/1.1\r\n\r\n".encode()):
        _, wire = server.receive(data)
        told += SECRET.encode() in wire.value()
        server.clock.advance(1)  # else lines of a kind become one
    assert_kept(log, access_log, at_least=50)
    assert told > 12  # the caller itself is told what is wrong


def test_no_log_has_what_comes_over_http(log: Log) -> None:
    access_log = MemoryAccessLog()
    front = Front(access_log=access_log, host_names=("localhost",), trusted_proxies=("127.0.0.1",))
    for data in REQUESTS:
        front.client(data).leave()
        front.clock.advance(1)
    assert_kept(log, access_log, at_least=8)
