"""A plugin that records each of its calls, servers with it, and caching proxies in front of them."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs

from support import packages
from support.packages import Environment, Package
from support.processes import Server, serving

MODULE = """
import os
import time
from pathlib import Path

import xformd

FOLDER = Path(os.environ["CALLS"])


def note(poem):
    with (FOLDER / "calls").open("a") as calls:
        print(len(poem), file=calls)


@xformd.transform(deterministic=True)
def counted(poem: bytes, *, gate: bool = False, seconds: float = 0.0) -> bytes:
    note(poem)
    while gate and not (FOLDER / "open").exists():
        time.sleep(0.005)
    time.sleep(seconds)
    return poem + b" {version}"


@xformd.transform
def fickle(poem: bytes) -> bytes:
    note(poem)
    return poem + b" %d" % time.monotonic_ns()


@xformd.transform(deterministic=True)
def refuses(poem: bytes) -> bytes:
    note(poem)
    raise xformd.GibberishError("this is no sonnet")


@xformd.hookimpl
def xformd_transforms():
    return [counted, fickle, refuses]
"""


def build(version: str, folder: Path) -> Path:
    """Build the wheel of a version of the plugin; its results end with the version."""
    files = {"xformd_counted.py": MODULE.replace("{version}", version)}
    package = Package("xformd-counted", {"counted": "xformd_counted"}, files, version)
    return packages.build_wheel(packages.write(package, folder), folder)


def install(version: str, folder: Path) -> Environment:
    """Install a version into a fresh environment."""
    environment = packages.create_environment(folder / "environment")
    packages.install(environment, [build(version, folder)])
    return environment


@attrs.frozen
class Counted:
    """A server with the plugin, and the folder where its transforms record their calls."""

    server: Server
    folder: Path

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def calls(self) -> int:
        """How often its transforms have been called."""
        notes = self.folder / "calls"
        return notes.read_text().count("\n") if notes.exists() else 0

    def open_gate(self) -> None:
        """Let the calls that wait at the gate finish."""
        (self.folder / "open").touch()


@contextlib.contextmanager
def counting(environment: Environment, folder: Path, *arguments: str) -> Iterator[Counted]:
    """Run a server with the plugin until the block ends."""
    own = Path(tempfile.mkdtemp(dir=folder))
    command = (str(environment.python), "-m", "xformd")
    flags = ("--plugins=xformd-counted", "--workers", "2", *arguments)
    with serving(own, *flags, command=command, CALLS=str(own)) as server:
        yield Counted(server, own)


@contextlib.contextmanager
def proxying(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a caching proxy until the block ends."""
    own = Path(tempfile.mkdtemp(dir=folder))
    with serving(own, *arguments, verb=("proxy",), ready="the transforms of") as server:
        yield server
