"""The access log of a server: its file, a pipe that nobody reads, and standard error."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.http_client import HTTP, exchange
from support.http_front import request
from support.processes import Server, netstring, serving, wait_until, xformd
from support.session_client import Session

pytestmark = pytest.mark.slow

POEM = "TheOwlAndThePussycat"
METRIC = b"\nxformd_access_log_dropped_total "


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def dropped(server: Server) -> float:
    with exchange(server) as client:
        body = client.ask(request("/metrics")).body
    return float(body.partition(METRIC)[2].partition(b"\n")[0])


def test_each_front_writes_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    options = ("--log-format=json", "--access-log", str(file), "--workers=1", "--isolate=upper")
    with serving(tmp_path, *options, *HTTP) as server:
        assert server.ask(netstring(f"upper.{POEM}".encode())) == netstring(POEM.upper().encode())
        with Session(server) as session:
            assert session.ask("wrap:prefix=S3CRET+cummingsify", POEM.encode()).code == "bad-options"
        with exchange(server) as client:
            client.ask(request("/transform/upper", POEM.encode(), x_request_id="owl-1"))
            client.ask(request(f"/{POEM}?{POEM}"))
        wait_until(lambda: len(lines_of(file)) == 4)
        assert dropped(server) == 0
    shown = ("front", "transform", "code", "status", "request_id")
    assert [tuple(map(line.get, shown)) for line in lines_of(file)[:3]] == [
        ("classic", "upper", "ok", None, None),
        ("session", "wrap+cummingsify", "bad-options", None, "1"),
        ("http", "upper", "ok", 200, "owl-1"),
    ]
    assert [line["status"] for line in lines_of(file)[3:]] == [404, 200]
    assert lines_of(file)[0]["queue_s"] > 0
    assert {line["peer"] for line in lines_of(file)} == {"127.0.0.1"}
    for text in (file.read_text(), server.log):
        assert POEM not in text
        assert "S3CRET" not in text


def test_a_server_without_http_writes_it_too_and_opens_the_file_anew(tmp_path: Path) -> None:
    file, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with serving(tmp_path, "--access-log", str(file)) as server:
        server.ask(netstring(b"upper.a"))
        wait_until(lambda: " [access] peer=127.0.0.1 front=classic transform=upper code=ok " in file.read_text())
        file.rename(old)
        server.process.send_signal(1)
        wait_until(file.exists)
        server.ask(netstring(b"upper.b"))
        wait_until(lambda: "front=classic" in file.read_text())
        server.ask(netstring(b"upper.c"))
        assert server.stop() == 0
    assert (file.read_text().count("\n"), old.read_text().count("\n")) == (2, 1)


def test_a_pipe_that_nobody_reads_holds_up_neither_the_server_nor_its_end(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with serving(tmp_path, "--access-log", str(fifo), *HTTP) as server:
        with Session(server) as session:
            while not dropped(server):
                session.collect(session.send(*[("upper", b"owl")] * 500))
        wait_until(lambda: "lines of the access log: it takes them more slowly than they come" in server.log)
        assert server.ask(netstring(b"upper.owl")) == b"3:OWL,"
        assert server.stop() == 0
    reports = [line for line in server.log.splitlines() if "lines of the access log" in line]
    assert sum(int(line.partition("dropped ")[2].split()[0]) for line in reports) > 10_000


def test_standard_error_has_both_logs(tmp_path: Path) -> None:
    with serving(tmp_path, "--access-log=stderr", "--log-format=json") as server:
        server.ask(netstring(b"uper.owl"))
        wait_until(lambda: server.log.count("\n") == 2)
        first, second = (json.loads(line) for line in server.log.splitlines())
    refused, access = (first, second) if "message" in first else (second, first)
    assert (refused["code"], access["code"]) == ("no-such-transform", "no-such-transform")
    assert (access["namespace"], access["transform"]) == ("access", "uper")


def test_a_file_that_cannot_be_opened_is_reported_with_its_flag(tmp_path: Path) -> None:
    done = xformd("serve", "--port=0", "--plugins=none", "--workers=0", f"--access-log={tmp_path}/none/a")
    assert done.returncode == 78
    assert done.stderr.decode() == (
        f"xformd: bad-config: --access-log: cannot open {tmp_path}/none/a: No such file or directory\n"
    )
