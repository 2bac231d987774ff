"""What is installed, told without importing any of it."""

import platform
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest

from support.processes import xformd
from xformd import __version__
from xformd.plugins import discovery
from xformd.plugins.discovery import Candidate

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def refuse() -> NoReturn:
    raise AssertionError("it must not be imported")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command where two packages with plugins are installed, one of them with two."""
    plugins = [
        ("resize", "xformd-images", "1.2.3"),
        ("thumbs", "xformd-images", "1.2.3"),
        ("shout", "shout\x1b", "0.1"),
    ]
    found = [
        Candidate(name=name, distribution=distribution, version=number, source=f"{name}_module:plugin", load=refuse)
        for name, distribution, number in plugins
    ]
    monkeypatch.setattr(discovery, "installed", lambda: found)
    return xformd


def test_plugins_are_listed_with_what_becomes_of_them(run: Run) -> None:
    shown = run("plugins", "--plugins", "xformd-images", "--block", "thumbs").stdout.decode().splitlines()
    assert shown[0].split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "SOURCE", "STATE"]
    assert [line.split(maxsplit=4) for line in shown if "_module" in line] == [
        ["resize", "xformd-images", "1.2.3", "resize_module:plugin", "selected"],
        ["thumbs", "xformd-images", "1.2.3", "thumbs_module:plugin", "blocked by the setting 'block'"],
        ["shout", "shout\ufffd", "0.1", "shout_module:plugin", "not selected by the setting 'plugins'"],
    ]


def test_what_to_pin_is_each_selected_distribution_with_its_version(run: Run, tmp_path: Path) -> None:
    (tmp_path / "polite.py").touch()
    chosen = ("--plugins", "xformd-images", "--plugins-dir", str(tmp_path))
    assert run("plugins", "--requirements", *chosen).stdout.decode().split() == [
        f"xformd=={__version__}",
        "xformd-images==1.2.3",
    ]
    pinned = run("plugins", "--requirements", *chosen).stdout.decode().split()
    assert run("plugins", *(word for each in pinned for word in ("--require", each))).returncode == 0


def test_what_is_required_and_not_there_is_told_after_the_list(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "xformd.toml"
    file.write_text('require = ["xformd-images==1.3.*"]')
    done = run("plugins", "--config", str(file))
    assert done.returncode == 78
    assert b"xformd-images  1.2.3" in done.stdout
    assert done.stderr.decode().splitlines() == [
        "xformd: xformd-images==1.3.*: version 1.2.3 is installed; run: pip install 'xformd-images==1.3.*'",
        f"xformd: bad-config: {file}, line 1: require: what is installed is not what is required",
    ]


def test_a_server_does_not_start_without_what_is_required(run: Run) -> None:
    done = run("serve", "--port", "0", "--workers", "0", "--require", "xformd-images==1.3.*", "--require", "xformd<0")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (78, b"", 3)


def test_the_version_has_those_of_python_twisted_and_plugins(run: Run) -> None:
    assert run("--version").stdout.decode().splitlines() == [
        f"xformd {__version__}",
        f"Python {platform.python_version()}",
        f"Twisted {version('twisted')}",
        "xformd-images 1.2.3",
        "shout\ufffd 0.1",
    ]
