"""Completion in a real bash, at a terminal: what stands on the line once Tab was pressed."""

import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.processes import environment, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("bash") is None, reason="install bash"),
]

SHOUT = """
from pathlib import Path
import xformd
Path(__file__).with_suffix(".imported").touch()
print("noise")

@xformd.transform
def shout(poem: str) -> str:
    return poem

@xformd.hookimpl
def xformd_transforms():
    return [shout]
"""

# The command is a file for the completion's script and a function for the line that is typed.
RC = """
PS1=; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; bind 'set show-all-if-ambiguous off'
eval "$(_XFORMD_COMPLETE=bash_source xformd)"
nothing() { true; }
xformd() { printf '<%s>' "$@" > typed.new; mv typed.new typed; }
"""

Complete = Callable[..., str]


@pytest.fixture
def complete(tmp_path: Path) -> Complete:
    """Types a line and Tab; returns the words that bash then has."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "xformd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m xformd "$@"\n')
    command.chmod(0o755)
    (tmp_path / "rc").write_text(RC)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "shout.py").write_text(SHOUT)

    def complete(line: str, **variables: str) -> str:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        ours, theirs = pty.openpty()
        shell = subprocess.Popen(
            ["bash", "--noprofile", "--rcfile", "rc", "-i"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            start_new_session=True,
            env=environment({"PATH": path, "TERM": "dumb", "HISTFILE": "", **variables}),
        )
        os.close(theirs)
        try:
            os.write(ours, f"{'' if 'xformd' in line.split() else 'xformd '}{line}\t\n".encode())
            wait_until((tmp_path / "typed").exists)
            return (tmp_path / "typed").read_text()
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            os.close(ours)
            (tmp_path / "typed").unlink(missing_ok=True)

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run cumm", "<run><cummingsify>"),
        ("run upper+tri", "<run><upper+trim>"),
        ("send wrap:width=4+upp", "<send><wrap:width=4+upper>"),
        ("run wrap:width=4,indent=2+upp", "<run><wrap:width=4,indent=2+upper>"),
        ("run -o width=4 wra", "<run><-o><width=4><wrap>"),
        ("run 'indent:prefix=> +upp", "<run><indent:prefix=> +upper>"),
        ("nothing | xformd run upp", "<run><upper>"),
        ("run --plugins=none upp", "<run><--plugins=none><upper>"),
    ],
)
def test_a_word_is_completed_where_the_cursor_is(complete: Complete, line: str, words: str) -> None:
    assert complete(line) == words


@pytest.mark.parametrize(
    ("line", "variables", "finds"),
    [
        ("run --plugins-dir loose sho", {}, True),
        ("run --plugins-dir=loose sho", {}, True),
        ("send sho", {"XFORMD_PLUGINS_DIR": "loose"}, True),
        ("run --config xformd.toml sho", {}, True),
        ("send sho", {"XFORMD_CONFIG": "xformd.toml"}, True),
        ("run --plugins-dir loose --block shout sho", {}, False),
        ("run --plugins-dir loose sho", {"XFORMD_BLOCK": "shout"}, False),
        ("run --plugins-dir=nowhere sho", {}, False),
    ],
)
def test_completion_loads_what_is_selected_and_never_what_is_blocked(
    complete: Complete, tmp_path: Path, line: str, variables: dict[str, str], finds: bool
) -> None:
    (tmp_path / "xformd.toml").write_text('plugins_dir = ["loose"]\n')
    assert complete(line, **variables).endswith("<shout>" if finds else "<sho>")
    assert (tmp_path / "loose" / "shout.imported").exists() == finds


@pytest.mark.usefixtures("complete")
def test_nothing_that_a_plugin_prints_gets_onto_the_line(tmp_path: Path) -> None:
    line = "xformd run --plugins-dir loose sho"
    variables = {"_XFORMD_COMPLETE": "bash_complete", "COMP_WORDS": line.replace(" ", "\n"), "COMP_CWORD": "4"}
    command = [tmp_path / "bin" / "xformd"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(variables), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"plain,shout\n", b"")
