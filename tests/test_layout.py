"""The package keeps its promises about itself."""

import ast
import re
import shutil
import tarfile
from importlib.metadata import metadata, requires
from os.path import normpath
from pathlib import Path, PurePosixPath

import pytest

import xformd

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|javascript:)([^)#]+)")


def test_the_required_dependencies_are_these_alone() -> None:
    required = [line for line in requires("xformd") or () if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {"twisted", "pluggy", "click", "attrs", "cachetools", "zope-interface"}
    assert "pluggy>=1.6" in required


def test_the_package_says_what_it_is() -> None:
    described = metadata("xformd")
    assert described["License-Expression"] == "MIT"
    assert described["Requires-Python"] == ">=3.11"
    assert described["Version"] == xformd.__version__
    assert (Path(xformd.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("source", "is_at_module_level"),
    [
        ("from twisted.internet import defer, reactor", True),
        ("import twisted.internet.reactor", True),
        ("from twisted.internet.reactor import callLater", True),
        ("try:\n    from twisted.internet import reactor as it\nexcept ImportError: ...", True),
        ("class A:\n    from twisted.internet import reactor", True),
        ("def f():\n    from twisted.internet import reactor", False),
        ("class A:\n    async def f(self):\n        import twisted.internet.reactor", False),
        ("from twisted.internet import defer", False),
    ],
)
def test_a_reactor_at_module_level_is_found(source: str, is_at_module_level: bool) -> None:
    assert imports_reactor(ast.parse(source)) is is_at_module_level


def test_no_module_imports_the_reactor_when_it_is_imported_itself() -> None:
    """It would install one, and a program that wants another could not have it any more."""
    paths = sorted(Path(xformd.__file__).parent.rglob("*.py"))
    assert len(paths) > 20
    assert [str(path) for path in paths if imports_reactor(ast.parse(path.read_text()))] == []


def imports_reactor(tree: ast.AST) -> bool:
    """Whether what runs at an import, which is all but what stands in functions, imports the reactor."""
    for node in ast.iter_child_nodes(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if "twisted.internet.reactor" in names:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and imports_reactor(node):
            return True
    return False


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[PurePosixPath, bytes]:
    """Give the files of a source distribution that was built where somebody has worked: path to content."""
    sdist = pytest.importorskip("hatchling.builders.sdist", reason="install hatchling to build packages")
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", ".*cache", "__pycache__"))
    for left in ("tests/__pycache__", "demo/.ruff_cache", "plugins-example/.pytest_cache", "benchmarks/partial"):
        (source / left).mkdir(exist_ok=True)
        (source / left / "left.pyc").touch()
        (source / left / "left.json").touch()
    (built,) = sdist.SdistBuilder(str(source)).build(directory=str(folder), versions=["standard"])
    with tarfile.open(built) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        return {PurePosixPath(*PurePosixPath(name).parts[1:]): file.read() for name, file in files.items() if file}


def test_the_source_distribution_has_what_its_pages_and_tests_refer_to(shipped: dict[PurePosixPath, bytes]) -> None:
    needed = [
        "LICENSE",
        "Makefile",
        "CONTRIBUTING.md",
        "demo/demo.sh",
        "benchmarks/results.json",
        "twistd/xformd_services.py",
    ]
    assert {PurePosixPath(name) for name in needed} <= set(shipped)
    folders = {parent for path in shipped for parent in path.parents}
    for page in (path for path in shipped if path.suffix == ".md"):
        for target in LINK.findall(shipped[page].decode()):
            assert PurePosixPath(normpath(page.parent / target)) in {*shipped, *folders}, f"{page} refers to {target}"


def test_the_source_distribution_has_nothing_that_was_left_behind(shipped: dict[PurePosixPath, bytes]) -> None:
    assert [path for path in shipped if path.stem == "left" or ".venv" in path.parts] == []
