"""What a plugin does to its process at import or in a job stays without effect on others, or is told.

``plugin-cases`` holds small plugins that have done harm; ``isolated`` has transforms that look at their process.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from support import process_wide
from support.http_client import HTTP, exchange
from support.live import is_running
from support.processes import Server, serving, wait_until, xformd, xformd_process
from support.session_client import Session, retry_after_s

SUPPORT = Path(__file__).parents[1] / "support"
CASES = SUPPORT / "plugin-cases"
OWN = SUPPORT / "isolated"

HARMLESS = ("asks_a_tool", "chdirs", "fetcher", "pools", "sigpipe", "terminated", "utf8")
TRANSFORMS = {"pools": "pooled", "terminated": "terminated"}
SHOUTING = set(TRANSFORMS)
OF_IMPORTS = sorted(set(HARMLESS) - SHOUTING)

LISTED_ELSEWHERE = {"random", "limits"}
"""What differs from job to job by intention: random numbers, and the limit of memory."""

LEFT_BY_JOBS = {
    "other loggers off",
    "level of another's logger",
    "Twisted's log",
    *process_wide.KEPT,
    *process_wide.REPORTED,
    "process group",  # a worker leads a session: the system does not let it change these
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a folder with the poem, and an empty one for plugins."""
    (tmp_path / "poem.txt").write_text("The Owl\n")
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(case: str, folder: Path, *, inline: bool = False) -> str:
    """Put a plugin into a folder, with a transform of a name of its own; return that."""
    source, name = (CASES / f"{case}.py").read_text(), TRANSFORMS.get(case, "same")
    own = f"{case}_inline" if inline else f"{case}_here"
    source = re.sub(rf"\b{name}\b", own, source)
    if inline:
        source = source.replace("@xformd.transform\n", "@xformd.transform(inline=True)\n")
    (folder / f"{own}.py").write_text(source)
    return own.replace("_", "-")


SELECTED = ("--plugins", "none", "--plugins-dir", "plugins")  # relative: a plugin may change the working directory


# Commands.


@pytest.mark.parametrize("case", HARMLESS)
def test_a_command_works_whatever_a_plugin_does_to_its_process(here: Path, case: str) -> None:
    name = put(case, here / "plugins")
    expected = b"THE OWL\n" if case in SHOUTING else b"The Owl\n"
    done = xformd("run", *SELECTED, name, "poem.txt", "poem.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, 2 * expected, b"")


@pytest.mark.parametrize("case", HARMLESS)
def test_every_command_works_whatever_a_plugin_does_to_its_process(here: Path, case: str) -> None:
    name = put(case, here / "plugins")
    expected = b"THE OWL\n" if case in SHOUTING else b"The Owl\n"
    assert xformd("run", *SELECTED, name, stdin=b"The Owl\n").stdout == expected
    checked = xformd("check", *SELECTED, f"{case}_here.py")
    assert (checked.returncode, checked.stdout) == (0, f"ok      {name}: no examples\n".encode())
    listed = json.loads(xformd("list-transforms", "--json", *SELECTED).stdout)
    assert name in {transform["name"] for transform in listed["transforms"]}


def test_a_plugin_that_kills_its_interpreter_has_failed_with_its_name_and_the_signal(here: Path) -> None:
    for case in ("native", "pools"):
        shutil.copy(CASES / f"{case}.py", here / "plugins")
    why = "plugin native.py (native)"
    listed = xformd("list-transforms", *SELECTED)
    assert f"failed: {why}: was killed by SIGILL when it was imported" in listed.stdout.decode()
    assert xformd("run", *SELECTED, "pooled", "poem.txt").stdout == b"THE OWL\n"
    refused = xformd("run", *SELECTED, "same", "poem.txt")
    assert refused.returncode == 66
    assert f"{why} failed: was killed by SIGILL" in refused.stderr.decode()
    assert xformd("check", *SELECTED).returncode == 1


SLOW = """
import time
import xformd
{more}
time.sleep({seconds})

@xformd.transform
def slow(poem: str) -> str:
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [slow]
"""


@pytest.mark.parametrize("command", [("run", "slow", "poem.txt"), ("check", "slow.py"), ("list-transforms",)])
def test_a_plugin_that_is_waited_for_is_named(here: Path, command: tuple[str, ...]) -> None:
    (here / "plugins" / "slow.py").write_text(SLOW.format(seconds=1.5, more=""))
    done = xformd_process(*command, *SELECTED)
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert "slow.py (slow)" in line


@pytest.mark.parametrize("command", [("run", "slow", "poem.txt"), ("check", "slow.py"), ("list-transforms",)])
def test_a_plugin_that_hangs_has_failed_after_its_time(here: Path, command: tuple[str, ...]) -> None:
    """It states its own, which the commands heed as well as the setting."""
    (here / "plugins" / "slow.py").write_text(SLOW.format(seconds=1_000, more="xformd.set_load_timeout(1.5)"))
    done = xformd_process(*command, *SELECTED)
    assert "slow.py (slow)" in done.stderr.decode()
    assert "was not imported within 1.5 s" in (done.stdout + done.stderr).decode()


# Servers.


@attrs.frozen
class Serving:
    """A server with every case, each in a worker and once more inline."""

    server: Server
    folder: Path
    names: tuple[str, ...]
    inline_names: tuple[str, ...]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("everything")
    names = tuple(put(case, folder) for case in (*HARMLESS, "native", "waits"))
    inline_names = tuple(put(case, folder, inline=True) for case in OF_IMPORTS)
    arguments = ("--plugins", "none", "--plugins-dir", os.path.relpath(folder), "--workers", "1", *HTTP)
    with serving(folder, *arguments, XFORMD_PLUGIN_LOAD_TIMEOUT_S="2") as server:
        yield Serving(server, folder, names, inline_names)


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("misbehaving_plugins")]


def test_a_server_answers_while_a_plugin_is_being_loaded_and_says_so(tmp_path: Path) -> None:
    for case in ("waits", "native", "sigpipe"):
        put(case, tmp_path)
    arguments = ("--plugins", "none", "--plugins-dir", str(tmp_path), "--workers", "1", *HTTP)
    with (
        serving(tmp_path, *arguments, XFORMD_PLUGIN_LOAD_TIMEOUT_S="6") as server,
        Session(server) as session,
        exchange(server) as http,
    ):
        ready = json.loads(http.ask(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").body)
        reasons = ["still loading waits_here.py (waits_here)"]
        assert (ready["status"], ready["reasons"]) == ("degraded", reasons)
        assert session.ask("sigpipe-here", b"Owl").poem == b"Owl"
        assert session.ask("upper", b"Owl").poem == b"OWL"
        assert session.ask("waits-here", b"Owl").code == "unavailable"
        wait_until(lambda: "waits_here.py (waits_here) was not imported within 6 s" in server.log)
        wait_until(lambda: session.ask("waits-here", b"Owl").code == "no-such-transform")
        assert http.ask(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").status == 200
        wait_until(lambda: "plugin waits_here.py (waits_here) is still loading after 1 s" in server.log)
        wait_until(lambda: "plugin native_here.py (native_here) was killed by SIGILL" in server.log)


def test_a_server_has_every_transform_and_its_process_is_as_it_was(everything: Serving) -> None:
    server = everything.server
    with Session(server) as session:
        wait_until(lambda: session.ask("waits-here").code == "no-such-transform")
        for name in (*everything.names, *everything.inline_names):
            if not name.startswith(("native", "waits")):
                assert session.ask(name, b"Owl").poem.lower() == b"owl", name
    process = Path(f"/proc/{server.process.pid}")
    assert (process / "cwd").resolve() == Path.cwd()
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert int(status["SigIgn"], 16) >> (signal.SIGPIPE - 1) & 1
    server.process.send_signal(signal.SIGHUP)  # relative paths hold for another generation too
    wait_until(lambda: "reloaded: " in server.log)
    with Session(server) as session:
        assert session.ask("chdirs-here", b"Owl").poem == b"Owl"
    with server.connect() as leaver:  # it leaves while its answer is on the way
        leaver.sendall(b"1000006:upper." + b"x" * 1_000_000 + b",")
        leaver.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    with Session(server) as session:
        assert session.ask("upper", b"Owl").poem == b"OWL"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_plugin_may_set_the_encoding_of_its_streams(tmp_path: Path, log_format: str) -> None:
    (tmp_path / "plugins").mkdir()
    names = [put("utf8", tmp_path / "plugins"), put("utf8", tmp_path / "plugins", inline=True)]
    arguments = ("--plugins", "none", "--plugins-dir", str(tmp_path / "plugins"), "--log-format", log_format)
    with serving(tmp_path, *arguments, "--workers", "1") as server, Session(server) as session:
        assert [session.ask(name, b"Owl").poem for name in names] == [b"Owl", b"Owl"]


PLUGIN = """
import sys
IS_SERVER = "xformd.server.app" in sys.modules
{does}
import xformd

@xformd.transform(inline={inline})
def {name}(poem: str) -> str:
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [{name}]
"""

AT_IMPORT = {
    "forks": "import os; os.fork()",
    "closes": "import os; os.closerange(3, 256)",
    "vanishes": "import os; os._exit(0)",
    "elsewhere": "if IS_SERVER: raise ImportError('not in this process')",
    "threads": f"if IS_SERVER: {process_wide.CHANGES['thread']}",
    "logs": process_wide.CHANGES["Twisted's log"],
    "lingers": f"import atexit, time; atexit.register(time.sleep, 1_000); {process_wide.CHANGES['thread']}",
    "daemon": "import multiprocessing, time; "
    "multiprocessing.get_context('fork').Process(target=time.sleep, args=(1_000,), daemon=True).start()",
}
"""What some plugins do when they are imported."""

WORK = {"forks", "threads", "logs", "lingers", "daemon"}


@pytest.mark.parametrize("when", ["at the start", "at a reload"])
def test_what_an_import_does_to_its_process_stops_no_server(tmp_path: Path, when: str) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()

    def install() -> None:
        for name, does in AT_IMPORT.items():
            inline = name not in ("lingers", "daemon")
            (plugins / f"{name}.py").write_text(PLUGIN.format(does=does, inline=inline, name=name))

    if when == "at the start":
        install()
    arguments = ("--plugins", "none", "--plugins-dir", str(plugins), "--workers", "1")
    with serving(tmp_path, *arguments) as server:
        if when == "at a reload":
            install()
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "reloaded: " in server.log)
        with Session(server) as session:
            answers = {name: session.ask(name, b"Owl") for name in AT_IMPORT}
        assert {name for name, answer in answers.items() if answer.poem == b"Owl"} == WORK
        assert server.stop() == 0
        log = server.log
    for name in ("closes", "vanishes"):
        assert f"plugin {name}.py ({name}) ended with exit status" in log
    reason = "it runs in the server, which cannot load it: import of elsewhere.py failed: ImportError: not in this"
    assert f"plugin elsewhere.py (elsewhere) failed: {reason}" in log
    assert "plugin threads.py (threads), which runs in the server, left a thread running" in log
    assert log.count("plugin daemon.py (daemon) left a process running") == 1
    assert "[-] plugin" not in log  # as what Twisted's own log writes


# Jobs.


@pytest.fixture(scope="module")
def meddling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Session]]:
    """A server with one worker, a spare, and the transforms of ``isolated``."""
    with serving_own(tmp_path_factory.mktemp("meddling")) as server, Session(server) as session:
        yield server, session


@contextmanager
def serving_own(folder: Path, *arguments: str, **extra: Any) -> Iterator[Server]:
    extra |= {"ISOLATED_SUPPORT": str(SUPPORT.parent), "ISOLATED_NOTES": str(folder), "TMPDIR": str(folder)}
    selected = ("--plugins", "none", "--plugins-dir", str(OWN), "--workers", "1")
    with serving(folder, *selected, *HTTP, *arguments, **extra) as server:
        yield server


def look(session: Session) -> dict[str, Any]:
    return dict(json.loads(session.ask("look").poem))


def test_a_job_leaves_no_trace_in_its_worker(meddling: tuple[Server, Session]) -> None:
    _, session = meddling
    before = look(session)
    traces = {}
    for change in sorted(process_wide.CHANGES.keys() - LEFT_BY_JOBS):
        answer = session.ask("change", change.encode())
        assert (answer.code, answer.poem.decode()) == ("ok", str(before["pid"])), change
        after = look(session)
        traces[change] = process_wide.differences(before["seen"], after["seen"]).keys() - LISTED_ELSEWHERE
    assert {change: trace for change, trace in traces.items() if trace} == {}


def test_each_job_has_an_empty_folder_that_is_gone_afterwards(meddling: tuple[Server, Session]) -> None:
    _, session = meddling
    seen = [json.loads(session.ask("folder", b"Owl").poem) for _ in range(3)]
    assert [before for _, before in seen] == [[], [], []]
    assert len({folder for folder, _ in seen}) == 3
    assert [folder for folder, _ in seen if Path(folder).exists()] == []


def test_a_folder_is_made_also_where_temporary_files_are_tidied_up(meddling: tuple[Server, Session]) -> None:
    _, session = meddling
    (folder, _) = json.loads(session.ask("folder", b"Owl").poem)
    shutil.rmtree(Path(folder).parent)
    assert session.ask("folder", b"Owl").code == "ok"


@pytest.mark.parametrize("leaves", ["child", "orphan"])
def test_a_process_that_a_job_leaves_ends_with_it(meddling: tuple[Server, Session], leaves: str) -> None:
    _, session = meddling
    answer = session.ask(leaves)
    assert answer.code == "ok"
    assert not is_running(int(answer.poem))


def test_a_forked_child_handles_signals_by_default_and_reads_nothing(meddling: tuple[Server, Session]) -> None:
    _, session = meddling
    assert json.loads(session.ask("forked").poem) == [[True, True, True], "", ""]


def test_a_worker_that_is_not_as_it_was_is_replaced_and_nobody_is_blamed(meddling: tuple[Server, Session]) -> None:
    server, session = meddling
    pids = [session.ask("irrevocable").poem for _ in range(2)]
    assert pids[0] != pids[1]
    why = f"worker {pids[0].decode()} is not as it was before it ran irrevocable: signal handlers"
    wait_until(lambda: why in server.log)


def test_a_worker_whose_descriptors_are_used_up_is_replaced(meddling: tuple[Server, Session]) -> None:
    server, session = meddling
    assert session.ask("descriptors", b"1000000").code == "transform-failed"
    assert session.ask("descriptors", b"1").code == "ok"
    wait_until(lambda: "descriptors open: it is replaced" in server.log)


# Exit handlers.


def test_a_temporary_folder_of_a_plugin_is_gone_after_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    selected = ("--plugins", "none", "--plugins-dir", str(OWN))
    variables = {"ISOLATED_SUPPORT": str(SUPPORT.parent), "ISOLATED_NOTES": str(tmp_path)}
    done = xformd("run", *selected, "where", stdin=b"Owl", **variables)
    assert Path(done.stdout.decode()).parent == tmp_path
    (made,) = (tmp_path / "made").read_text().splitlines()
    assert made.split()[0] in (tmp_path / "exited").read_text().split()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("is_late", [False, True], ids=["forked", "late"])
def test_a_temporary_folder_of_a_plugin_is_gone_after_its_worker_and_its_server(tmp_path: Path, is_late: bool) -> None:
    """A plugin that leaves a thread has one for each worker."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    thread = process_wide.CHANGES["thread"] if is_late else ""
    (plugins / "temporary.py").write_text(f"{(OWN / 'temporary.py').read_text()}\n{thread}\n")
    arguments = ("--plugins", "none", "--plugins-dir", str(plugins), "--workers", "1", "--max-jobs-per-worker", "3")
    variables: dict[str, Any] = {"ISOLATED_NOTES": str(tmp_path), "TMPDIR": str(tmp_path)}
    with serving(tmp_path, *arguments, **variables) as server, Session(server) as session:
        folders = [session.ask("where").poem.decode() for _ in range(7)]  # more workers start than answer
        assert "gone" not in folders
        assert len(set(folders)) == (3 if is_late else 1)
        if is_late:
            wait_until(lambda: not Path(folders[0]).exists())
        wait_until(lambda: "job " in (tmp_path / "exited").read_text())
        assert server.stop() == 0
        assert "the end of a line is missing" in server.log
    left = [path for path in tmp_path.iterdir() if path.is_dir() and path != plugins]
    assert left == []


# Refusals.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("speechless", "the transform rejects this poem"),
        ("empty", "the transform rejects this poem"),
        ("tutorial", "the transform rejects this poem"),
        ("inline-tutorial", "the transform rejects this poem"),
        ("quoting", "Who?"),
    ],
)
def test_gibberish_is_gibberish_with_or_without_words(
    meddling: tuple[Server, Session], name: str, message: str
) -> None:
    _, session = meddling
    answer = session.ask(name, b"Who?")
    assert (answer.code, answer.poem.decode()) == ("gibberish", message)


@pytest.mark.parametrize("name", ["away", "inline-away"])
def test_what_a_transform_needs_is_away_and_every_caller_hears_how_long(
    meddling: tuple[Server, Session], name: str
) -> None:
    server, session = meddling
    answer = session.ask(name, b"Who?")
    assert (answer.code, answer.poem, retry_after_s(answer)) == ("unavailable", b"the dictionary is away", 2)
    with exchange(server) as http:
        head = f"POST /transform/{name} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
        refused = http.ask(head.encode() + b"Who?")
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert server.ask(f"{len(name) + 5}:{name}.Who?,".encode()) == b""
    assert session.ask("away-for-good").attributes.keys().isdisjoint({"retry-after"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quoting", "gibberish: quoting rejects this poem"),
        ("inline-tutorial", "gibberish: inline-tutorial rejects this poem"),
        ("away", "unavailable: away is unavailable"),
        ("upper+quoting", "gibberish: quoting rejects this poem"),
        ("change", "transform-failed: change failed"),
    ],
)
def test_what_a_transform_refuses_is_in_the_log_with_its_name_and_our_words(
    meddling: tuple[Server, Session], name: str, words: str
) -> None:
    server, _ = meddling
    assert server.ask(f"{len(name) + 7}:{name}.SECRET,".encode()) == b""
    wait_until(lambda: words in server.log)
    assert "SECRET" not in server.log
