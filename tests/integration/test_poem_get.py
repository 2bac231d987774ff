"""``xformd poem get`` as a user runs it: good servers, slow ones and bad ones, and a transform that may fail."""

import contextlib
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost

from support import poems
from support.certificates import write_certificate
from support.poems import peer, poem_server
from support.processes import DEADLINE_S, XFORMD, Server, environment, wait_until, xformd
from support.timing import assert_within

OWL, CAT = b"THE OWL\n", b"THE CAT\n"


def get(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[bytes]:
    return xformd("poem", "get", *arguments, **extra)


def through_shell(script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command from a shell script."""
    command = ["bash", "-c", script, *XFORMD, "poem", "get", *arguments]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)


@contextlib.contextmanager
def getting(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in a process of its own, until the block ends."""
    command = [*XFORMD, "poem", "get", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.timing
def test_ten_slow_poems_of_2_s_each_come_together_in_less_than_2_5_s() -> None:
    def measure() -> float:
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(peer(poems.sends_in(b"poem %d\n" % number, 2.0))) for number in range(10)]
            got = get("--ordered", *[server.address for server in slow])
            ended = time.monotonic()
            assert got.stdout == b"".join(b"poem %d\n" % number for number in range(10))
            assert (got.returncode, got.stderr) == (0, b"")
            late_s = ended - min(server.connected_at[0] for server in slow) - 2.0
            assert late_s >= 0
            return late_s

    assert_within(0.5, measure)


def test_each_poem_is_printed_as_soon_as_it_is_whole() -> None:
    may_send = threading.Event()
    with peer(poems.sends(OWL)) as fast, peer(poems.sends_after(may_send, CAT)) as slow:
        with getting(slow.address, fast.address) as process:
            assert process.stdout is not None
            assert process.stdout.read(len(OWL)) == OWL
            may_send.set()
            assert process.communicate(timeout=DEADLINE_S) == (CAT, b"")
            assert process.returncode == 0


def test_each_poem_goes_through_the_transform_in_order(server: Server) -> None:
    with peer(poems.sends_in(OWL, 0.3)) as owl, peer(poems.sends(CAT)) as cat:
        via = ("--via", server.address)
        got = get("--transform", "cummingsify+number-lines", *via, "--ordered", owl.address, cat.address)
        assert (got.returncode, got.stdout, got.stderr) == (0, b"1. the owl\n1. the cat\n", b"")
        assert get("--transform", "upper", cat.address, XFORMD_SERVER=server.address).stdout == CAT


@pytest.mark.parametrize(
    ("is_mute", "reason"),
    [
        (False, "connection-failed: cannot connect to {}: Connection refused; is 'xformd serve' running there?"),
        (True, "timeout: no answer from {} within 0.5 s"),
    ],
)
def test_where_the_transform_fails_the_original_follows(is_mute: bool, reason: str) -> None:
    with peer(poems.sends(OWL)) as owl, peer(poems.only_listens) as mute:
        via = mute.address if is_mute else "127.0.0.1:1"
        got = get("--transform", "cummingsify", "--via", via, "--timeout", "0.5", owl.address)
    assert (got.returncode, got.stdout) == (1, OWL)
    assert got.stderr.decode() == f"cummingsify failed: {reason.format(via)}; original poem follows\n"


def test_the_limit_on_descriptors_is_raised_for_many_servers() -> None:
    with peer(poems.sends(OWL)) as owl:
        got = through_shell('ulimit -Sn 50; exec "$0" "$@"', *[owl.address] * 100)
    assert (got.returncode, got.stdout, got.stderr) == (0, 100 * OWL, b"")


def test_bad_servers_are_named_with_their_reasons() -> None:
    bad = {
        poems.drips: "timeout: no whole poem from {} within 1 s\n",
        poems.never_answers: "timeout: no whole poem from {} within 1 s\n",
        poems.floods: "too-large: {} sends more than 1048576 bytes\n",
        poems.resets_half_way: f"connection-lost: {{}} is gone ({ConnectionLost()}) after 16 bytes: no whole poem\n",
        poems.closes: "connection-lost: {} closed without sending anything: no poem\n",
    }
    with contextlib.ExitStack() as stack:
        lines = {stack.enter_context(peer(talk)).address: line for talk, line in bad.items()}
        lines["127.0.0.1:1"] = "connection-failed: cannot connect to {}: Connection refused; is a poem server running"
        lines["no:such:endpoint"] = "bad-config: server address '{}': "
        good = stack.enter_context(peer(poems.sends(OWL)))
        got = get("--timeout", "1", "--max-bytes", "1MiB", *lines, good.address)
    assert (got.returncode, got.stdout) == (1, OWL)
    said = got.stderr.decode()
    assert said.count("\n") == 7
    assert [line for address, line in lines.items() if f"xformd: {line.format(address)}" not in said] == []


def test_each_poem_has_its_own_file(tmp_path: Path) -> None:
    with peer(poems.sends(OWL)) as owl, peer(poems.resets_half_way) as bad:
        for _ in range(2):  # once into a folder that is not there, once over what is there
            got = get("--output-dir", str(tmp_path / "poems"), owl.address, bad.address)
            assert (got.returncode, got.stdout) == (1, b"")
            files = {path.name: path.read_bytes() for path in (tmp_path / "poems").iterdir()}
            assert files == {owl.address.replace(":", "_"): OWL}
        got = get("--output-dir", "/proc/no", owl.address)
    assert got.returncode == 73
    assert got.stderr.decode() == f"xformd: cannot write the poem of {owl.address}: No such file or directory\n"


@pytest.mark.slow
def test_a_slow_reader_costs_no_other_poem() -> None:
    large = OWL * 50_000
    with peer(poems.sends(large)) as owl, peer(poems.sends(large)) as cat, peer(poems.sends_in(CAT, 0.3)) as slow:
        with getting("--timeout", "1", owl.address, cat.address, slow.address) as process:
            wait_until(lambda: bool(slow.connected_at))
            wait_until(lambda: time.monotonic() - slow.connected_at[0] > 1.5)
            printed, _ = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, len(printed)) == (0, 2 * len(large) + len(CAT))


def test_a_reader_that_leaves_ends_the_command_silently() -> None:
    with peer(poems.sends(OWL * 50_000)) as owl, peer(poems.never_answers) as never:
        with getting(owl.address, never.address) as process:
            assert process.stdout is not None
            process.stdout.read(4)
            process.stdout.close()
            assert process.wait(DEADLINE_S) == 1
            assert process.stderr is not None
            assert process.stderr.read() == b""


@pytest.mark.slow
def test_a_terminal_shows_a_line_for_each_server() -> None:
    ours, theirs = pty.openpty()
    shown = b""
    with peer(poems.sends_in(OWL, 0.5)) as owl, peer(poems.sends_in(CAT, 0.3)) as cat:
        words = [*XFORMD, "poem", "get", owl.address, cat.address]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs, env=environment()) as process:
            os.close(theirs)
            with contextlib.suppress(OSError):  # how Linux says that the other side has closed
                while data := os.read(ours, 65_536):
                    shown += data
            assert process.wait(DEADLINE_S) == 0
        os.close(ours)
        for server in (owl, cat):
            assert f"{server.address}  8 bytes, whole\r\n" in shown.decode()
        assert re.search(rf"{owl.address}  [1-7] bytes\r\n", shown.decode())
        last = shown.decode().rpartition("\x1b[J")[2].splitlines()
        assert [line.partition("  ")[0] for line in last] == [owl.address, cat.address]


@pytest.mark.slow
def test_poems_come_without_a_standard_error_too() -> None:
    with peer(poems.sends(OWL)) as owl:
        got = through_shell('exec "$0" "$@" 2>&-', owl.address)
    assert (got.returncode, got.stdout) == (0, OWL)


@pytest.mark.slow
def test_over_tls_a_truncated_stream_is_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
    trusted, owl, key = tmp_path / "trusted", tmp_path / "owl.txt", tmp_path / "key.pem"
    trusted.mkdir()
    owl.write_bytes(OWL * 100)
    certificate = trusted / "certificate.pem"
    write_certificate(key, certificate)
    place = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    with poem_server(tmp_path, "serve", str(owl), "--slow", "1KiB", "--listen", place) as server:
        port = poems.addresses_of(server)[0].rpartition(":")[2]
        address = f"tls:localhost:{port}:trustRoots={trusted}:endpoint=tcp\\:127.0.0.1\\:{port}"
        whole = get(address)
        assert (whole.returncode, whole.stdout, whole.stderr) == (0, OWL * 100, b"")
        with getting(address) as process:
            wait_until(lambda: poems.connections(server) > 0)
            server.process.kill()
            printed, said = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, printed) == (69, b"")
    assert said.startswith(b"xformd: connection-")
