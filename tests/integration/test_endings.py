"""Commands and servers end when they are done, whatever a plugin has left behind in their process."""

import json
from pathlib import Path

import pytest

from support.processes import serving, xformd

pytestmark = pytest.mark.slow

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
