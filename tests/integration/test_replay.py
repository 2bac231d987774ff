"""``xformd serve --record`` and ``xformd replay``: an upgrade is tried on what was asked before."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Server, serving, wait_until, xformd

pytestmark = pytest.mark.slow

PLUGIN = """
import xformd


@xformd.transform
def shout(poem: str) -> str:
    if poem.startswith("no"):
        raise xformd.GibberishError("it is a refusal")
    return poem.upper() + "{mark}"


@xformd.transform
def pack(poem: bytes) -> bytes:
    return b"\\xff{mark}" + poem


@xformd.hookimpl
def xformd_transforms():
    return [shout, pack]
"""


def write(folder: Path, mark: str) -> tuple[str, ...]:
    """Write a version of the plugin; return the flags that select it alone."""
    folder.mkdir(exist_ok=True)
    (folder / "shout.py").write_text(PLUGIN.replace("{mark}", mark))
    return "--plugins", "none", "--plugins-dir", str(folder)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with the old version, and the folder in which it records what is asked."""
    folder = tmp_path_factory.mktemp("old")
    record = folder / "record"
    keeps = "--record", str(record), "--record-sample", "1", "--record-only", "shout", "--record-max-bytes", "20000"
    with serving(folder, *write(folder / "plugins", "!"), *keeps) as server:
        yield server, record


def replay(folder: Path, spec: str, *arguments: str) -> tuple[int, list[str], str]:
    done = xformd("replay", str(folder), spec, *arguments)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def test_a_server_keeps_poems_up_to_a_limit_and_answers_as_ever(old: tuple[Server, Path]) -> None:
    server, record = old
    assert xformd("send", "shout", "--server", server.address, stdin=b"owl").stdout == b"OWL!"
    assert xformd("send", "pack", "--server", server.address, stdin=b"owl").returncode == 0
    assert xformd("send", "shout", "--server", server.address, stdin=b"no").returncode == 65
    wait_until(lambda: len([*(record / "shout").iterdir()]) == 2)
    assert {file.read_bytes() for file in (record / "shout").iterdir()} == {b"owl", b"no"}
    assert [path.name for path in record.iterdir()] == ["shout"]
    wait_until(lambda: "records 100.00% of the poems for shout" in server.log)
    assert xformd("send", "shout", "--server", server.address, stdin=b"x" * 4000).stdout == b"X" * 4000 + b"!"
    wait_until(lambda: "records no more" in server.log)
    status, lines, _ = replay(record / "shout", "shout", "--old", server.address, "--new", server.address)
    assert (status, lines[0].partition(";")[0]) == (0, "2 of 2 results are the same")


def test_what_differs_from_this_environment_is_shown(old: tuple[Server, Path], tmp_path: Path) -> None:
    server, _ = old
    poems = tmp_path / "poems"
    poems.mkdir()
    (poems / "a").write_text("owl\npussy-cat")
    (poems / "b").write_text("no")
    new = write(tmp_path / "plugins", "?")
    status, lines, stderr = replay(poems, "shout", "--old", server.address, *new)
    assert (status, stderr) == (1, "")
    first, *rest, last = lines
    assert first.startswith(f"{poems}/a: differs (")
    shown = [f"  --- {server.address}", "  +++ here", "  @@ -1,2 +1,2 @@", "   OWL", "  -PUSSY-CAT!", "  +PUSSY-CAT?"]
    assert rest == shown
    assert last.startswith("1 of 2 results are the same; median time ")
    status, lines, _ = replay(poems, "pack", "--old", server.address, *write(tmp_path / "plugins", "??"))
    sizes = ["  - 15 bytes of application/octet-stream", "  + 16 bytes of application/octet-stream"]
    assert (status, lines[1:3]) == (1, sizes)


def test_mistakes_are_told(old: tuple[Server, Path], tmp_path: Path) -> None:
    server, _ = old
    assert replay(tmp_path, "shout", "--old", server.address, "--plugins", "none")[0] == 66
    (tmp_path / "poem").write_text("owl")
    assert "Missing option '--old'" in replay(tmp_path, "shout")[2]
    status, _, stderr = replay(tmp_path, "shout", "--old", "127.0.0.1:1", "--new", server.address)
    assert (status, stderr.count("\n")) == (69, 1)
