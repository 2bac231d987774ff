"""Commands in odd places: closed streams, full disks, impatient people, and plugins that leave something behind."""

import json
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from support.poems import only_listens, peer
from support.processes import DEADLINE_S, XFORMD, Server, environment, netstring, serving, wait_until, xformd

pytestmark = pytest.mark.slow


def shell(command: str, **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's command line in which ``xformd`` is the command."""
    line = f'xformd() {{ {" ".join(XFORMD)} "$@"; }}; {command}'
    command_line = ["bash", "-c", line]
    variables = environment(extra)
    return subprocess.run(
        command_line, input=b"The Owl\n", capture_output=True, timeout=DEADLINE_S, env=variables, check=False
    )


@pytest.mark.parametrize(
    ("output", "status", "says"),
    [
        ("/dev/full", 73, b"No space left on device"),
        ("&-", 78, b"xformd: bad-config: standard output is closed: redirect it to a file, or to /dev/null"),
    ],
)
@pytest.mark.parametrize(
    "command", ["run upper", "send upper", "list-transforms", "list-transforms --json", "check", "ping", "config"]
)
def test_an_output_that_is_full_or_closed_is_one_line(
    server: Server, command: str, output: str, status: int, says: bytes
) -> None:
    done = shell(f"xformd {command} >{output}", XFORMD_SERVER=server.address)
    (line,) = [line for line in done.stderr.splitlines() if b"printed by" not in line]
    assert done.returncode == status
    assert says in line


@pytest.mark.parametrize("command", ["run", "send"])
def test_a_standard_input_that_is_closed_is_one_line(server: Server, command: str) -> None:
    done = shell(f"xformd {command} upper <&-", XFORMD_SERVER=server.address)
    assert (done.returncode, done.stderr) == (66, b"xformd: /dev/stdin: standard input is closed\n")


def test_ctrl_c_ends_a_command_that_waits_for_its_poem(server: Server, tmp_path: Path) -> None:
    (tmp_path / "poem").write_bytes(b"first")
    arguments = [*XFORMD, "send", "upper", str(tmp_path / "poem"), "-", "--jobs", "1", "--server", server.address]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"FIRST"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == -signal.SIGINT


def test_ctrl_c_never_delivers_the_original_as_if_it_were_a_result(tmp_path: Path) -> None:
    (tmp_path / "poem").write_bytes(b"poem")
    asked = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        asked.set()
        only_listens(connection)

    with peer(talk) as other:
        arguments = [*XFORMD, "send", "upper", str(tmp_path / "poem"), "--fallback", "--server", other.address]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
            assert asked.wait(DEADLINE_S)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=DEADLINE_S)[0] == b""
            assert process.returncode == -signal.SIGINT


def test_a_server_whose_greeting_nobody_reads_serves(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = f"exec {' '.join(XFORMD)} serve --listen unix:{path} >/dev/full"
    with subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, env=environment()) as process:
        try:
            wait_until(path.exists)
            assert xformd("send", "upper", "--server", f"unix:{path}", stdin=b"a").stdout == b"A"
        finally:
            process.terminate()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert b"cannot print where it listens" in log
    assert b"Traceback" not in log


CLOSES = """
import sys, xformd
sys.stdout.close()
@xformd.transform
def whisper(poem: str) -> str:
    sys.stdout.close()
    return poem.lower()
@xformd.hookimpl
def xformd_transforms():
    return [whisper]
"""


def test_a_plugin_that_closes_its_standard_output_closes_nobody_elses(tmp_path: Path) -> None:
    (tmp_path / "closes.py").write_text(CLOSES)
    with serving(tmp_path, "--plugins-dir", str(tmp_path)) as server:
        assert server.ask(netstring(b"whisper.A")) == b"1:a,"
        assert server.ask(netstring(b"nope.A")) == b""
        wait_until(lambda: "no-such-transform" in server.log)
    ran = xformd("run", "whisper", "--plugins-dir", str(tmp_path), stdin=b"A")
    assert (ran.returncode, ran.stdout) == (0, b"a")


# What a plugin leaves behind in the process.

LINGERING = {
    "thread": "threading.Thread(target=time.sleep, args=(60,)).start()",
    "exit-handler": "atexit.register(time.sleep, 60)",
}
LEFT_BEHIND = """
import atexit, threading, time
import xformd

{left}

@xformd.transform(inline=True, examples=[("a", "a")])
def same(poem: str) -> str:
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [same]
"""


@pytest.mark.parametrize("left", LINGERING.values(), ids=LINGERING)
def test_what_a_plugin_leaves_behind_keeps_no_command_and_no_server_from_ending(tmp_path: Path, left: str) -> None:
    (tmp_path / "lingering.py").write_text(LEFT_BEHIND.format(left=left))
    loose = ("--plugins=none", "--plugins-dir", str(tmp_path))
    listed = xformd("list-transforms", "--json", *loose)
    assert (listed.returncode, listed.stdout[-1:]) == (0, b"\n")
    assert json.loads(listed.stdout)
    assert xformd("check", *loose, "lingering.py").returncode == 0
    assert xformd("run", *loose, "same", stdin=b"The Owl").stdout == b"The Owl"
    assert xformd("run", *loose, "nope", stdin=b"The Owl").returncode == 66
    with serving(tmp_path, *loose) as server:
        assert server.ask(b"6:same.a,") == b"1:a,"
        assert server.stop() == 0
