"""Find plugins without importing any: entry points of installed packages, and loose files.

Invariant: they are sorted by distribution and name, so that the order is the same on every machine.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from xformd import __version__
from xformd.errors import ConfigError, DefinitionError
from xformd.plugins.registry import BUILT_IN

GROUP = "xformd"
"""The entry point group of plugins."""

_BUILT_INS = ("poetry", "text")


@attrs.frozen(kw_only=True)
class Candidate:
    """A plugin that was found and is not imported yet; its name and source are those of a ``Plugin``.

    ``load`` imports it, and may raise anything.
    """

    name: str
    distribution: str
    version: str = ""
    source: str
    load: Callable[[], Any]
    is_loose: bool = False

    @property
    def is_built_in(self) -> bool:
        """Whether it comes with xformd itself."""
        return self.distribution == BUILT_IN

    def has_name(self, name: str) -> bool:
        """Whether this name selects this plugin."""
        return name == self.name or normalize(name) == normalize(self.distribution)


def normalize(distribution: str) -> str:
    """Normalize a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def built_in() -> list[Candidate]:
    """Find the plugins that come with xformd. They have no entry points, so that they work without an installation."""
    modules = {name: f"xformd.plugins.builtin.{name}" for name in _BUILT_INS}
    return [
        Candidate(
            name=name,
            distribution=BUILT_IN,
            version=__version__,
            source=module,
            load=partial(importlib.import_module, module),
        )
        for name, module in modules.items()
    ]


def installed() -> list[Candidate]:
    """Find the entry points of installed packages. One with broken metadata is found too, and fails to load."""
    seen: set[str] = set()
    candidates: list[Candidate] = []
    for distribution in importlib.metadata.distributions():
        name, version = _identity(distribution)
        if name is not None:
            if normalize(name) in seen:
                continue  # the first on the path is the one that Python imports
            seen.add(normalize(name))
        candidates += _of_distribution(distribution, name or "unknown", version)
    return sorted(candidates, key=lambda candidate: (normalize(candidate.distribution), candidate.name))


def loose(directories: Iterable[Path]) -> Iterator[Candidate]:
    """Find the ``*.py`` files and packages of these directories, but for those that are there for others to import."""
    seen: dict[str, Path] = {}
    for directory, written in {path.resolve(): path for path in directories}.items():
        if not directory.is_dir():
            raise ConfigError(f"no such folder: {written}", setting="plugins_dir", entry=str(written))
        modules = [*directory.glob("[!.]*.py"), *(init.parent for init in directory.glob("[!.]*/__init__.py"))]
        sources = {path: _source(path) for path in sorted(modules) if not path.name.startswith("__")}
        for path in sources:
            if path.stem in seen:
                reason = f"{seen[path.stem]} and {path} have the same name; rename one of them"
                raise ConfigError(reason, setting="plugins_dir", entry=str(written))
            seen[path.stem] = path
            if not _is_helper(path, sources):
                yield Candidate(
                    name=path.stem,
                    distribution=path.name,
                    source=str(path),
                    load=partial(_load_file, path),
                    is_loose=True,
                )


def _source(path: Path) -> bytes:
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    try:
        return b"\n".join(file.read_bytes() for file in files if file.is_file())  # a pipe or device has no end
    except OSError:
        return b""  # loading it will say why


def _is_helper(path: Path, sources: Mapping[Path, bytes]) -> bool:
    """Whether a module is private, or knows nothing of xformd and is imported by another."""
    imports = re.compile(rb"^\s*(?:from|import)\b.*\b%b\b" % re.escape(os.fsencode(path.stem)), re.MULTILINE)
    others = (source for other, source in sources.items() if other != path)
    return path.name.startswith("_") or (b"xformd" not in sources[path] and any(map(imports.search, others)))


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str | None, str]:
    """Return name and version; a broken METADATA file may hold neither."""
    try:
        metadata = distribution.metadata
        return metadata["Name"], metadata["Version"] or ""
    except Exception:  # a broken METADATA file can raise anything
        return None, ""


def _of_distribution(distribution: importlib.metadata.Distribution, name: str, version: str) -> Iterator[Candidate]:
    try:
        text = distribution.read_text("entry_points.txt") or ""
        if f"[{GROUP}]" not in text:
            return
        entry_points = list(distribution.entry_points.select(group=GROUP))
    except Exception as error:
        # It may or may not be an xformd plugin; the operator needs to know that it is broken either way.
        reason = f"cannot read its entry_points.txt: {type(error).__name__}: {error}"
        load = partial(_raise, DefinitionError(reason))
        yield Candidate(name=name, distribution=name, version=version, source="entry_points.txt", load=load)
        return
    for entry_point in entry_points:
        yield Candidate(
            name=entry_point.name, distribution=name, version=version, source=entry_point.value, load=entry_point.load
        )


def _raise(error: Exception) -> None:
    raise error


def _load_file(path: Path) -> Any:
    # A module name of its own, because a loose file called json.py must not replace the standard json.
    name = f"xformd_loose_{re.sub(r'[^A-Za-z0-9_]', '_', str(path))}"
    module_spec = importlib.util.spec_from_file_location(name, path / "__init__.py" if path.is_dir() else path)
    assert module_spec is not None
    assert module_spec.loader is not None
    for stale in [each for each in sys.modules if each.startswith(f"{name}.")]:
        del sys.modules[stale]  # a reload reads all of a package again
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for helpers, and last: none of them must replace an installed module
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
