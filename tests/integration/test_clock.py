"""Somebody sets the clock of the machine back by an hour while a deadline runs: it holds."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.poems import ANYWHERE
from support.processes import DEADLINE_S, environment, netstring, read_to_end, serving

pytestmark = pytest.mark.slow

# Twisted's reactors take their time from this function.
SET_BACK = "import os, sys, time; now = time.time; time.time = lambda: now() - 3_600 * os.path.exists({file!r}); {run}"
TWISTD = "from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
XFORMD = "from xformd.cli import main; main()"


def python(file: Path, run: str) -> tuple[str, ...]:
    """Return the command for a program whose clock is set back once a file exists."""
    return sys.executable, "-c", SET_BACK.format(file=str(file), run=run)


@pytest.mark.parametrize("verb", ["xformd", "xformd-proxy"])
def test_an_idle_session_is_closed_in_time_under_twistd(verb: str, tmp_path: Path) -> None:
    (tmp_path / "xformd.toml").write_text(
        f"listen = '{ANYWHERE}'\nworkers = 0\nplugins = 'none'\nidle_timeout_s = 0.5\n"
    )
    command = (*python(tmp_path / "set back", TWISTD), "--nodaemon", "--pidfile=")
    arguments = ["--config", str(tmp_path / "xformd.toml")]
    if verb == "xformd-proxy":
        arguments += ["--listen", ANYWHERE, "127.0.0.1:1"]
    started = serving(tmp_path, *arguments, command=command, verb=(verb,), ready="listening on", where=())
    with started as server:
        server.address = server.greeting[-1].rpartition(" ")[2]
        with server.connect() as client, server.connect() as other:
            for each in (client, other):  # once the other is answered, the first one's deadline has been set
                each.sendall(netstring(b"xformd/2"))
                assert b"xformd/2" in each.recv(10_000)
            (tmp_path / "set back").touch()
            assert b"idle" in read_to_end(client)


@pytest.mark.parametrize("words", ["ping --timeout 0.5 --server", "poem get --timeout 0.5"])
def test_a_command_ends_in_time(words: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(DEADLINE_S)
        command = [*python(tmp_path / "set back", XFORMD), *words.split(), f"127.0.0.1:{mute.getsockname()[1]}"]
        with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as process, mute.accept()[0]:
            (tmp_path / "set back").touch()
            try:
                _, said = process.communicate(timeout=DEADLINE_S)
            finally:
                process.kill()
    assert process.returncode > 0
    assert b"0.5 s" in said
