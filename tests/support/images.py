"""The image of docs/deploy, built and run by podman, or by the steps of its Dockerfile in namespaces of this machine.

The steps take this machine's own files for the base: each stage is an overlay on them, where nothing lasts. Either way
pip gets wheels from a folder, and what runs has no network but its own loopback.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Literal

import attrs
import pytest
from packaging.requirements import Requirement

from support import packages
from support.processes import DEADLINE_S, Server, stop

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docs" / "deploy" / "Dockerfile").read_text()
SHOUT = ROOT / "plugins-example" / "xformd-shout"
BASE = "localhost/xformd-base"
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER = 54_321
"""Of no file and no line in /etc/passwd."""

Builder = Literal["podman", "steps"]

_PODMAN = ("podman", "--cgroup-manager=cgroupfs", *(["--runtime=runc"] if shutil.which("runc") else ()))
_SPACES = ("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
_CONFINED = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"),
)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return each instruction of a Dockerfile with its argument."""
    text = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def variables(dockerfile: str = DOCKERFILE) -> dict[str, str]:
    """Return what the last stage sets in the environment."""
    stage = instructions(dockerfile[dockerfile.rindex("\nFROM ") :])
    own = dict(word.split("=", 1) for name, argument in stage if name == "ENV" for word in shlex.split(argument))
    return {name: value.replace("$PATH", BASE_PATH) for name, value in own.items()}


def words(name: str) -> list[str]:
    """Return the words of an instruction in JSON, such as ENTRYPOINT."""
    (argument,) = (argument for each, argument in instructions(DOCKERFILE) if each == name)
    found: list[str] = json.loads(argument[argument.index("[") :])
    return found


def own_lines() -> str:
    """Return the lines that add plugins to the image, as the Dockerfile itself shows them, with one that there is."""
    shown = re.search(r"(?:^#   \w.*\n)+(?=\nARG)", DOCKERFILE, re.MULTILINE)
    assert shown is not None
    return re.sub(r"xformd-images==\S+", "xformd-shout==0.1.0", shown[0].replace("#   ", ""))


@attrs.define
class Image:
    """The image with a plugin, to be run.

    Args:
        builder: what builds it and runs it.
        folder: has the wheels, and the log.
    """

    builder: Builder
    folder: Path

    @contextmanager
    def running(self, **extra: str) -> Iterator["Container"]:
        """Run it as its own entry point says, with ``extra`` variables, until the block ends."""
        command = self._with_podman(extra) if self.builder == "podman" else self._with_steps(extra)
        log = self.folder / "container.log"
        with log.open("wb") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr) as process:
            try:
                yield Container(self.builder, Server(process, log), extra)
            finally:
                stop(process)

    def _with_podman(self, extra: dict[str, str]) -> list[str]:
        (self.folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        mounts = [f"--volume={self.folder}/pip.conf:/etc/pip.conf:ro", f"--volume={self.folder}/wheels:/wheels:ro"]
        build = [*_PODMAN, "build", "--quiet", "--format=docker", "--isolation=chroot", "--pull=never", *mounts]
        for tag, source in (("xformd", DOCKERFILE), ("xformd-with-plugins", own_lines())):
            arguments = [f"--build-arg=BASE={BASE}", f"--tag={tag}", "--file=-", str(ROOT)]
            subprocess.run([*build, *arguments], input=source.encode(), check=True, timeout=3 * DEADLINE_S)
        confined = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        given = [f"--env={name}={value}" for name, value in extra.items()]
        # What podman would raise, or ask systemd for, not every machine has.
        modest = ["--ulimit=nofile=1024:4096", "--ulimit=nproc=4096:4096", "--no-healthcheck"]
        start = [*_PODMAN, "run", "--rm", "--replace", "--name=xformd-test", "--network=none", f"--user={USER}:{USER}"]
        return [*start, *modest, *confined, *given, "xformd-with-plugins"]

    def _with_steps(self, extra: dict[str, str]) -> list[str]:
        layers = self.folder / "layers"
        layers.mkdir()
        script = [f"set -e; ip link set lo up; cd {layers}; mount -t tmpfs none ."]
        script += _Steps(layers, f"PIP_NO_INDEX=1 PIP_FIND_LINKS={self.folder}/wheels").script()
        root = f"{layers}/3/root"
        script += [f"rm -f {root}/usr/bin/sh {root}/usr/bin/dash {root}/usr/bin/bash"]  # it needs none
        script += [f"mount -o remount,ro {root}", *(f"mount --rbind /{each} {root}/{each}" for each in ("dev", "sys"))]
        script += [f"mount -t proc none {root}/proc", f"mount -t tmpfs none {root}/dev/shm; chmod 1777 {root}/dev/shm"]
        entry = [*words("ENTRYPOINT"), *words("CMD")]
        script += [f"exec chroot {root} {shlex.join(_as_in_the_image(extra, entry))}"]
        return [*_SPACES, "sh", "-c", "\n".join(script)]


def _as_in_the_image(extra: dict[str, str], command: Sequence[str]) -> list[str]:
    given = {**variables(), **extra}
    return [*_CONFINED, "env", "-i", *(f"{name}={value}" for name, value in given.items()), *command]


class _Steps:
    """Writes the script that carries out both Dockerfiles; each stage has a folder with its number."""

    def __init__(self, layers: Path, environment: str) -> None:
        self._layers = layers
        self._stages: dict[str, int] = {}
        self._number = 0
        self._workdir = "/"
        self._python = Path(sys.executable).resolve()
        self._environment = f"PATH={self._python.parent}:{BASE_PATH} {environment}"

    def script(self) -> list[str]:
        lines = [line for name, argument in instructions(DOCKERFILE) for line in self._step(name, argument)]
        self._stages["xformd"] = self._number
        self._environment += "".join(f" {name}={shlex.quote(value)}" for name, value in variables().items())
        return lines + [line for name, argument in instructions(own_lines()) for line in self._step(name, argument)]

    def _step(self, name: str, argument: str) -> list[str]:
        root = f"{self._layers}/{self._number}/root"
        if name == "FROM":
            return self._from(*argument.split())
        if name == "WORKDIR":
            self._workdir = argument
            return [f"mkdir -p {root}{argument}"]
        if name == "COPY":
            return self._copy(root, *argument.split())
        if name == "RUN":
            command = f"cd {self._workdir}; {argument}"
            return [f"chroot {root} env -i {self._environment} sh -e -c {shlex.quote(command)}"]
        return []

    def _from(self, base: str, *name: str) -> list[str]:
        below = f"{self._layers}/{self._stages[base]}/upper:/" if base in self._stages else "/"
        self._number += 1
        self._workdir = "/"
        if name:
            self._stages[name[1]] = self._number
        folder = f"{self._layers}/{self._number}"
        options = f"lowerdir={below},upperdir={folder}/upper,workdir={folder}/work"
        return [
            f"mkdir -p {folder}/upper {folder}/work {folder}/root",
            f"mount -t overlay overlay -o {options} {folder}/root",
            *(f"chmod a+x {folder}/root{parent}" for parent in self._python.parents[:-1]),  # it may be root's own
        ]

    def _copy(self, root: str, *arguments: str) -> list[str]:
        *sources, target = arguments
        top = str(ROOT)
        if sources[0].startswith("--from="):
            top = f"{self._layers}/{self._stages[sources.pop(0).removeprefix('--from=')]}/root"
        there = f"{root}{target}" if target.startswith("/") else f"{root}{self._workdir}/{target}"
        return [
            f"if [ -d {top}/{each} ]; then mkdir -p {there}; cp -a {top}/{each}/. {there}; "
            f"else cp {top}/{each} {there}; fi"
            for each in sources
        ]


@attrs.frozen
class Container:
    """A running container."""

    builder: Builder
    server: Server
    extra: dict[str, str]

    @property
    def first(self) -> int:
        """The first process of the container, by its number on this machine; of the steps alone."""
        pid = self.server.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def run(self, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a command in it, to its end."""
        if self.builder == "podman":
            whole = [*_PODMAN, "exec", "--interactive", "xformd-test", *command]
        else:
            spaces = ("--mount", "--pid", "--net", "--ipc", "--uts", "--root", "--wd")
            inside = _as_in_the_image(self.extra, command)
            whole = ["nsenter", f"--target={self.first}", *spaces, *inside]
        return subprocess.run(whole, input=stdin, capture_output=True, timeout=DEADLINE_S, check=False)

    def end(self) -> int:
        """Ask it to stop; return its exit status."""
        if self.builder == "podman":
            subprocess.run([*_PODMAN, "kill", "--signal=TERM", "xformd-test"], check=True, capture_output=True)
        else:
            subprocess.run(["kill", str(self.first)], check=True)
        return self.server.process.wait(DEADLINE_S)


def make_image(builder: Builder, folder: Path) -> Image:
    """Prepare an image, or skip the test and say what to install."""
    if builder == "podman":
        if not shutil.which("podman"):
            pytest.skip("install podman to build the image")
        if subprocess.run(["podman", "image", "exists", BASE], check=False, timeout=DEADLINE_S).returncode:
            made = "debootstrap --variant=minbase --include=python3-venv stable FOLDER"
            pytest.skip(f"needs a base: {made}; tar -C FOLDER -c . | podman import - {BASE}")
    elif subprocess.run([*_SPACES, "true"], capture_output=True, check=False).returncode or not shutil.which("ip"):
        pytest.skip("needs namespaces of its own: run as root, with iproute2 installed")
    locked = ("--constraint", str(ROOT / "requirements" / "dev.txt"))
    extras = DOCKERFILE.partition("'.[")[2].partition("]")[0].split(",")
    needed = [
        str(each).partition(";")[0]
        for each in map(Requirement, requires("xformd") or ())
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    packages.download(folder / "wheels", *locked, *needed, "hatchling")
    packages.build_wheel(SHOUT, folder / "wheels")
    return Image(builder, folder)
