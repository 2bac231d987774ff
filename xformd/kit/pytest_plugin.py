"""The pytest plugin: each example is a test with ``pytest --xformd``, and fixtures run transforms on a real server.

It is imported by every pytest where xformd is installed, so it imports what it needs when it is used.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xformd.plugins.definition import Example, Transform
    from xformd.plugins.registry import Registry

STOP_TIMEOUT_S = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--xformd`` and the setting ``xformd_plugins``."""
    group = parser.getgroup("xformd", "transforms of xformd")
    group.addoption("--xformd", action="store_true", help="run each example of the plugin's transforms as a test")
    what = "the distributions under test; by default the one that pyproject.toml names"
    parser.addini("xformd_plugins", what, type="linelist", default=[])


@pytest.hookimpl(tryfirst=True)  # so that -k and the like see the examples too
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each example."""
    if not config.getoption("--xformd"):
        return
    for transform in _transforms(_registry(config), _distributions(config)):
        items.extend(
            _ExampleTest.from_parent(session, name=_call(transform, example), of=(transform, example))
            for example in transform.examples
        )


class XformdServer:
    """A server with the plugins under test, in a process of its own.

    Attributes:
        address: where it listens for netstrings, as ``127.0.0.1:PORT``.
        http: the address of its HTTP API.
    """

    def __init__(self, distributions: list[str]) -> None:
        from xformd.blocking import TransformClient

        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by ``stop``
        # The plugins' settings may be in the environment; the server's own are the defaults.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("XFORMD_") or "PLUGIN_" in name
        }
        command = ["serve", "--port", "0", "--http", "tcp:0:interface=127.0.0.1", "--workers", "1", "--strict"]
        command += ["--plugins", ",".join(distributions)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xformd", *command], stdout=subprocess.PIPE, stderr=self._log, env=kept
        )
        assert self._process.stdout is not None
        greeting: list[str] = []
        for line in self._process.stdout:
            greeting.append(line.decode().strip())
            if "transforms from" in greeting[-1]:
                break
        else:
            self.stop()
            raise pytest.UsageError(f"xformd serve did not start: {self.log}")
        addresses = [line.rpartition(" ")[2] for line in greeting if " listening on " in line]
        self.address, self.http = addresses[0], addresses[1]
        self._client = TransformClient(self.address)
        self._kinds = {each["name"]: each["result_kind"] for each in self._client.list_transforms()["transforms"]}

    @property
    def log(self) -> str:
        """What it has logged so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def xform(self, transform: str, poem: str | bytes, /, **options: Any) -> Any:
        """Send a poem; return a ``str`` or ``bytes``, whichever the (last) transform gives, or raise its error."""
        from xformd import spec
        from xformd.errors import TransformFailed, XformError

        __tracebackhide__ = True  # the test failed, not this
        sent = poem.encode() if isinstance(poem, str) else poem
        built = spec.build(transform, options)  # an option may be called as an argument of the client is
        try:
            result = self._client.xform(str(built), sent)
        except XformError as error:
            if isinstance(error, TransformFailed):
                error.add_note(f"'xformd run --traceback {transform}' with this poem shows the rest")
            raise error.with_traceback(None) from None
        return result.decode() if self._kinds.get(built.last) == "text" else result

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate(timeout=STOP_TIMEOUT_S)


_SERVER = pytest.StashKey[XformdServer]()


@pytest.fixture(scope="session")
def xformd_server(pytestconfig: pytest.Config) -> XformdServer:
    """Return a server with the plugins under test."""
    return _server(pytestconfig)


@pytest.fixture(scope="session")
def xform(xformd_server: XformdServer) -> Any:
    """Return what calls a transform as its callers do: ``xform("wrap", "The Owl", width=40)``.

    Options are converted, limits hold and errors are raised as everywhere: ``xformd.BadOptions`` and so on.
    """
    return xformd_server.xform


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the server."""
    if (server := config.stash.get(_SERVER, None)) is not None:
        server.stop()


def _server(config: pytest.Config) -> XformdServer:
    if (server := config.stash.get(_SERVER, None)) is None:
        server = config.stash[_SERVER] = XformdServer(_distributions(config))
    return server


def _distributions(config: pytest.Config) -> list[str]:
    named: list[str] = config.getini("xformd_plugins")
    if named:
        return named
    try:
        return [tomllib.loads((config.rootpath / "pyproject.toml").read_text())["project"]["name"]]
    except (OSError, ValueError, KeyError):
        why = f"no pyproject.toml in {config.rootpath} names the plugin: set xformd_plugins in pytest's settings"
        raise pytest.UsageError(f"xformd: {why}") from None


def _registry(config: pytest.Config) -> "Registry":
    """Return the plugins under test, imported in this process."""
    from xformd.errors import ConfigError
    from xformd.plugins import loader
    from xformd.plugins.selection import Selection

    names = _distributions(config)
    try:
        registry = loader.load(Selection(distributions=frozenset(names), strict=True))
    except ConfigError as error:
        details = "; ".join([*error.details, error.message])
        hint = "" if error.details else " (pip install -e . first)"
        raise pytest.UsageError(f"xformd: {details}{hint}") from None
    return registry


def _transforms(registry: "Registry", distributions: list[str]) -> "Iterator[Transform]":
    from xformd.plugins.loader import of_distribution

    for name in distributions:
        for plugin in of_distribution(name, registry.plugins):
            yield from plugin.transforms


def _call(transform: "Transform", example: "Example") -> str:
    arguments = [_short(example.poem), *(f"{key}={value!r}" for key, value in example.options.items())]
    return f"{transform.name}({', '.join(arguments)})"


def _short(poem: str | bytes) -> str:
    text = repr(poem)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _WrongResult(Exception):
    """An example does not hold."""


class _ExampleTest(pytest.Item):
    """An example as a test."""

    def __init__(self, *, of: "tuple[Transform, Example]", **more: Any) -> None:
        super().__init__(**more)
        self._transform, self._example = of

    def runtest(self) -> None:
        """Send the example to the server."""
        example = self._example
        result = _server(self.config).xform(self._transform.name, example.poem, **example.options)
        if result != example.result:
            raise _WrongResult(f"{self.name} gave {result!r}, not {example.result!r}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:  # noqa: ARG002
        """Return what went wrong in a line."""
        from xformd.errors import XformError

        if isinstance(excinfo.value, _WrongResult):
            return str(excinfo.value)
        if isinstance(excinfo.value, XformError):
            failed = f"{self.name}: {excinfo.value.code}: {excinfo.value.message}"
            return "; ".join([failed, *getattr(excinfo.value, "__notes__", ())])
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return where it is defined."""
        code = getattr(self._transform.function, "__code__", None)
        return Path(code.co_filename) if code else self.path, code and code.co_firstlineno, self.name
