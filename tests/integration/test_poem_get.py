"""``xformd poem get`` as a user runs it: good servers, slow ones and bad ones, and a transform that may fail."""

import contextlib
import os
import pty
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import poems
from support.certificates import write_certificate
from support.poems import peer, poem_server
from support.processes import DEADLINE_S, XFORMD, Server, environment, serving, wait_until, xformd

OWL, CAT = b"THE OWL\n", b"THE CAT\n"


def get(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[bytes]:
    return xformd("poem", "get", *arguments, **extra)


@contextlib.contextmanager
def getting(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in a process of its own, until the block ends."""
    command = [*XFORMD, "poem", "get", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            yield process
        finally:
            process.kill()


def released(poem: bytes, may_send: threading.Event) -> poems.Talk:
    """Make a server that sends its poem when the test says so."""

    def talk(connection: socket.socket) -> None:
        may_send.wait(DEADLINE_S)
        connection.sendall(poem)

    return talk


@pytest.mark.timing
def test_ten_slow_poems_of_2_s_each_come_together_in_less_than_2_5_s() -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(peer(poems.sends_in(b"poem %d\n" % number, 2.0))) for number in range(10)]
        got = get("--ordered", *[server.address for server in slow])
        ended = time.monotonic()
        assert got.stdout == b"".join(b"poem %d\n" % number for number in range(10))
        assert (got.returncode, got.stderr) == (0, b"")
        assert 2.0 <= ended - min(server.connected_at[0] for server in slow) < 2.5


def test_poems_are_printed_as_they_arrive_or_in_the_order_of_the_addresses() -> None:
    with peer(poems.sends_in(OWL, 0.3)) as slow, peer(poems.sends(CAT)) as fast:
        assert get(slow.address, fast.address).stdout == CAT + OWL
        assert get("--ordered", slow.address, fast.address).stdout == OWL + CAT


def test_each_poem_is_printed_as_soon_as_it_is_whole() -> None:
    may_send = threading.Event()
    with peer(poems.sends(OWL)) as fast, peer(released(CAT, may_send)) as slow:
        with getting(slow.address, fast.address) as process:
            assert process.stdout is not None
            assert process.stdout.read(len(OWL)) == OWL
            may_send.set()
            assert process.stdout.read() == CAT
            assert process.wait(DEADLINE_S) == 0


def test_each_poem_goes_through_the_transform(server: Server) -> None:
    with peer(poems.sends(OWL)) as owl, peer(poems.sends(CAT)) as cat:
        via = ("--via", server.address)
        got = get("--transform", "cummingsify+number-lines", *via, "--ordered", owl.address, cat.address)
        assert (got.returncode, got.stdout, got.stderr) == (0, b"1. the owl\n1. the cat\n", b"")
        assert get("--transform", "upper", owl.address, XFORMD_SERVER=server.address).stdout == OWL


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
    few = ("bash", "-c", 'ulimit -Sn 50; exec "$@"', "bash", *XFORMD)
    with peer(poems.sends(OWL)) as owl:
        command = [*few, "poem", "get", *[owl.address] * 100]
        got = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, env=environment(), check=False)
    assert (got.returncode, got.stdout, got.stderr) == (0, 100 * OWL, b"")


def test_when_the_transform_server_stops_half_way_every_poem_is_printed(tmp_path: Path) -> None:
    may_send = threading.Event()
    with (
        serving(tmp_path, "--plugins=none", "--workers", "0") as transforms,
        peer(poems.sends(OWL)) as first,
        peer(released(CAT, may_send)) as second,
        peer(released(b"THE PIG\n", may_send)) as third,
    ):
        options = ("--transform", "cummingsify", "--via", transforms.address, "--ordered")
        with getting(*options, first.address, second.address, third.address) as process:
            assert process.stdout is not None
            assert process.stdout.read(len(OWL)) == b"the owl\n"
            transforms.stop()
            may_send.set()
            rest, said = process.communicate(timeout=DEADLINE_S)
        assert rest == CAT + b"THE PIG\n"
        assert [line.partition(":")[0] for line in said.decode().splitlines()] == ["cummingsify failed"] * 2
        assert said.count(b"; original poem follows\n") == 2
        assert process.returncode == 1


def test_bad_servers_are_named_with_their_reasons() -> None:
    bad = [poems.drips, poems.never_answers, poems.floods, poems.resets_half_way, poems.closes]
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(talk)) for talk in bad]
        good = stack.enter_context(peer(poems.sends(OWL)))
        where = [running.address for running in peers]
        start = time.monotonic()
        got = get("--timeout", "1", "--max-bytes", "1MiB", *where, "127.0.0.1:1", "no:such:endpoint", good.address)
        assert time.monotonic() - start < 4
    assert (got.returncode, got.stdout) == (1, OWL)
    said = got.stderr.decode()
    assert said.count("\n") == 7
    for line in (
        f"xformd: timeout: no whole poem from {where[0]} within 1 s\n",
        f"xformd: timeout: no whole poem from {where[1]} within 1 s\n",
        f"xformd: too-large: {where[2]} sends more than 1048576 bytes\n",
        f"xformd: connection-lost: {where[3]} is gone (Connection to the other side was lost in a non-clean fashion.) "
        "after 16 bytes: no whole poem\n",
        f"xformd: connection-lost: {where[4]} closed without sending anything: no poem\n",
        "xformd: connection-failed: cannot connect to 127.0.0.1:1: Connection refused; "
        "is a poem server running there?\n",
        "xformd: bad-config: server address 'no:such:endpoint': ",
    ):
        assert line in said


def test_a_server_that_is_killed_half_way_gives_no_short_poem(tmp_path: Path) -> None:
    owl = tmp_path / "owl.txt"
    owl.write_bytes(OWL * 100)
    with poem_server(tmp_path, "serve", str(owl), "--slow", "200") as server:
        with getting(server.address) as process:
            wait_until(lambda: poems.connections(server) > 0)
            server.process.kill()
            printed, said = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, printed) == (69, b"")
    assert said.startswith(b"xformd: connection-")


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


def test_a_slow_reader_costs_no_other_poem() -> None:
    large = OWL * 50_000
    with peer(poems.sends(large)) as owl, peer(poems.sends(large)) as cat, peer(poems.sends_in(CAT, 0.3)) as slow:
        with getting("--timeout", "1", owl.address, cat.address, slow.address) as process:
            wait_until(lambda: bool(slow.connected_at))
            start = time.monotonic()
            wait_until(lambda: time.monotonic() - start > 1.5)
            printed, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert len(printed) == 2 * len(large) + len(CAT)


def test_a_reader_that_leaves_ends_the_command_silently() -> None:
    with peer(poems.sends(OWL * 50_000)) as owl, peer(poems.never_answers) as never:
        with getting(owl.address, never.address) as process:
            assert process.stdout is not None
            process.stdout.read(4)
            process.stdout.close()
            assert process.wait(DEADLINE_S) == 1
            assert process.stderr is not None
            assert process.stderr.read() == b""


def on_a_terminal(*arguments: str) -> str:
    """Run the command with its standard error on a terminal, and return what that shows."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        [*XFORMD, "poem", "get", *arguments], stdout=subprocess.DEVNULL, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how Linux says that the other side has closed
            while data := os.read(ours, 65_536):
                shown += data
        assert process.wait(DEADLINE_S) == 0
    os.close(ours)
    return shown.decode()


def test_a_terminal_shows_a_line_for_each_server() -> None:
    with peer(poems.sends_in(OWL, 0.5)) as owl, peer(poems.sends_in(CAT, 0.3)) as cat:
        shown = on_a_terminal(owl.address, cat.address)
        for server in (owl, cat):
            assert f"{server.address}  8 bytes, whole\r\n" in shown
        assert re.search(rf"{owl.address}  [1-7] bytes\r\n", shown)
        last = shown.rpartition("\x1b[J")[2].splitlines()
        assert [line.partition("  ")[0] for line in last] == [owl.address, cat.address]
        assert get(owl.address, cat.address).stderr == b""


def test_poems_come_without_a_standard_error_too() -> None:
    with peer(poems.sends(OWL)) as owl:
        words = ["sh", "-c", 'exec "$0" "$@" 2>&-', *XFORMD, "poem", "get", owl.address]
        got = subprocess.run(words, stdout=subprocess.PIPE, env=environment(), timeout=DEADLINE_S, check=False)
        assert (got.returncode, got.stdout) == (0, OWL)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "Missing argument"),
        (("--via", "127.0.0.1:1", "127.0.0.1:2"), 2, "--via needs --transform"),
        (("--transform", "No Transform", "127.0.0.1:2"), 64, "bad-request: "),
        (("--transform", "upper", "--via", "a:b:c", "127.0.0.1:2"), 78, "bad-config: server address 'a:b:c'"),
        (("--timeout", "soon", "127.0.0.1:2"), 2, "invalid duration 'soon': try 0.5, 30 or 5min"),
        (("--output-dir", "x", "127.0.0.1:2", "127.0.0.1:2"), 78, "would both become 127.0.0.1_2"),
    ],
)
def test_impossible_arguments_are_an_error_at_once(arguments: tuple[str, ...], status: int, says: str) -> None:
    refused = get(*arguments)
    assert refused.returncode == status
    assert says in refused.stderr.decode()


def test_over_tls_a_truncated_stream_is_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("OpenSSL", reason="pip install 'xformd[tls]'")
    trusted, owl = tmp_path / "trusted", tmp_path / "owl.txt"
    trusted.mkdir()
    key, certificate = tmp_path / "key.pem", trusted / "certificate.pem"
    write_certificate(key, certificate)
    place = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    for poem, slow in ((OWL * 50_000, ()), (OWL * 100, ("--slow", "200"))):
        owl.write_bytes(poem)
        with poem_server(tmp_path, "serve", str(owl), *slow, "--listen", place) as server:
            port = poems.addresses_of(server)[0].rpartition(":")[2]
            address = f"tls:localhost:{port}:trustRoots={trusted}:endpoint=tcp\\:127.0.0.1\\:{port}"
            if not slow:
                got = get(address)
                assert (got.returncode, got.stdout == poem, got.stderr) == (0, True, b"")
                continue
            with getting(address) as process:
                wait_until(lambda: poems.connections(server) > 0)
                server.process.kill()
                printed, said = process.communicate(timeout=DEADLINE_S)
            assert (process.returncode, printed) == (69, b"")
            assert said.startswith(b"xformd: connection-")
