"""``xformd dev``: what is saved is served, and what is wrong is said with its place."""

import contextlib
import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from support.http_client import HTTP
from support.live import children
from support.processes import DEADLINE_S, Server, serving, wait_until, xformd
from xformd.kit.dev import LOADS_TO_BE_SURE, Saves
from xformd.kit.new import make_plugin

pytest.importorskip("watchfiles")
pytestmark = pytest.mark.slow

LOOSE = """
import xformd


@xformd.transform(examples=[("owl", "owl!")])
def shout(poem: str) -> str:
    return poem + "!"


@xformd.hookimpl
def xformd_transforms():
    return [shout]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a project, which is not installed."""
    return make_plugin("shout", "text", tmp_path)[0]


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    """The server that follows it."""
    with developing(tmp_path, folder) as running:
        yield running


def developing(tmp_path: Path, folder: Path) -> contextlib.AbstractContextManager[Server]:
    return serving(tmp_path, "--no-browser", *HTTP, str(folder), verb=("dev",), ready="following")


def ask(server: Server, path: str, poem: str | None = None) -> str:
    """Return the body of an answer, whatever its status."""
    request = urllib.request.Request(server.http + path, data=None if poem is None else poem.encode())
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return str(json.loads(error.read())["detail"]) + f" ({error.status})"


def shout(server: Server) -> str:
    return ask(server, "/transform/shout", "owl")


def until(server: Server, part: str) -> str:
    """Ask until an answer has this part; return that."""
    answers: list[str] = []

    def has_part() -> bool:
        answers.append(shout(server))
        return part in answers[-1]

    wait_until(has_part)
    return answers[-1]


def logs(server: Server, part: str) -> None:
    wait_until(lambda: part in server.log)


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def test_what_is_saved_is_served(server: Server, folder: Path) -> None:
    module = folder / "xformd_shout.py"
    whole = module.read_text()
    assert server.greeting[-1] == f"following {folder}: shout"
    logs(server, "3 examples pass")
    assert shout(server) == "> owl"

    edit(module, lambda text: text.replace("(prefix + line", "('1' + prefix + line"))
    until(server, "1> owl")
    logs(server, "saved: xformd_shout.py")
    logs(server, "an example fails: shout('The Owl', prefix='| ') gave '1| The Owl', not '| The Owl'")
    edit(module, lambda text: text.replace("'1'", "'2'"))  # of the same length, and within the same second
    until(server, "2> owl")

    edit(module, lambda text: text.replace("poem.splitlines", "poem.splitline"))
    line = whole[: whole.index("poem.splitlines")].count("\n") + 1
    place = f"({module.resolve()}, line {line}: return"
    assert "'str' object has no attribute 'splitline' " + place in until(server, "AttributeError")
    logs(server, place)

    edit(module, lambda _: whole + "whole = {}['owl']\n")
    until(server, "(404)")
    number = whole.count("\n") + 1
    logs(server, f"import of xformd_shout failed: KeyError: 'owl' ({module}, line {number}: whole = {{}}['owl'])")
    edit(module, lambda _: whole + "def (\n")
    logs(server, f"SyntaxError: invalid syntax (xformd_shout.py, line {number}): def (")

    edit(module, lambda _: whole)
    until(server, "> owl")
    edit(module, lambda text: text.replace("def shout(", "def call(").replace("[shout]", "[call]"))
    until(server, "(404)")
    assert ask(server, "/transform/call", "owl") == "> owl"
    assert server.stop() == 0


WRITES = """
import pathlib, time
here = pathlib.Path(__file__).parent
with (here / "loads.log").open("a") as log:
    log.write(f"{time.time_ns()}\\n")
(here / "_tables.py").write_text("TABLES = {}")
temporary = here / f"tables-{time.time_ns()}.tmp"
temporary.write_text(str(time.time_ns()))
temporary.replace(here / "tables.cache")
"""


def test_what_a_load_writes_is_no_save_and_what_is_saved_meanwhile_is_served(server: Server, folder: Path) -> None:
    module = folder / "xformd_shout.py"
    whole = module.read_text() + WRITES
    module.write_text(whole)
    logs(server, "not followed, because loading the plugin writes it: loads.log, tables.cache")
    settle(folder / "loads.log")
    for number in range(4):  # each of them is saved while the one before is loaded
        loads = (folder / "loads.log").read_bytes()
        module.write_text(whole.replace("(prefix + line", f"('{number}' + prefix + line"))
        wait_until(partial(has_grown, folder / "loads.log", loads))
    until(server, "3> owl")


def test_a_change_during_a_load_counts_unless_it_changes_nothing_or_comes_with_each_load(tmp_path: Path) -> None:
    saves = Saves()
    log, module = tmp_path / "log", tmp_path / "module.py"

    def is_saved(file: Path, content: str, *, is_amid_load: bool = True) -> bool:
        file.write_text(content)
        saves.note(str(file), is_amid_load=is_amid_load)
        return saves.take()

    assert [is_saved(module, str(each)) for each in range(9)] == [True] * 9
    assert not is_saved(module, "8")
    assert is_saved(module, "8", is_amid_load=False)
    assert [is_saved(log, str(each)) for each in range(5)] == [True, True, False, False, False]
    saves.note(str(log), is_amid_load=True)
    assert is_saved(module, "9")
    module.unlink()
    saves.note(str(module), is_amid_load=True)
    assert saves.take()
    assert not saves.take()


def test_a_file_with_another_name_for_each_load_does_not_load_the_plugin_for_ever(tmp_path: Path) -> None:
    saves = Saves()

    def loads() -> int:
        """Save the plugin, and return how often it is loaded: each load writes a file."""
        saves.note(str(tmp_path / "module.py"), is_amid_load=False)
        for number in range(9):
            if not saves.take():
                return number
            file = tmp_path / f"log-{time.time_ns()}"
            file.write_text("x")
            saves.note(str(file), is_amid_load=True)
        return 9

    assert [loads(), loads()] == [1 + LOADS_TO_BE_SURE] * 2


def has_grown(file: Path, before: bytes) -> bool:
    return file.read_bytes() != before


def settle(log: Path) -> None:
    """Wait until the plugin has not been loaded for a while."""
    seen = [(log.read_bytes(), time.monotonic())]

    def is_quiet() -> bool:
        if (now := log.read_bytes()) != seen[-1][0]:
            seen.append((now, time.monotonic()))
        return time.monotonic() > seen[-1][1] + 2

    wait_until(is_quiet)


def test_a_reload_that_fails_as_a_whole_leaves_the_next_one_prepared(folder: Path, tmp_path: Path) -> None:
    module = folder / "xformd_shout.py"
    whole = module.read_text()
    config = tmp_path / "xformd.toml"
    config.write_text('inline = ["shout"]\n')
    options = ("--no-browser", "--config", str(config), *HTTP, str(folder))
    with serving(tmp_path, *options, verb=("dev",), ready="following") as server:
        logs(server, "3 examples pass")
        before = {*children(server.process.pid)}
        edit(module, lambda _: whole + "def (\n")
        logs(server, "not reloaded: ")
        wait_until(lambda: len({*children(server.process.pid)} & before) == len(before) - 1)  # that one has ended
        wait_until(lambda: len(children(server.process.pid)) == len(before))
        edit(module, lambda _: whole)
        logs(server, "reloaded")


def test_the_project_file_is_followed_too(server: Server, folder: Path) -> None:
    project = folder / "pyproject.toml"
    whole = project.read_text()
    edit(project, lambda text: text.replace('version = "0.1.0"', 'version = "0.2.0"'))
    wait_until(lambda: '"0.2.0"' in ask(server, "/transforms/shout"))
    edit(project, lambda text: text + "[")
    logs(server, f"not reloaded: cannot read {project}: ")
    assert "cannot read" in ask(server, "/dev")
    assert shout(server) == "> owl"
    edit(project, lambda _: whole.replace('name = "xformd-shout"', 'name = "xformd-call"'))
    wait_until(lambda: "has another plugin now, or none: start 'xformd dev' again" in ask(server, "/dev"))
    assert shout(server) == "> owl"
    edit(project, lambda _: whole)
    wait_until(lambda: '"0.1.0"' in ask(server, "/transforms/shout"))


def test_a_folder_of_loose_files_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    file = folder / "verses.py"
    file.write_text("x = 1\n")
    with developing(tmp_path, folder) as server:
        assert server.greeting[-2].startswith("failed: plugin verses.py (verses): it implements no hook")
        file.write_text(LOOSE)
        until(server, "owl!")


def test_a_folder_without_a_plugin_is_refused(tmp_path: Path) -> None:
    done = xformd("dev", str(tmp_path))
    assert done.returncode == 78
    assert done.stderr.decode() == (
        f"xformd: bad-config: no plugin in {tmp_path}: it has no Python file, and no pyproject.toml with "
        "[project.entry-points.xformd]; 'xformd new NAME' makes one\n"
    )


def test_the_page_is_opened_once(folder: Path, tmp_path: Path) -> None:
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    browser.chmod(0o755)
    with serving(tmp_path, *HTTP, str(folder), verb=("dev",), ready="following", BROWSER=str(browser)) as server:
        wait_until(lambda: opened.exists() and opened.read_text().endswith("\n"))
        server.process.send_signal(signal.SIGHUP)
        logs(server, "reloaded")
        assert server.stop() == 0
        (link,) = opened.read_text().splitlines()
        assert link.startswith(f"{server.http}/#shout&poem=The%20Owl")
