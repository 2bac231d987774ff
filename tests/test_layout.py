"""The tree stays small and plain, and a source distribution has what belongs into it."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.metadata import metadata, requires
from os.path import normpath
from pathlib import Path, PurePosixPath

import pytest

import xformd

ROOT = Path(__file__).parents[1]
PACKAGE = Path(xformd.__file__).parent
STIFF = re.compile(r'^ *"""(?:Give|Say)s?\b.*', re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|javascript:)([^)#]+)")

POSSESSIVE_GROUP = re.compile(r"\(\?:(?:[^()]|\([^()]*\))*\)(?:[*+]|\{[\d,]+\})\+")

MAX_TOP_MODULES = 13
MAX_MODULES = 158
MAX_LINES = 29_346
MAX_STIFF_DOCSTRINGS = 0
WORTH_A_MODULE_LINES = 120

SMALL_WITH_ONE_IMPORTER = {
    "xformd.__main__": "a process: python -m xformd",
    "xformd.cli": "a process: the command xformd",
    "xformd.http.web_page": "a language: what builds the page from its HTML, CSS and JavaScript",
    "xformd.commands.access": "a group of commands: token",
    "xformd.commands.mcp": "a group of commands: mcp",
    "xformd.commands.serve": "a group of commands: serve and config, which shows what it would use",
    "xformd.dialects.classic": "a protocol: the classic dialect, on the server",
    "xformd.commands.kit": "a group of commands: new and dev, which the kit does",
    "xformd.kit.new": "what a command does, apart from how it is asked",
    "xformd.kit.pytest_plugin": "a plugin of pytest: an entry point names it",
    "xformd.kit.strategies": "for tests of plugins: only where Hypothesis is",
    "xformd.server.recording": "a front of the service, for servers that record",
    "xformd.net.reactor": "only where the system has epoll, which importing it needs",
    "xformd.twistd": "a program: twistd names what is in it",
    "xformd.plugins.builtin.text": "a plugin: an entry point names it",
}
"""Modules under 120 lines that at most one other imports, and why they are modules all the same."""

SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}


def imported_by(module: str) -> set[str]:
    """Return the modules of the package that a module imports, function-level imports included."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if module in PACKAGES else module.rpartition(".")[0]
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            found |= {name if (name := f"{base}.{alias.name}") in SOURCES else base for alias in node.names}
    return (found & set(SOURCES)) - {module}


def test_the_package_has_few_modules() -> None:
    top = [path.name for path in PACKAGE.glob("*.py")]
    assert len(top) <= MAX_TOP_MODULES, top
    assert len(SOURCES) <= MAX_MODULES


def test_the_package_has_few_lines() -> None:
    assert sum(len(source.splitlines()) for source in SOURCES.values()) <= MAX_LINES


def test_a_possessive_group_is_atomic_too() -> None:
    """Before Python 3.11.5, ``(?:...)*+`` keeps a part of a repetition that fails (gh-106052)."""
    found = {module: POSSESSIVE_GROUP.findall(source) for module, source in SOURCES.items()}
    assert {module: groups for module, groups in found.items() if groups} == {}


def test_a_small_module_has_several_importers_or_a_reason() -> None:
    importers = Counter(other for module in SOURCES for other in imported_by(module))
    small = {module for module, source in SOURCES.items() if len(source.splitlines()) < WORTH_A_MODULE_LINES}
    expected = PACKAGES | set(SMALL_WITH_ONE_IMPORTER)
    assert sorted(module for module in small - expected if importers[module] < 2) == []


def test_docstrings_begin_with_a_verb_of_the_domain() -> None:
    stiff = [line for source in SOURCES.values() for line in STIFF.findall(source)]
    assert len(stiff) <= MAX_STIFF_DOCSTRINGS, stiff


def test_no_test_module_imports_another() -> None:
    """What tests share lies in ``tests/support``."""
    imports = re.compile(r"^\s*(?:from|import) [\w.]*\btest_\w+.*", re.MULTILINE)
    found = {path.name: imports.findall(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_function_hides_a_module_of_its_name() -> None:
    """``import xformd.transform`` must not give a function."""
    hidden = [name for name in vars(xformd) if f"xformd.{name}" in SOURCES and callable(getattr(xformd, name))]
    assert hidden == []


def test_the_package_says_what_it_is_and_requires() -> None:
    required = [line for line in requires("xformd") or () if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {
        "twisted",
        "pluggy",
        "click",
        "attrs",
        "cachetools",
        "packaging",
        "zope-interface",
        "prometheus-client",
        "docstring-parser",
        "annotated-types",
        "wcwidth",
    }
    assert "pluggy>=1.6" in required
    described = metadata("xformd")
    assert described["License-Expression"] == "MIT"
    assert described["Requires-Python"] == ">=3.11"
    assert described["Version"] == xformd.__version__
    assert (PACKAGE / "py.typed").exists()


def test_no_import_installs_a_reactor() -> None:
    """A program that wants another reactor could not have it any more."""
    modules = sorted(set(SOURCES) - {"xformd.__main__"})
    code = f"import {', '.join(modules)}, sys; sys.exit('twisted.internet.reactor' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[PurePosixPath, bytes]:
    """The files of a source distribution built in a tree that was worked in: path to content."""
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="install hatchling to build packages")
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", ".*cache", ".cov*", "__pycache__"))
    for left in ("tests/__pycache__", "demo/.ruff_cache", "plugins-example/.pytest_cache", "benchmarks/partial"):
        (source / left).mkdir(exist_ok=True)
        (source / left / "left.pyc").touch()
        (source / left / "left.json").touch()
    (built,) = sdist.SdistBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(built) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        return {PurePosixPath(*PurePosixPath(name).parts[1:]): file.read() for name, file in files.items() if file}


def test_the_source_distribution_has_what_its_pages_and_tests_refer_to(shipped: dict[PurePosixPath, bytes]) -> None:
    needed = "LICENSE Makefile CONTRIBUTING.md demo/demo.sh benchmarks/results.json twistd/xformd_services.py"
    needed += " .github/workflows/release.yml"
    assert {PurePosixPath(name) for name in needed.split()} <= set(shipped)
    folders = {parent for path in shipped for parent in path.parents}
    for page in (path for path in shipped if path.suffix == ".md"):
        for target in LINK.findall(shipped[page].decode()):
            assert PurePosixPath(normpath(page.parent / target)) in {*shipped, *folders}, f"{page} refers to {target}"


def test_the_source_distribution_has_nothing_that_was_left_behind(shipped: dict[PurePosixPath, bytes]) -> None:
    assert [path for path in shipped if path.stem == "left" or ".venv" in path.parts] == []
