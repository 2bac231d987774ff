"""The package keeps its promises about itself."""

import ast
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

import xformd


def test_the_required_dependencies_are_these_four_alone() -> None:
    required = [line for line in requires("xformd") or () if "extra ==" not in line]
    names = {line.split(">")[0] for line in required}
    assert names == {"twisted", "pluggy", "click", "attrs"}
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
