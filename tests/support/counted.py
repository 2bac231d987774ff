"""A plugin that records each of its calls, servers with it, and caching proxies in front of them."""

import contextlib
import itertools
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
    if gate:
        (FOLDER / "ended").touch()
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

_numbers = itertools.count()


def package(version: str) -> Package:
    """Return the package of a version of the plugin; its results end with the version."""
    module = MODULE.replace("{version}", version)
    return Package("xformd-counted", {"counted": "xformd_counted"}, {"xformd_counted.py": module}, version)


def build(version: str, folder: Path) -> Path:
    """Build the wheel of a version."""
    return packages.build_wheel(packages.write(package(version), folder), folder)


def install(version: str, folder: Path) -> Environment:
    """Install a version into a fresh environment."""
    environment = packages.create_environment(folder / "environment")
    packages.install(environment, [build(version, folder)])
    return environment


@attrs.frozen
class Counted:
    """A server with the plugin.

    Args:
        server: the server.
        folder: where its transforms record their calls.
    """

    server: Server
    folder: Path

    @property
    def address(self) -> str:
        """Where it listens."""
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
    own = folder / f"counted-{next(_numbers)}"
    own.mkdir()
    command = (str(environment.python), "-m", "xformd")
    flags = () if "--workers" in arguments else ("--workers", "2")
    with serving(own, "--plugins=xformd-counted", *flags, *arguments, command=command, CALLS=str(own)) as server:
        yield Counted(server, own)


@contextlib.contextmanager
def proxying(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run a caching proxy until the block ends."""
    own = folder / f"proxy-{next(_numbers)}"
    own.mkdir()
    with serving(own, *arguments, verb=("proxy",), ready="the transforms of") as server:
        yield server
