"""Find plugins without importing any: entry points of installed packages, and loose files.

Invariant: they are sorted by distribution and name, so that the order is the same on every machine.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from xformd import __version__
from xformd.errors import ConfigError, DefinitionError
from xformd.plugins.registry import BUILT_IN
from xformd.plugins.settings import Table

GROUP = "xformd"  # the entry point group of plugins

_BUILT_INS = ("poetry", "text", "lines", "data", "encodings")


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
        if not (loads := _loads(distribution)):
            continue  # nearly always, and to read the metadata takes ten times as long
        name, version = _identity(distribution)
        if name is not None:
            if normalize(name) in seen or _is_hidden(distribution, name):
                continue  # the first on the path is the one that Python imports
            seen.add(normalize(name))
        named = name or "unknown"
        candidates += [
            Candidate(name=entry or named, distribution=named, version=version, source=source, load=load)
            for entry, source, load in loads
        ]
    return sorted(candidates, key=lambda candidate: (normalize(candidate.distribution), candidate.name))


def loose(directories: Iterable[Path]) -> Iterator[Candidate]:
    """Find the ``*.py`` files and packages of these directories, but for those that are there for others to import."""
    seen: dict[str, Path] = {}
    for directory, written in {path.resolve(): path for path in directories}.items():
        if not directory.is_dir():
            raise ConfigError(f"no such folder: {written}", setting="plugins_dir")
        modules = [*directory.glob("[!.]*.py"), *(init.parent for init in directory.glob("[!.]*/__init__.py"))]
        sources = {path: _source(path) for path in sorted(modules) if not path.name.startswith("__")}
        for path in sources:
            if path.stem in seen:
                reason = f"{seen[path.stem]} and {path} have the same name; rename one of them"
                raise ConfigError(reason, setting="plugins_dir")
            seen[path.stem] = path
            if not _is_helper(path, sources):
                yield Candidate(
                    name=path.stem,
                    distribution=path.name,
                    source=str(path),
                    load=partial(_load_file, path),
                    is_loose=True,
                )


def commands(tables: Mapping[str, Table]) -> list[Candidate]:
    """Return a plugin for each table of a command, so that none takes the others away; it changes with its table."""
    return [
        Candidate(
            name=f"transform.{name}",
            distribution=f"transform.{name}",
            version=hashlib.sha256(json.dumps(table.values, sort_keys=True).encode()).hexdigest()[:8],
            source=table.places[""],
            load=partial(_load_command, name, table),
            is_loose=True,
        )
        for name, table in sorted(tables.items())
    ]


def _load_command(name: str, table: Table) -> SimpleNamespace:
    from xformd.plugins.command import make_transform  # for those who have some
    from xformd.plugins.hookspecs import hookimpl

    made = make_transform(name, table)
    return SimpleNamespace(xformd_transforms=hookimpl(lambda: [made]))


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


def _is_hidden(distribution: importlib.metadata.Distribution, name: str) -> bool:
    """Whether another distribution of this name comes first on the path."""
    first = next(iter(importlib.metadata.distributions(name=name)), distribution)
    return first.locate_file("") != distribution.locate_file("")


def _loads(distribution: importlib.metadata.Distribution) -> list[tuple[str, str, Callable[[], Any]]]:
    """Return the name, the source and the loader of each entry point; none but what fails if they cannot be read."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
        found = distribution.entry_points.select(group=GROUP) if f"[{GROUP}]" in text else ()
        return [(each.name, each.value, each.load) for each in found]
    except Exception as error:
        # It may or may not be an xformd plugin; the operator needs to know that it is broken either way.
        reason = f"cannot read its entry_points.txt: {type(error).__name__}: {error}"
        return [("", "entry_points.txt", partial(_raise, DefinitionError(reason)))]


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
