"""Real packages for tests: written, built as wheels, and installed into a fresh virtual environment, all offline."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import attrs
import pytest

import xformd
from support import in_process
from xformd import cli

TIMEOUT_S = 60
"""Far more than any process here takes: only one that hangs gets there."""

VERSION = "1.2.3"
"""Of every package, unless it says otherwise."""


@attrs.frozen
class Package:
    """A Python package to be.

    Args:
        distribution: its name.
        entry_points: of the group ``xformd``: name to module.
        files: path to text, for each of its ``*.py`` files.
        version: its version.
    """

    distribution: str
    entry_points: Mapping[str, str]
    files: Mapping[str, str]
    version: str = VERSION

    @property
    def pyproject(self) -> str:
        """What its ``pyproject.toml`` says."""
        points = "".join(f'{name} = "{module}"\n' for name, module in self.entry_points.items())
        return (
            f'[project]\nname = "{self.distribution}"\nversion = "{self.version}"\n'
            f"[project.entry-points.xformd]\n{points}"
            '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
            "[tool.hatch.build]\nignore-vcs = true\n"
            '[tool.hatch.build.targets.wheel]\ninclude = ["*.py"]\n'
        )


@attrs.frozen
class Running:
    """A process that runs, and what it prints.

    Args:
        process: its standard output is a pipe.
    """

    process: subprocess.Popen[bytes]

    def read_until(self, enough: Callable[[str], bool]) -> str:
        """Read its standard output.

        Args:
            enough: says of all that was read whether that will do.

        Returns:
            All that was read.
        """
        assert self.process.stdout is not None
        output, printed, deadline = self.process.stdout.fileno(), b"", time.monotonic() + TIMEOUT_S
        while not enough(printed.decode(errors="replace")):
            ready, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(output, 65_536) if ready else b""
            assert data, f"it printed nothing more than {printed!r}"
            printed += data
        return printed.decode()

    def end(self, number: signal.Signals) -> int:
        """Send a signal.

        Args:
            number: which.

        Returns:
            The status with which the process ended.
        """
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


@attrs.frozen
class Environment:
    """A virtual environment with xformd in it.

    Args:
        folder: where it lies.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where its packages are installed."""
        return Path(sysconfig.get_path("purelib", "venv", {"base": str(self.folder)}))

    def command(self, *arguments: object) -> list[str]:
        """Give the command line of an xformd command."""
        return [str(self.python), "-m", "xformd", *map(str, arguments)]

    def xformd(
        self, *arguments: object, poem: str = "", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run an xformd command with this environment's packages, and see to it that no traceback comes of it.

        Args:
            *arguments: of the command.
            poem: its standard input.
            variables: what its environment has besides.

        Returns:
            Its exit status and its output.
        """
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

    @contextlib.contextmanager
    def start(self, *arguments: object) -> Iterator[Running]:
        """Start an xformd command, and see to it that it ends, and that no traceback comes of it.

        Args:
            *arguments: of the command.

        Yields:
            The running command.
        """
        with tempfile.TemporaryFile() as stderr:
            with subprocess.Popen(
                self.command(*arguments), stdout=subprocess.PIPE, stderr=stderr, cwd=self.folder, env=environ()
            ) as process:
                try:
                    yield Running(process)
                finally:
                    process.kill()
            stderr.seek(0)
            assert b"Traceback" not in stderr.read()


def environ() -> dict[str, str]:
    """Give the environment of a child process: this one's, coverage included, without a way past what is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def write(package: Package, folder: Path) -> Path:
    """Write a package's source.

    Args:
        package: which.
        folder: where its own folder is made.

    Returns:
        Its own folder.
    """
    root = folder / package.distribution
    root.mkdir(parents=True)
    for name, text in {"pyproject.toml": package.pyproject, **package.files}.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def build_wheel(root: Path, wheels: Path) -> Path:
    """Build a package's wheel, in this process.

    Args:
        root: the package's source.
        wheels: the folder to build into.

    Returns:
        The wheel.
    """
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="install hatchling to build packages")
    (built,) = wheel.WheelBuilder(str(root)).build(directory=str(wheels), versions=["standard"])
    return Path(built)


def create_environment(folder: Path) -> Environment:
    """Create a virtual environment that sees xformd and all else that the running environment has.

    Args:
        folder: where; it is made.

    Returns:
        The environment, with no package of its own.
    """
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
    """Install wheels with pip, all at once, from nowhere else.

    Args:
        environment: into which.
        wheels: the files.
    """
    pytest.importorskip("pip", reason="install pip to install packages")
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "--isolated", "--quiet"]
    options = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *options, *wheels], check=True, timeout=TIMEOUT_S, env=environ())
