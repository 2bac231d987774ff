"""Whatever a name holds that a file, a plugin, a server or an argument brings, no terminal heeds it."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.lying import PLUGIN, TRANSFORM, lies
from support.poems import Peer, peer, sends
from support.processes import xformd
from support.registries import plugin_of
from xformd.net import run
from xformd.plugins.registry import Conflict, Registry

EVIL = "\x1b[31m\x1b]0;owned\x07\r\nforged line\x9b2J\x7f\u202e\u2028end"
"""Colours, a window's title, a line of its own, C1, DEL, the other direction."""

SOURCE = f"""
import xformd
@xformd.transform(examples=[("a", {EVIL!r})])
def owl(poem: str, *, how: str = {EVIL!r}) -> str:
    {EVIL!r}
    raise xformd.GibberishError({EVIL!r})
@xformd.hookimpl
def xformd_transforms():
    return [owl]
"""

LISTING = {
    "transforms": [
        {**TRANSFORM, "summary": EVIL, "distribution": EVIL, "version": EVIL},
        {**TRANSFORM, "options": [{"name": EVIL, "type": EVIL, "required": True}], "state": "quarantined"},
    ],
    "plugins": [
        {**PLUGIN, "name": EVIL, "distribution": EVIL, "version": EVIL, "state": EVIL, "reason": EVIL},
        {**PLUGIN, "name": EVIL, "state": "failed"},
    ],
    "conflicts": [{"name": EVIL, "distributions": [EVIL], "winner": None, "preferred": False, "message": EVIL}],
}


def assert_harmless(*texts: bytes, says: str = "") -> None:
    """Check that nothing is left that a terminal interprets, and that no name has made a line."""
    shown = b"".join(texts).decode()
    assert says in shown
    for line in shown.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith("forged"), shown


def run_harmless(*arguments: str, says: str = "end", status: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = xformd(*arguments)
    assert done.returncode == status, done.stderr
    assert_harmless(done.stdout, done.stderr, says=says)
    return done


@pytest.fixture(scope="module")
def liar() -> Iterator[Peer]:
    """A server with such words everywhere."""
    with peer(lies(LISTING, b"gibberish." + EVIL.encode(), server=EVIL, missing=EVIL)) as running:
        yield running


def test_what_a_server_says_of_itself_and_of_its_transforms(liar: Peer) -> None:
    run_harmless("ping", "--server", liar.address)
    run_harmless("list-transforms", "--server", liar.address, says="forged line")
    done = run_harmless("list-transforms", "--json", "--server", liar.address)
    assert json.loads(done.stdout)["transforms"][0]["summary"] == EVIL
    misnamed = {**LISTING, "transforms": [{**TRANSFORM, "name": EVIL}]}
    with peer(lies(misnamed, b"ok.", server=EVIL, missing=EVIL)) as server:
        run_harmless("list-transforms", "--server", server.address, says="invalid name", status=76)


def test_what_a_server_says_of_a_poem_and_no_byte_of_a_result_is_changed(liar: Peer, tmp_path: Path) -> None:
    (file := tmp_path / f"{EVIL}.txt").write_bytes(EVIL.encode())
    run_harmless("send", "owl", str(file), str(file), "--server", liar.address, status=65)
    run_harmless("send", "owl", str(tmp_path / EVIL), str(file), "--server", liar.address, status=66)
    run_harmless("send", f"owl:{EVIL}=1", str(file), "--server", liar.address, status=64)
    with peer(lies(LISTING, b"ok." + EVIL.encode())) as honest:
        assert xformd("send", "owl", str(file), "--server", honest.address).stdout == EVIL.encode()
    with peer(sends(EVIL.encode())) as poems:
        done = xformd("poem", "get", poems.address, f"unix:/{EVIL}", "--transform", "owl", "--via", liar.address)
    assert done.stdout == EVIL.encode()
    assert_harmless(done.stderr, says="connection-failed")


@pytest.fixture
def selection(tmp_path: Path) -> tuple[str, ...]:
    """What selects two loose files with such names: one has a transform, and one fails."""
    (folder := tmp_path / EVIL).mkdir()
    (folder / f"good{EVIL}.py").write_text(SOURCE)
    (folder / f"bad{EVIL}.py").write_text(f"raise ValueError({EVIL!r})")
    return ("--plugins=none", "--plugins-dir", str(folder))


def test_a_loose_file_with_such_a_name_is_checked(selection: tuple[str, ...]) -> None:
    run_harmless("check", *selection, says="FAILED  plugin bad", status=1)


@pytest.mark.slow
def test_a_loose_file_with_such_a_name_is_listed_and_run(selection: tuple[str, ...]) -> None:
    run_harmless("list-transforms", *selection, says="failed: plugin bad")
    run_harmless("run", *selection, "owl", says="gibberish", status=65)
    run_harmless("run", *selection, "nosuch", says="failed: import of bad", status=66)


def test_settings_are_shown_as_toml(selection: tuple[str, ...]) -> None:
    written = run_harmless("config", *selection, says="plugins_dir").stdout.decode()
    (value,) = re.findall(r'^plugins_dir = \["(.*)"\]$', written, re.M)
    assert "\\U0000202e" in value


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            (f"--{EVIL}",),
            (EVIL,),
            ("ping", EVIL),
            ("send", f"--{EVIL}", "owl"),
            ("poem", EVIL),
            ("ping", "--wait", EVIL),
        ),
        *(("serve", "--port", EVIL), ("run", "owl", "-o", EVIL), ("run", "owl", "--encoding", EVIL)),
    ],
)
def test_arguments_that_a_complaint_quotes(arguments: tuple[str, ...]) -> None:
    run_harmless(*arguments, status=2, says="Error: ")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("ping", "--server", f"unix:/{EVIL}"), 69),
        (("ping", "--server", EVIL), 78),
        (("serve", "--max-queue", EVIL), 78),
        (("serve", "--config", f"/{EVIL}"), 78),
        (("serve", "--block", EVIL), 78),
        (("poem", "serve", f"/{EVIL}"), 78),
        (("run", "--plugins-dir", f"/{EVIL}", "owl"), 78),
    ],
)
def test_addresses_and_settings_that_an_error_quotes(arguments: tuple[str, ...], status: int) -> None:
    run_harmless(*arguments, status=status, says="xformd: ")


def test_what_servers_greet_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = plugin_of(name=EVIL, distribution=EVIL, version=EVIL, state="failed", reason=EVIL)
    registry = Registry({}, (failed,), (Conflict(EVIL, (failed, failed), failed),))

    def greets(_: object, greet: Callable[..., Any], announce: Callable[[str], None]) -> None:
        for line in greet(SimpleNamespace(registry=registry), (f"unix:/{EVIL}",)):
            announce(line)

    monkeypatch.setattr(run, "run_server", greets)
    monkeypatch.setattr(run, "prepare_to_serve", lambda *_: None)
    (file := tmp_path / EVIL).touch()
    for arguments in (("serve",), ("poem", "serve", str(file)), ("proxy", f"unix:/{EVIL}"), ("poem", "proxy", EVIL)):
        run_harmless(*arguments, says="listening on unix:/")
