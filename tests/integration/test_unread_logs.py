"""A log on a pipe that nobody reads: the server answers, ends, and says how many lines are missing."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import DEADLINE_S, XFORMD, Server, environment, netstring

pytestmark = pytest.mark.slow

TALKATIVE = """
import sys
import xformd

@xformd.transform(inline=True)
def talk(poem: str) -> str:
    for number in range(1_000):
        print("a line of a plugin", number, file=sys.stderr if number % 2 else sys.stdout)
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [talk]
"""


@contextmanager
def unread(folder: Path, *arguments: str) -> Iterator[tuple[Server, int]]:
    """Run a server whose standard error is a pipe; yield the server and the pipe's reading end."""
    (folder / "talkative.py").write_text(TALKATIVE)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    places = ("--port=0", "--http=none", "--plugins=none", "--plugins-dir", str(folder), "--workers=0")
    command = [*XFORMD, "serve", *places, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=writer, env=environment()) as process:
        os.close(writer)
        try:
            yield Server(process, folder / "none"), reader
        finally:
            process.kill()
            os.close(reader)


def fill(server: Server) -> None:
    """Have far more logged than the pipe takes."""
    for _ in range(30):
        assert server.ask(netstring(b"talk.owl")) == b"3:owl,"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_answers_and_ends(log_format: str, tmp_path: Path) -> None:
    with unread(tmp_path, "--log-format", log_format) as (server, _):
        fill(server)
        assert server.ask(netstring(b"uper.owl")) == b""
        assert server.ask(netstring(b"upper.owl")) == b"3:OWL,"
        assert server.stop() == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_once_it_is_read_again_it_has_whole_lines_and_says_what_is_missing(log_format: str, tmp_path: Path) -> None:
    with unread(tmp_path, "--log-format", log_format) as (server, reader):
        fill(server)
        said: list[str] = []
        missing, ends_at = 0, time.monotonic() + DEADLINE_S
        with os.fdopen(os.dup(reader), "rb") as log:
            while len(said) + missing < 30_000:
                assert time.monotonic() < ends_at
                line = log.readline().decode()
                if "a line of a plugin" in line:
                    said.append(line)
                elif "lines of the log: more than 10 a second: what is printed" in line:
                    missing += int(line.partition("dropped ")[2].split()[0])
        assert server.ask(netstring(b"uper.owl")) == b""
        server.process.send_signal(signal.SIGTERM)
        with os.fdopen(os.dup(reader), "rb") as log:
            rest = log.read().decode().splitlines()
        assert server.process.wait(DEADLINE_S) == 0
    assert any("refused" in line for line in rest)
    assert 30 <= len(said) < 1_000
    assert len(said) + missing == 30_000
    if log_format == "json":
        assert {json.loads(line)["namespace"] for line in said} == {"stdout", "stderr"}
