"""Real packages for tests: written, built as wheels, and installed into a fresh virtual environment, all offline."""

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs
import pytest

import xformd
from support import in_process
from xformd import cli

TIMEOUT_S = 120
"""Far more than any process here takes: only one that hangs gets there."""

VERSION = "1.2.3"
"""Of every package, unless it says otherwise."""


@attrs.frozen
class Package:
    """A Python package: its entry points of the group ``xformd``, and the text of each ``*.py`` file."""

    distribution: str
    entry_points: Mapping[str, str]
    files: Mapping[str, str]
    version: str = VERSION

    @property
    def pyproject(self) -> str:
        points = "".join(f'{name} = "{module}"\n' for name, module in self.entry_points.items())
        return (
            f'[project]\nname = "{self.distribution}"\nversion = "{self.version}"\n'
            f"[project.entry-points.xformd]\n{points}"
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            "[tool.hatch.build]\nignore-vcs = true\n"
            '[tool.hatch.build.targets.wheel]\ninclude = ["*.py"]\n'
        )


@attrs.frozen
class Environment:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))

    def xformd(
        self, *arguments: object, poem: str = "", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run an xformd command with this environment's packages; ``variables`` add to its environment variables."""
        done = in_process.run(
            cli.main.main,
            [*map(str, arguments)],
            stdin=poem.encode(),
            environment=environ() | dict(variables or {}),
            site_packages=self.site_packages,
        )
        stdout, stderr = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in stderr
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def environ() -> dict[str, str]:
    """Return this process's environment, without a way past what is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def write(package: Package, folder: Path) -> Path:
    """Write a package's source into a new folder inside this one, and return that."""
    root = folder / package.distribution
    root.mkdir(parents=True)
    for name, text in {"pyproject.toml": package.pyproject, **package.files}.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def build_wheel(root: Path, wheels: Path) -> Path:
    """Build the wheel of the package at ``root`` into the folder ``wheels``, in this process."""
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="install hatchling to build packages")
    (built,) = wheel.WheelBuilder(str(root)).build(directory=str(wheels), versions=["standard"])
    return Path(built)


def create_environment(folder: Path) -> Environment:
    """Create a virtual environment that sees xformd and everything in the running environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    environment = Environment(folder)
    # The xformd that is tested comes first; it may lie in a checkout. Then the packages: were their folder a line
    # of its own, it would be searched, but the .pth files in it (editable installs, coverage) would not be read.
    site = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [str(Path(xformd.__file__).parents[1])]
    lines += [f"import site; site.addsitedir({path!r})" for path in sorted(site)]
    (environment.site_packages / "running_environment.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return environment


def install(environment: Environment, wheels: Iterable[Path]) -> None:
    """Install these wheels with pip, all at once, and no other."""
    pytest.importorskip("pip", reason="install pip to install packages")
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "--isolated", "--quiet"]
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, *wheels], check=True, timeout=TIMEOUT_S, env=environ())


def download(folder: Path, *requirements: str) -> None:
    """Put what these need into a folder, as wheels, for a machine without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder), *requirements]
    subprocess.run(command, check=True, timeout=5 * TIMEOUT_S, env=environ())
