"""Settings, secrets and commands of a running server: what a reload takes from its file, and where no secret gets."""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support import process_table
from support.processes import Server, netstring, serving, wait_until, xformd, xformd_process
from support.session_client import Session

pytestmark = pytest.mark.slow

KEY = "sk-very-secret-1234"
ENVIRONMENT_KEY = "sk-of-the-environment-5678"

PLUGIN = """
import attrs, os, xformd

@attrs.frozen
class Settings:
    api_key: xformd.Secret
    other_key: xformd.Secret = xformd.Secret("")
    greeting: str = "hello"
    place: str = "worker"

@xformd.hookimpl
def xformd_settings():
    return Settings

@xformd.hookimpl
def xformd_transforms(settings):
    @xformd.transform(inline=settings.place == "server")
    def greet(poem: str) -> str:
        keys = len(settings.api_key.reveal()), len(settings.other_key.reveal())
        return f"{settings.greeting} {poem} {keys} {settings.api_key} {settings}"

    @xformd.transform(inline=settings.place == "server")
    def leak(poem: str) -> str:
        raise ValueError(settings.api_key.reveal())

    @xformd.transform(inline=settings.place == "server")
    def refuse(poem: str) -> str:
        raise xformd.GibberishError(f"no such key: {settings.api_key.reveal()}")

    @xformd.transform
    def environment(poem: str) -> str:
        return repr([*os.environ.items()])

    return [greet, leak, refuse, environment]
"""

FILE = """
plugins_dir = ["loose"]
plugins = "none"
transform_timeout_s = 30

[plugin."polite.py"]
api_key_file = "key"
greeting = "{greeting}"
place = "{place}"

[transform.shout]
command = ["tr", "a-z", "{letters}"]
accepts = "text/plain"
produces = "text/plain"

[transform.hangs]
command = ["sh", "-c", "sleep 1000 & sleep 1000"]
timeout = 0.5
"""


def write(folder: Path, greeting: str = "hello", place: str = "worker", letters: str = "A-Z", more: str = "") -> Path:
    (folder / "loose").mkdir(exist_ok=True)
    (folder / "loose" / "polite.py").write_text(PLUGIN)
    (folder / "key").write_text(KEY + "\n")
    file = folder / "xformd.toml"
    file.write_text(FILE.format(greeting=greeting, place=place, letters=letters) + more)
    return file


@contextmanager
def serving_tables(folder: Path, *arguments: str, **variables: Any) -> Iterator[Server]:
    file = write(folder)
    extra: Any = {"XFORMD_WORKERS": "1", "XFORMD_PLUGIN_POLITE_PY__OTHER_KEY": ENVIRONMENT_KEY, **variables}
    with serving(folder, "--config", str(file), *arguments, **extra) as server:
        yield server


def text(server: Server, spec: str, poem: str = "owl") -> str:
    with Session(server) as session:
        return session.ask(spec, poem.encode()).poem.decode()


def reload(server: Server) -> None:
    before = server.log.count("reloaded")
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("reloaded") > before)


def test_no_secret_is_anywhere_but_in_the_plugin(tmp_path: Path) -> None:
    with serving_tables(tmp_path, XFORMD_HTTP="tcp:0:interface=127.0.0.1") as server:
        assert text(server, "greet").startswith("hello owl (19, 26) Secret(***) Settings(api_key=Secret(***)")
        assert text(server, "leak") == "leak raised ValueError"
        assert text(server, "refuse") == "no such key: ***"
        assert ENVIRONMENT_KEY not in text(server, "environment")
        wait_until(lambda: "ValueError" in server.log)
        seen = [server.log, *server.greeting]
        seen.append(server.ask(netstring(b"xformd/2") + netstring(b"1 !list."), half_close=True).decode())
        for path in ("/openapi.json", "/transforms", "/"):
            with urllib.request.urlopen(server.http + path, timeout=90) as answer:
                seen.append(answer.read().decode())
        token = server.process.pid
        others = [pid for pid in process_table.pids() if pid != token and _descends_from(pid, token)]
        assert len(others) >= 4
        seen += [Path(f"/proc/{pid}/{what}").read_text() for pid in others for what in ("environ", "cmdline")]
        seen.append(Path(f"/proc/{token}/cmdline").read_text())
    assert [each for each in seen if KEY in each or ENVIRONMENT_KEY in each] == []
    assert "api_key" not in seen[3]


@pytest.mark.parametrize("place", ["worker", "server"])
def test_who_runs_a_transform_reads_its_errors_without_the_secrets(tmp_path: Path, place: str) -> None:
    config = str(write(tmp_path, place=place))
    told = xformd("run", "--config", config, "leak", "--traceback", stdin=b"owl").stderr.decode()
    assert "leak raised ValueError: ***" in told
    assert KEY not in told
    refused = xformd("run", "--config", config, "refuse", stdin=b"owl").stderr.decode()
    assert refused == "xformd: gibberish: no such key: ***\n"


def _descends_from(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = process_table.parent(pid)
        except (OSError, IndexError, ValueError):
            return False
    return False


def test_a_reload_takes_settings_and_commands_from_the_file(tmp_path: Path) -> None:
    with serving_tables(tmp_path) as server:
        assert text(server, "greet+shout").startswith("HELLO OWL")
        write(tmp_path, "good day", letters="B-ZA", more='[transform.copy]\ncommand = ["cat"]\n')
        reload(server)
        assert text(server, "greet").startswith("good day owl")
        assert text(server, "shout+copy") == "PXM"
        write(tmp_path, "good day", place="server")
        reload(server)
        assert text(server, "greet").startswith("good day owl")
        write(tmp_path, "farewell", place="server")
        reload(server)
        assert text(server, "greet").startswith("farewell owl")
        assert text(server, "copy").startswith("no transform 'copy' here")  # its table is gone


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[plugin", "line 19: not valid TOML"),
        ("max_que = 1", "line 19: unknown setting 'max_que'; did you mean 'max_queue'?"),
        ("[plugin.polite]\n", "line 19: plugin polite: no such plugin is installed; did you mean 'polite.py'?"),
    ],
)
def test_a_bad_file_keeps_what_was_with_one_line_in_the_log(tmp_path: Path, more: str, says: str) -> None:
    with serving_tables(tmp_path) as server:
        file = write(tmp_path, "good day")
        lines = file.read_text().splitlines()
        first = more if more.startswith("max") else ""
        file.write_text("\n".join([first, *lines[1:], *([] if first else [more])]))
        before = len(server.log.splitlines())
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in server.log)
        (line,) = [line for line in server.log.splitlines()[before:] if "not reloaded" in line]
        assert says.partition(": ")[2] in line
        assert text(server, "greet").startswith("hello owl")
        write(tmp_path, "good day")
        reload(server)
        assert text(server, "greet").startswith("good day owl")


def test_a_setting_that_would_break_the_plugin_changes_nothing(tmp_path: Path) -> None:
    with serving_tables(tmp_path) as server:
        write(tmp_path, more='[plugin."polite.py".nonsense]\n')
        (tmp_path / "key").unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded: transforms that work now" in server.log)
        wait_until(lambda: "cannot read" in server.log)
        wait_until(lambda: "unknown setting 'nonsense'" in server.log)
        assert text(server, "greet").startswith("hello owl (19, 26)")


def test_a_command_is_killed_at_its_deadline_with_what_it_started(tmp_path: Path) -> None:
    token = f"t-{os.getpid()}-{time.monotonic_ns()}"
    with serving_tables(tmp_path, **{process_table.TOKEN: token}) as server, Session(server) as session:
        before = process_table.bearing(token)
        (answer,) = session.collect(session.send(("hangs", b"")))
        assert answer.code == "timeout"
        assert answer.elapsed_s < 0.5 + 0.2 + 0.5  # a busy machine
        wait_until(lambda: not [pid for pid in process_table.bearing(token) - before if _is_sleep(pid)])
        assert session.ask("shout", b"owl").poem == b"OWL"


def _is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    except OSError:
        return False


def test_commands_are_in_the_listing_and_in_openapi(tmp_path: Path) -> None:
    with serving_tables(tmp_path, XFORMD_HTTP="tcp:0:interface=127.0.0.1") as server:
        with urllib.request.urlopen(server.http + "/openapi.json", timeout=90) as answer:
            described = json.load(answer)
        assert any(path.endswith("/shout") for path in described["paths"])
        request = urllib.request.Request(server.http + "/transform/shout", data=b"owl", method="POST")
        with urllib.request.urlopen(request, timeout=90) as answer:
            assert answer.read() == b"OWL"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_mistake_in_a_table_fails_one_plugin_and_strict_servers_do_not_start(tmp_path: Path, workers: str) -> None:
    file = write(tmp_path, more='modle = 1\n[transform.nope]\ncommand = ["no-such-owl"]\nsumary = ""\n')
    text_ = file.read_text().replace("greeting =", "greting =")
    file.write_text(text_)
    with serving(tmp_path, "--config", str(file), XFORMD_WORKERS=workers) as server:
        assert text(server, "shout") == "OWL"
        failed = [server.read_line() for _ in range(3)]
    assert "line 8: unknown setting 'greting'; did you mean 'greeting'?" in failed[0]
    done = xformd_process("serve", "--config", str(file), "--strict", "--port", "0", XFORMD_WORKERS=workers)
    assert done.returncode == 78
    assert done.stderr.count(b"\n") == 4


def test_config_check_and_run_know_the_tables(tmp_path: Path) -> None:
    file = write(tmp_path)
    variables: Any = {"XFORMD_PLUGIN_POLITE_PY__OTHER_KEY": ENVIRONMENT_KEY}
    done = xformd("config", "--config", str(file), **variables)
    shown = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert f'plugin."polite-py".api_key_file = "{tmp_path}/key"' in shown
    assert '#plugin."polite-py".other_key = "***"' in shown
    assert 'transform."shout".command = ["tr", "a-z", "A-Z"]' in shown
    as_json = xformd("config", "--json", "--config", str(file), **variables).stdout.decode()
    assert ENVIRONMENT_KEY not in shown + as_json
    assert xformd("run", "--config", str(file), "greet+shout", stdin=b"owl", **variables).stdout.startswith(
        b"HELLO OWL (19, 26)"
    )
    checked = xformd("check", "--config", str(file), "transform.shout", **variables)
    assert checked.stdout == b"ok      shout: no examples\n"
    listed = json.loads(xformd("list-transforms", "--json", "--config", str(file), **variables).stdout)
    (plugin,) = [plugin for plugin in listed["plugins"] if plugin["name"] == "polite"]
    assert plugin["settings"]["api_key"] == "secret"
