"""Commands in the odd places that shells put them: closed streams, full disks, impatient people."""

import signal
import socket
import subprocess
from pathlib import Path

import pytest

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
    assert (done.returncode, done.stderr) == (66, b"xformd: -: standard input is closed\n")


def test_ctrl_c_ends_a_command_that_waits_for_its_poem(server: Server, tmp_path: Path) -> None:
    (tmp_path / "poem").write_bytes(b"first")
    arguments = [*XFORMD, "send", "upper", str(tmp_path / "poem"), "-", "--jobs", "1", "--server", server.address]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"FIRST"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == -signal.SIGINT


def test_ctrl_c_never_delivers_the_original_as_if_it_were_a_result() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(DEADLINE_S)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        arguments = [*XFORMD, "send", "upper", "--fallback", "--server", address]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"poem")
            process.stdin.close()
            connection, _ = listening.accept()
            with connection:
                connection.recv(100)
                process.send_signal(signal.SIGINT)
                assert process.wait(DEADLINE_S) == -signal.SIGINT
                assert process.stdout.read() == b""


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
