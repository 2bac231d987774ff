"""What commands print, where, and with which exit status."""

import json
import os
import pty
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
import twisted.internet
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from support.deferreds import error_of
from support.poems import only_listens, peer
from support.processes import DEADLINE_S, VERSES, XFORMD, Server, environment, netstring, serving, xformd
from xformd.cli import main
from xformd.client import TransformProxy
from xformd.client.errors import ConnectionFailed
from xformd.commands import transforms
from xformd.commands.poem import poem as poem_commands

LOOSE = ("--plugins=none", "--plugins-dir", str(VERSES))


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    """A file with a poem that has every byte of interest."""
    path = tmp_path / "poem.txt"
    path.write_bytes(b"The Owl\r\nand the Pussy-cat.\nNo end")
    return path


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return xformd("run", *LOOSE, *arguments, stdin=stdin)


@pytest.mark.parametrize("arguments", [["--version"], ["poem", "get", "--help"], ["serve", "--help"]])
def test_help_and_version_load_neither_plugins_nor_twisted(arguments: list[str]) -> None:
    command = [XFORMD[0], "-X", "importtime", *XFORMD[1:], *arguments]
    shown = subprocess.run(command, capture_output=True, env=environment(), check=True)
    imported = {line.rpartition(b"|")[2].strip() for line in shown.stderr.splitlines()}
    assert b"xformd.cli" in imported
    assert not {module for module in imported if module.startswith((b"twisted", b"xformd.plugins.builtin"))}


def test_each_command_has_help_with_examples() -> None:
    own = {*main.commands, *(f"poem {name}" for name in poem_commands.commands)} - {"poem"}
    for command in own:
        assert b"Examples:\n    xformd " in xformd(*command.split(), "--help").stdout


# send and run: one poem


def test_a_file_and_standard_input_go_to_standard_output_byte_for_byte(server: Server, poem: Path) -> None:
    expected = poem.read_bytes().lower()
    for sent in (
        xformd("send", "cummingsify", str(poem), "--server", server.address),
        xformd("send", "cummingsify", "--server", server.address, stdin=poem.read_bytes()),
        xformd("send", "cummingsify", "-", stdin=poem.read_bytes(), XFORMD_SERVER=server.address),
        xformd("run", "cummingsify", str(poem), "--plugins=none"),
        xformd("run", "cummingsify", "--plugins=none", stdin=poem.read_bytes()),
    ):
        assert (sent.returncode, sent.stdout, sent.stderr) == (0, expected, b"")


def test_options_stand_in_the_spec_or_beside_it(server: Server) -> None:
    for arguments in (["wrap:width=5,indent=2"], ["wrap", "-o", "width=5", "--option", "indent=2"]):
        sent = xformd("send", *arguments, "--server", server.address, stdin=b"a bcd ef")
        assert sent.stdout == b"a bcd\n  ef"
    assert run("indent:prefix=> +upper", stdin=b"a\n").stdout == b"> A\n"


def test_an_option_that_takes_no_list_is_given_once(server: Server) -> None:
    twice = ("replace", "-o", "pattern=a", "-o", "replacement=b", "-o", "replacement=c")
    for done in (xformd("send", *twice, "--server", server.address, stdin=b"a"), run(*twice, stdin=b"a")):
        said = b"xformd: bad-options: the option 'replacement' is given twice, and takes no list\n"
        assert (done.returncode, done.stdout, done.stderr.endswith(said)) == (64, b"", True)


def test_binary_passes_a_bytes_transform(server: Server) -> None:
    binary = bytes(range(256))
    assert xformd("send", "backwards", "--server", server.address, stdin=binary).stdout == binary[::-1]
    assert run("backwards", stdin=binary).stdout == binary[::-1]


def test_a_transform_that_has_to_wait_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    waited = xformd("run", *LOOSE, "gate+cummingsify", stdin=b"Poem", GATE=str(tmp_path))
    assert (waited.returncode, waited.stdout) == (0, b"poem")


def test_what_a_plugin_prints_never_gets_into_a_result() -> None:
    printed = run("prints", stdin=b"poem")
    assert printed.stdout == b"poem"
    assert b"printed by a transform" in printed.stderr
    listed = xformd("list-transforms", "--json", *LOOSE)
    json.loads(listed.stdout)


# What goes wrong

FAILURES = [
    (("upper+",), 64, "bad-request: spec, character 7: '' is not a valid transform name"),
    (("wrap:width=wide",), 64, "bad-options: wrap: option 'width' takes a whole number from 1 to 10000, not 'wide'"),
    (("cumingsify",), 66, "no-such-transform: no transform 'cumingsify' here; did you mean 'cummingsify'?"),
    (("picky",), 65, "gibberish: this is no sonnet"),
    (("repeat:times=9999999",), 65, "too-large: the result of repeat has 39999996 bytes; the limit is 10485760 bytes"),
    (("raises",), 70, "transform-failed: raises raised ValueError: a verse too many ("),
    (("exits",), 70, "transform-failed: exits raised SystemExit: 3 ("),
    (("wrong-type",), 70, "transform-failed: wrong-type returned int where it must return str"),
    (("never",), 75, "timeout: never took longer than its 0.2 s"),
]


@pytest.mark.parametrize("command", [pytest.param("run", marks=pytest.mark.slow), "send"])
@pytest.mark.parametrize(("arguments", "status", "says"), FAILURES)
def test_what_is_wrong_is_one_line_with_the_status_of_the_table(
    server: Server, command: str, arguments: tuple[str, ...], status: int, says: str
) -> None:
    if command == "run":
        failed = run(*arguments, stdin=b"poem")
    else:
        failed = xformd("send", *arguments, "--server", server.address, stdin=b"poem")
        says = says.partition(" raised ValueError:")[0].partition(" raised SystemExit:")[0]  # a client hears no more
    lines = [line for line in failed.stderr.decode().splitlines() if line.startswith("xformd: ")]
    (line,) = [line for line in lines if not line.startswith("xformd: still ")]  # so a busy machine loads plugins
    assert (failed.returncode, failed.stdout) == (status, b"")
    assert line.startswith(f"xformd: {says}")


def test_run_shows_the_traceback_of_a_transform_only_when_asked() -> None:
    raised = run("raises").stderr
    assert b"verses.py, line " in raised
    assert b"Traceback" not in raised
    traced = xformd("run", *LOOSE, "raises", "--traceback").stderr
    assert b"Traceback" in traced
    assert b"ValueError: a verse too many" in traced


def test_a_poem_over_the_limit_is_refused_and_not_a_broken_connection(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * 11_000_000)
    refused = xformd("send", "upper", str(big), "--server", server.address)
    assert refused.returncode == 65
    assert f"the limit of {server.address} is 10485760 bytes" in refused.stderr.decode()


@pytest.mark.parametrize("address", ["", "host:port", "host:0", "host:70000", "nonsense:x=1", "tls:"])
def test_an_address_that_makes_no_sense_is_one_line(address: str) -> None:
    failed = xformd("send", "upper", "--server", address, stdin=b"poem")
    assert failed.returncode == 78
    assert failed.stderr.startswith(b"xformd: bad-config: server address ")
    assert failed.stderr.count(b"\n") == 1


def test_no_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        silent = xformd("send", "upper", "--server", address, "--timeout", "300ms", stdin=b"poem")
    refused = xformd("send", "upper", "--server", address, stdin=b"poem")
    failure = f"xformd: timeout: no answer from {address} within 0.3 s\n"
    assert (silent.returncode, silent.stderr.decode()) == (75, failure)
    failure = f"cannot connect to {address}: Connection refused; is 'xformd serve' running there?"
    assert (refused.returncode, refused.stderr.decode()) == (69, f"xformd: connection-failed: {failure}\n")


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", 76, "bad-frame: {} sent an unreadable answer"),
        (b"99999999:", 65, "too-large: {} sent an unreadable answer"),
        (b"9:half", 69, "connection-lost: the connection to {} is lost"),
    ],
)
def test_a_server_that_speaks_something_else_is_one_line(answer: bytes, status: int, says: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)

    with peer(talk) as other:
        failed = xformd("send", "upper", "--server", other.address, stdin=b"poem")
    assert failed.returncode == status
    assert failed.stderr.decode().startswith(f"xformd: {says.format(other.address)}")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("run", "indent", "-o", "prefix=\udcff"), 64, "the value of option 'prefix' cannot be encoded as UTF-8"),
        (("send", "upper", "--timeout", "nan"), 2, "invalid duration 'nan': try 0.5, 30 or 5min"),
        (("send", "upper", "--timeout", "-1"), 2, "invalid duration '-1': try 0.5, 30 or 5min"),
        (("send", "upper", "-o", "timeout=3"), 64, "upper has no option 'timeout'"),
        (("serve", "--listen", "stdio:"), 78, "standard input is a single connection"),
        (("serve", "--plugins="), 78, "--plugins: expected at least 1 distribution, or 'none'"),
        (("run", "upper", "no\nsuch\x1b[31m"), 66, "no such\ufffd[31m: No such file or directory"),
        (("send", "upper", "--server", "unix:/" + "a" * 120), 78, "a Unix socket's path has at most 107 bytes"),
        (("check", "xformd", "--block", "xformd"), 78, "nothing to check"),
        (("serve", "--listen", "tcp:99999"), 69, "cannot listen on tcp:99999"),
    ],
)
def test_odd_arguments_are_one_line(server: Server, arguments: tuple[str, ...], status: int, says: str) -> None:
    done = xformd(*arguments, XFORMD_SERVER=server.address)
    assert done.returncode == status
    assert says in done.stderr.decode()


def test_fallback_gives_the_original_and_says_so(server: Server, poem: Path) -> None:
    fallen = xformd("send", "raises", str(poem), "--server", server.address, "--fallback")
    assert (fallen.returncode, fallen.stdout) == (0, poem.read_bytes())
    assert fallen.stderr == b"xformd: transform-failed: raises raised ValueError; original poem follows\n"


# Many poems


@pytest.fixture
def poems(tmp_path: Path) -> list[str]:
    """Two poems, something that is none, and a third."""
    files = [tmp_path / name for name in ("one", "two", "missing", "three")]
    files[0].write_bytes(b"One\n")
    files[1].write_bytes(b"\xff\n")
    files[3].write_bytes(b"Three\n")
    return [str(path) for path in files]


@pytest.mark.parametrize("command", ["send", "run"])
def test_many_poems_go_in_order_and_one_that_fails_stops_no_other(
    server: Server, poems: list[str], command: str
) -> None:
    done = xformd(command, "upper", *poems, XFORMD_SERVER=server.address)
    assert done.stdout == b"ONE\nTHREE\n"
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(f"xformd: {poems[1]}: ")
    assert lines[1] == f"xformd: {poems[2]}: No such file or directory"
    assert len(lines) == 2
    assert done.returncode == 65


@pytest.mark.parametrize("command", ["send", "run"])
def test_many_poems_go_to_a_folder(server: Server, poems: list[str], tmp_path: Path, command: str) -> None:
    folder = tmp_path / "out" / "deep"
    done = xformd(command, "upper", *poems, "--output-dir", str(folder), XFORMD_SERVER=server.address)
    assert done.stdout == b""
    assert done.returncode != 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"one": b"ONE\n", "three": b"THREE\n"}


def test_a_folder_where_a_result_would_overwrite_its_poem_is_refused(tmp_path: Path) -> None:
    poem = tmp_path / "poem"
    poem.write_bytes(b"x")
    lost = run("upper", str(poem), "--output-dir", str(tmp_path))
    assert lost.returncode == 78
    assert b"the result would overwrite" in lost.stderr
    assert poem.read_bytes() == b"x"


@pytest.mark.parametrize("command", ["send", "run"])
def test_results_take_the_place_of_their_poems(server: Server, poems: list[str], command: str) -> None:
    done = xformd(command, "upper", *poems, "--in-place", XFORMD_SERVER=server.address)
    assert (done.returncode, done.stdout) == (65, b"")
    assert [Path(poems[each]).read_bytes() for each in (0, 1, 3)] == [b"ONE\n", b"\xff\n", b"THREE\n"]
    for arguments in ([], ["-"], [poems[0], "--output-dir", "out"]):
        refused = xformd(command, "upper", "--in-place", *arguments)
        assert (refused.returncode, refused.stderr.splitlines()[-1][:17]) == (2, b"Error: --in-place")


@pytest.mark.slow
def test_the_poems_of_folders_go_to_mirrored_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "owl").write_text(name)
    assert run("upper", "--recursive", str(tmp_path / "src")).stdout == b"AB"
    for given in ([tmp_path / "src"], [tmp_path / "src" / "a" / "owl", tmp_path / "src" / "b" / "owl"]):
        folder = tmp_path / f"out{len(given)}"
        done = run("upper", "--recursive", *map(str, given), "--output-dir", str(folder))
        assert done.returncode == 0
        assert [(folder / name / "owl").read_bytes() for name in "ab"] == [b"A", b"B"]
    (tmp_path / "empty").mkdir()
    refused = run("upper", str(tmp_path / "src"))
    assert refused.stderr.endswith(b"/src: Is a directory; --recursive takes its files\n")
    nothing = run("upper", "--recursive", str(tmp_path / "empty"), stdin=b"no poem")
    assert (nothing.returncode, nothing.stdout) == (0, b"")


def test_a_dash_is_standard_input_and_a_path_to_a_dash_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("./-").write_bytes(b"file\n")
    assert run("upper", "./-", "-", stdin=b"stdin\n").stdout == b"FILE\nSTDIN\n"


# Charsets


@pytest.mark.parametrize("command", ["send", "run"])
def test_text_is_read_and_written_in_its_charset(server: Server, command: str) -> None:
    for charset in ("latin-1", "utf-16", "cp1252", "utf-8-sig"):
        arguments = (command, "upper", "--encoding", charset)
        done = xformd(*arguments, stdin="café\n".encode(charset), XFORMD_SERVER=server.address)
        assert (done.stdout.decode(charset), done.stderr) == ("CAFÉ\n", b"")


@pytest.mark.parametrize(
    ("arguments", "poem", "status", "says"),
    [
        (("upper", "--encoding", "ascii"), b"\xff", 65, "gibberish: this poem: 'ascii' codec can't decode byte 0xff"),
        (("upper", "--encoding", "utf-16"), b"a", 65, "gibberish: this poem: 'utf-16"),
        (("upper", "--encoding", "latin-1"), b"\xff", 65, "gibberish: the result: 'latin-1' codec can't encode"),
        (("backwards", "--encoding", "latin-1"), b"\xe9", 65, "gibberish: the result: 'utf-8' codec can't decode"),
        *(
            (("upper", "--encoding", name), b"", 2, f"no charset {name!r} for text")
            for name in ("nope", "rot13", "a\0")
        ),
    ],
)
def test_what_a_charset_does_not_have_is_one_line(
    arguments: tuple[str, ...], poem: bytes, status: int, says: str
) -> None:
    failed = run(*arguments, stdin=poem)
    assert (failed.returncode, failed.stdout) == (status, b"")
    assert says in failed.stderr.decode()


@pytest.mark.slow
def test_a_byte_order_mark_stays_or_goes() -> None:
    assert run("number-lines", stdin=b"\xef\xbb\xbfOwl").stdout == b"\xef\xbb\xbf1. Owl"
    assert run("number-lines", "--strip-bom", stdin=b"\xef\xbb\xbfOwl").stdout == b"1. Owl"
    marked = "\ufeffOwl".encode("utf-16-le")
    assert run("number-lines", "--strip-bom", "--encoding", "utf-16-le", stdin=marked).stdout.startswith(b"1\0")


@pytest.mark.slow
def test_run_heeds_the_limits_of_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "xformd.toml").write_text("max_result_bytes = 5\ntransform_timeout_s = 0.05\n")
    upper, limited = ("run", "upper", "--plugins=none"), ("--config", str(tmp_path / "xformd.toml"))
    says = b"xformd: too-large: the result of upper has 6 bytes; the limit is 5 bytes\n"
    for done in (
        xformd(*upper, *limited, stdin=b"poem!!"),
        xformd(*upper, "--max-result-bytes", "5", stdin=b"poem!!"),
        xformd(*upper, stdin=b"poem!!", XFORMD_MAX_RESULT_BYTES="5"),
    ):
        assert (done.returncode, done.stderr) == (65, says)
    late = xformd("run", *LOOSE, "gate", *limited, stdin=b"Poem", GATE=str(tmp_path))
    assert (late.returncode, late.stderr.splitlines()[-1]) == (75, b"xformd: timeout: gate took longer than its 0.05 s")
    assert xformd(*upper, stdin=b"a", XFORMD_MAX_QUEUE="nonsense").stdout == b"A"


def test_a_file_that_cannot_be_read_or_written_is_one_line(poems: list[str], tmp_path: Path) -> None:
    loop, file = tmp_path / "loop", tmp_path / "file"
    loop.symlink_to(loop)
    file.touch()
    for poem, folder, status, says in (
        (loop, tmp_path / "out", 66, "Too many levels of symbolic links"),
        (poems[0], file / "below", 73, f"xformd: cannot write the result to {file}/below: Not a directory"),
    ):
        failed = run("upper", str(poem), "--output-dir", str(folder))
        assert failed.returncode == status
        assert says in failed.stderr.decode()


def on_a_terminal(*arguments: str) -> tuple[str, bytes]:
    """Run a command whose standard error is a terminal; return what it showed there, and its standard output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*XFORMD, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 1_000):
                shown += data
        except OSError:
            pass  # how Linux says that the other side has closed
        assert process.stdout is not None
        stdout = process.stdout.read()
    os.close(ours)
    return shown.decode(), stdout


def test_a_bar_shows_the_progress_of_many_poems_on_a_terminal(poems: list[str]) -> None:
    shown, stdout = on_a_terminal("run", "upper", poems[0], poems[3])
    assert "poems" in shown
    assert "100%" in shown
    assert stdout == b"ONE\nTHREE\n"
    shown, _ = on_a_terminal("run", "upper", poems[0])
    assert shown == ""


@pytest.mark.slow
def test_a_reader_that_stops_reading_makes_no_traceback(poems: list[str]) -> None:
    command = f"{' '.join(XFORMD)} run upper {poems[0]} {poems[3]} | true"
    for _ in range(3):
        piped = subprocess.run(["bash", "-c", command], capture_output=True, env=environment(), check=False)
        assert b"Traceback" not in piped.stderr


# list-transforms, check, completion


def test_the_list_as_a_table_and_as_json() -> None:
    table = xformd("list-transforms", *LOOSE).stdout.decode()
    assert table.splitlines()[0].split() == ["NAME", "OPTIONS", "SUMMARY", "FROM"]
    assert any(
        line.startswith("wrap") and "width=72 (1..10000),indent=0 (0..20)" in line for line in table.splitlines()
    )
    listed = json.loads(xformd("list-transforms", "--json", *LOOSE).stdout)
    assert set(listed) == {"transforms", "plugins", "conflicts", "fingerprint"}
    names = [transform["name"] for transform in listed["transforms"]]
    assert names == sorted(names)
    assert {"cummingsify", "backwards"} <= set(names)


def test_a_bare_plugins_option_means_all() -> None:
    bare, default = (json.loads(xformd("list-transforms", *some, "--json").stdout) for some in (["--plugins"], []))
    assert bare["transforms"] == default["transforms"]
    none = json.loads(xformd("list-transforms", "--plugins", "none", "--json").stdout)
    assert {transform["distribution"] for transform in none["transforms"]} == {"xformd"}


def test_check_runs_every_example() -> None:
    checked = xformd("check", "xformd")
    assert checked.returncode == 0
    assert "ok      cummingsify: 2 examples" in checked.stdout.decode().splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("xformd run cumm", ["cummingsify"]),
        ("xformd send upper+tri", ["upper+trim"]),
        ("xformd li", ["list-transforms"]),
    ],
)
def test_the_shell_completes_commands_and_transform_names(words: str, expected: list[str]) -> None:
    completed = xformd(
        _XFORMD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1), stdin=b""
    )
    assert [line.partition(",")[2] for line in completed.stdout.decode().splitlines()] == expected


def test_ping_waits_until_a_server_is_up(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    waiting = subprocess.Popen(
        [*XFORMD, "ping", "--wait", "--server", f"unix:{path}"], env=environment(), stdout=subprocess.PIPE
    )
    with waiting, serving(tmp_path, "--plugins=none", "--listen", f"unix:{path}"):
        assert waiting.wait(timeout=DEADLINE_S) == 0
        assert waiting.stdout is not None
        assert waiting.stdout.read().startswith(b"unix:")


def test_ping_waits_no_longer_than_its_timeout(tmp_path: Path) -> None:
    for arguments in (["--wait", "--timeout", "0.3s"], ["--wait", "300ms"], ["--wait=0.3", "--timeout", "60"]):
        done = xformd("ping", *arguments, "--server", f"unix:{tmp_path}/socket")
        assert done.returncode == 69
        assert b"cannot connect" in done.stderr
    refused = xformd("ping", "--wait", "soon")
    assert (refused.returncode, refused.stderr.splitlines()[-1][:33]) == (2, b"Error: Invalid value for '--wait'")


@pytest.mark.slow
def test_ping_tries_again_soon_however_long_it_has_waited() -> None:
    """A client that sends poems waits up to 30 s."""
    tries: list[float] = []

    def refuse(connection: socket.socket) -> None:
        tries.append(time.monotonic())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with peer(refuse) as other:
        assert xformd("ping", "--wait", "2", "--server", other.address).returncode == 69
    assert len(tries) >= 7  # of about 13, and 5 where each takes twice as long as the one before
    assert tries[-1] - tries[0] > 1


def test_ping_that_wakes_up_too_late_still_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    timeouts: list[float] = []

    class Nobody(TransformProxy):
        def ping(self, *, timeout: float | None = None) -> "Deferred[str]":
            assert timeout is not None
            timeouts.append(timeout)
            return fail(ConnectionFailed("nobody is there"))

    monkeypatch.setattr(twisted.internet, "reactor", clock, raising=False)
    monkeypatch.setattr("xformd.client.TransformProxy", Nobody)
    pinging = Deferred.fromCoroutine(transforms._ping("127.0.0.1:1", 60, 0.2, {}))
    clock.advance(0.5)
    error_of(pinging, ConnectionFailed)
    assert [timeout > 0 for timeout in timeouts] == [True, True]


def test_ping_waits_for_a_server_that_is_mute_at_first_and_breaks_off_and_closes_as_a_proxy_without_one() -> None:
    visits: list[int] = []

    def talk(connection: socket.socket) -> None:
        visits.append(1)
        if len(visits) == 1:
            only_listens(connection)
        elif len(visits) == 3:
            connection.recv(100)
        elif len(visits) > 3:
            hello = b'xformd/2 {"server": "xformd 9", "max_request_bytes": 9, "max_in_flight": 9}'
            connection.sendall(netstring(hello))
            received = b""
            while b"!ping" not in received:
                received += connection.recv(100)
            connection.sendall(netstring(b"1 ok."))
            only_listens(connection)

    with peer(talk) as other:
        done = xformd("ping", "--wait", "20", "--timeout", "0.2", "--server", other.address)
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"{other.address}: xformd 9, " in done.stdout.decode()
