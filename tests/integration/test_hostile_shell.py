"""Commands in odd places: closed streams, full disks, impatient people, and plugins that leave something behind."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
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
    "command",
    [
        *("run upper", "send upper", "list-transforms", "list-transforms --json", "check", "ping", "config"),
        *("--help", "--version", "run --help"),
    ],
)
def test_an_output_that_is_full_or_closed_is_one_line(
    server: Server, command: str, output: str, status: int, says: bytes
) -> None:
    done = shell(f"xformd {command} >{output}", XFORMD_SERVER=server.address)
    (line,) = [line for line in done.stderr.splitlines() if b"printed by" not in line]
    assert done.returncode == status
    assert says in line


CHATTY = """
import sys, threading, time
import xformd

def print_everywhere():
    for stream in (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__):
        if stream is not None:
            print("noise", file=stream)

def go_on():
    while True:
        print("noise", file=sys.__stdout__, flush=True)
        time.sleep(0.0001)

print_everywhere()

@xformd.transform(examples=[("a", "A")])
def chatty(poem: str) -> str:
    print_everywhere()
    if "thread" in poem:
        threading.Thread(target=go_on, daemon=True).start()
    return poem.upper()

@xformd.hookimpl
def xformd_transforms():
    return [chatty]
"""
CHATS = "--plugins=none --plugins-dir"


@pytest.mark.parametrize("errors", ["", "2>/dev/full", "2>&-", "2>/dev/null <&-"])
@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("run chatty poem {}", 0, b"THE OWL\n"),
        ("run chatty threads {}", 0, b"THREAD\n"),
        ("check chatty.py {}", 0, b"ok      chatty: 1 example\n"),
        ("run nope poem {}", 66, b""),
        ("run chatty missing {}", 66, b""),
        ("run chatty poem --output-dir poem/below {}", 73, b""),
        ("run", 2, b""),
        ("nope", 2, b""),
        ("ping --server unix:nowhere", 69, b""),
        ("poem get 127.0.0.1:1", 69, b""),
        ("config --config missing", 78, b""),
    ],
)
def test_a_closed_or_full_standard_error_changes_no_status_and_no_output(
    tmp_path: Path, command: str, errors: str, status: int, output: bytes
) -> None:
    (tmp_path / "chatty.py").write_text(CHATTY)
    (tmp_path / "poem").write_text("The Owl\n")
    (tmp_path / "threads").write_text("thread\n")
    line = f"cd {tmp_path}; xformd {command.format(f'{CHATS} .')} {errors}"
    done = shell(line, PYTHONUNBUFFERED="")  # so that what plugins print stays in a buffer
    assert (done.returncode, done.stdout) == (status, output)
    assert b"Traceback" not in done.stderr


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise what a plugin prints would go into it."""
    (tmp_path / "chatty.py").write_text(CHATTY)
    (tmp_path / "poem").write_text("The Owl\n")
    done = shell(f"cd {tmp_path}; xformd run chatty poem --output-dir out {CHATS} . <&- 2>&-")
    assert (done.returncode, done.stdout, (tmp_path / "out" / "poem").read_bytes()) == (0, b"", b"THE OWL\n")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "xformd-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system: run the tests as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("where", ["--output-dir {}/new", "--in-place", "> {}/result"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(small_disk: Path, where: str) -> None:
    poem = small_disk / "poem"
    poem.write_bytes(b"x" * 40_000)
    done = shell(f"xformd run upper {poem} {where.format(small_disk)}")
    assert done.returncode == 73
    (line,) = done.stderr.splitlines()
    assert line.startswith(b"xformd: cannot write the result to ")
    assert line.endswith(b": No space left on device")
    assert poem.read_bytes() == b"x" * 40_000
    assert {path.name for path in small_disk.rglob("*")} <= {"poem", "new", "result"}


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
    command = f"exec {' '.join(XFORMD)} serve --listen unix:{path} --http none >/dev/full"
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
