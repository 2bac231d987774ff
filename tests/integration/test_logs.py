"""What a server writes to its log: one line for each event, and no poem, whatever becomes of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import Server, netstring, serving, wait_until, xformd
from support.session_client import Session

pytestmark = pytest.mark.slow

POEM = "TheOwlOfTheLog"
LEAKY = Path(__file__).parents[1] / "support" / "leaky"
SETTINGS = ("--plugins=none", "--plugins-dir", str(LEAKY), "--workers=1", "--transform-timeout-s=5s")


@pytest.fixture(params=["text", "json"], scope="module")
def log_format(request: pytest.FixtureRequest) -> str:
    """How the log is written."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(log_format: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose transforms fail in every way."""
    with serving(tmp_path_factory.mktemp(log_format), *SETTINGS, "--log-format", log_format) as running:
        yield running


def names() -> list[str]:
    listed = json.loads(xformd("list-transforms", "--json", *SETTINGS[:3]).stdout)
    return [each["name"] for each in listed["transforms"] if each["plugin"] == "leaky"]


def is_logged(server: Server, name: str) -> bool:
    """Whether this transform's failure has a line; of many within a second some share one, so it fails again."""
    assert server.ask(netstring(f"{name}.{POEM}".encode())) == b""
    return f"transform {name} of plugin leaky.py (leaky) failed" in server.log


def test_no_poem_is_logged_whatever_becomes_of_it(server: Server) -> None:
    every = names()
    assert len(every) > 30
    with Session(server) as session:
        answers = session.collect(session.send(*[(name, POEM.encode()) for name in every]))
        assert {answer.code for answer in answers} >= {"ok", "gibberish", "timeout", "transform-died"}
        assert any(POEM.encode() in answer.poem for answer in answers)  # the client is told
    for name in ("refuses", "refuses-here", "finds-it-long", "gives-up-here", "raises", "upper:x=1"):
        assert server.ask(netstring(f"{name}.{POEM}".encode())) == b""
    for stream in (f"{POEM}.", POEM, f"upper:{POEM}.", f"upper:a={POEM} .", f"Ünd {POEM}. went"):
        assert server.ask(netstring(stream.encode()), half_close=True) == b""
    assert server.ask(POEM.encode(), half_close=True) == b""
    session_first = netstring(b"xformd/2") + netstring(f"{POEM} upper.{POEM}".encode())
    assert b"0 bad-frame" in server.ask(session_first)
    wait_until(lambda: "not an id" in server.log)
    wait_until(lambda: is_logged(server, "raises"))
    wait_until(lambda: is_logged(server, "raises-here"))
    wait_until(lambda: server.log.count("ValueError") > 10)
    assert POEM.lower() not in server.log.lower()


def events(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.mark.parametrize("log_format", ["json"], indirect=True)
def test_as_json_each_line_is_an_event(server: Server, log_format: str) -> None:
    before = len(server.log.splitlines())
    with Session(server) as session:
        requests = [(name, b"owl") for name in ("prints", "prints-elsewhere", "logs-a-failure", "leaves-a-thread-here")]
        session.collect(session.send(*requests))
    wait_until(lambda: "worker" in server.log.splitlines()[-1] or len(server.log.splitlines()) >= before + 6)
    assert all(line.isascii() and line.isprintable() for line in server.log.splitlines())
    told = events(server)[before:]
    for event in told:
        assert list(event)[:4] == ["time", "level", "namespace", "message"]
    printed = [event["message"] for event in told if event["namespace"] == "stdout"]
    assert printed == ["printed", "by \x1b[2J leaky"]
    in_worker = [event["message"].partition(": ")[2] for event in told if event["message"].startswith("worker ")]
    assert in_worker == ["printed", "in a \ufffd[2J worker"]
    (logged,) = [event for event in told if event["namespace"] == "leaky"]
    assert (logged["message"], logged["level"], logged["error"]) == ("it failed", "error", "ValueError")
    (uncaught,) = [event for event in told if event["message"].startswith("uncaught")]
    assert "leaky.py" in uncaught["traceback"]


@pytest.mark.parametrize("log_format", ["json"], indirect=True)
@pytest.mark.parametrize("name", ["raises", "raises-here"])
def test_as_json_a_transform_that_fails_is_one_event_with_its_traceback(server: Server, name: str) -> None:
    message = f"transform {name} of plugin leaky.py (leaky) failed"
    with Session(server) as session:
        session.ask(name, b"owl")
    wait_until(lambda: message in server.log)
    event = next(event for event in events(server) if event["message"] == message)
    assert (event["transform"], event["plugin"], event["error"]) == (name, "leaky.py (leaky)", "ValueError")
    assert event["level"] == "error"
    assert "leaky.py" in event["traceback"]


def test_as_json_what_stops_a_server_is_an_event_too(tmp_path: Path) -> None:
    with serving(tmp_path, "--plugins=none") as server:
        port = server.address.rpartition(":")[2]
        failed = xformd("serve", "--plugins=none", "--port", port, "--log-format=json")
    assert failed.returncode == 69
    (event,) = [json.loads(line) for line in failed.stderr.splitlines()]
    assert event["message"].startswith("xformd: listen-failed: ")
