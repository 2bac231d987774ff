"""Makes the folder of a new plugin from ``templates/``."""

import builtins
import datetime
import json
import keyword
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from xformd.errors import ConfigError
from xformd.plugins import loader
from xformd.plugins.selection import Selection
from xformd.spec import NAME_RULE, is_valid_name

KINDS = {
    "text": "printf 'The Owl\\n'",
    "bytes": "python3 -c 'import sys, zlib; sys.stdout.buffer.write(zlib.compress(b\"The Owl\"))'",
    "file": "printf 'name,feet\\nowl,2\\n'",
    "async": "printf Owl",
    "batch": "printf 'the owl and the pussy-cat'",
    "command": "printf 'pussy-cat\\nowl\\n'",
}
"""The kinds of transforms that there are templates for, each with a command that prints a poem."""

_IMPORTED = {"asyncio", "csv", "functools", "json", "load", "subprocess", "xformd", "zlib", "make_transform"}
NO_AUTHOR = "The author"
"""Who has written it if git does not know."""
_TEMPLATES = Path(__file__).with_name("templates")
_TOKEN = re.compile(r"__([A-Z_]+)__")


def make_plugin(name: str, kind: str, parent: Path) -> list[Path]:
    """Write a plugin with one transform; return its files, its folder first.

    Args:
        name: of the transform, or of the distribution: ``shout`` and ``xformd-shout`` are the same.
        kind: one of ``KINDS``.
        parent: where to make the folder, which is named like the distribution.

    Raises:
        ConfigError: the name is no name of a transform, or is taken, or the folder is there.
    """
    name = name.removeprefix("xformd-")
    if not is_valid_name(name) or not name[-1].isalnum() or "--" in name.replace("_", "-"):
        raise ConfigError(f"{name!r} is no name for a plugin: use {NAME_RULE}, such as word-count")
    registry = loader.load(Selection(distributions=frozenset()))
    if name in {transform.name for plugin in registry.plugins for transform in plugin.transforms}:
        raise ConfigError(f"xformd itself has a transform {name!r}: take another name")
    folder = parent / f"xformd-{name.replace('_', '-')}"
    author, email = _git("user.name") or NO_AUTHOR, _git("user.email")
    person = f"name = {_toml(author)}" + (f", email = {_toml(email)}" if email else "")
    module = f"xformd_{name.replace('-', '_')}"
    function = name.replace("-", "_")
    is_taken = keyword.iskeyword(function) or hasattr(builtins, function) or function in _IMPORTED
    values = {
        "NAME": name,
        "ENTRY": name,
        "DISTRIBUTION": folder.name,
        "MODULE": module,
        "SDIST": module,
        "FUNCTION": f"{function}_" if is_taken else function,
        "NAME_ARGUMENT": f'    name="{name}",\n' if is_taken or "_" in name else "",
        "AUTHOR": author,
        "AUTHOR_TABLE": f"{{ {person} }}",
        "YEAR": str(datetime.datetime.now(datetime.UTC).year),
        "SAMPLE": KINDS[kind],
        "DEPENDENCIES": '"annotated-types>=0.6", "xformd"' if kind in ("async", "bytes") else '"xformd"',
    }
    files = {
        f"{module}.py": f"{kind}.py",
        f"tests/test_{function}.py": "test.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "LICENSE": "LICENSE",
        ".gitignore": "gitignore",
        ".github/workflows/check.yml": "check.yml",
        ".github/workflows/release.yml": "release.yml",
    }
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already: take another name, or remove it") from None
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}") from None
    return [folder, *_write(folder, files, values)]


def _write(folder: Path, files: Mapping[str, str], values: Mapping[str, str]) -> Iterator[Path]:
    for name, template in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (_TEMPLATES / f"{template}.in").read_text(encoding="utf-8")
        path.write_text(_TOKEN.sub(lambda token: values[token[1]], text), encoding="utf-8")
        yield path


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # TOML knows no pairs of surrogates


def _git(key: str) -> str:
    """Return a value of git's configuration; empty if there is none, or no git."""
    try:
        done = subprocess.run(["git", "config", "--get", key], capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip()
