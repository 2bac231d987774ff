"""The page of promises names an existing test for each; and one promise that only the source can show."""

import ast
import re
from pathlib import Path

import pytest

import xformd

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "promises.md"

PROMISES = re.findall(r"^(\d+)\. (.+?) (`\S+\.py::.+`)$", PAGE.read_text(), re.MULTILINE)
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text())))

UNPICKLING = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing", "concurrent"}


def test_each_of_sixteen_promises_names_a_test() -> None:
    assert [number for number, _, _ in PROMISES] == [str(number) for number in range(1, 17)]
    assert [number for number, _, shown_by in PROMISES if "::test_" not in shown_by] == []


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda value: value)
def test_a_named_test_exists(file: str, name: str) -> None:
    tree = ast.parse((TESTS / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in functions


def test_no_module_can_unpickle() -> None:
    assert [path for path in package() if modules(path) & UNPICKLING] == []


def package() -> list[Path]:
    return sorted(Path(xformd.__file__).parent.rglob("*.py"))


def modules(path: Path) -> set[str]:
    """Return the top-level modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found
