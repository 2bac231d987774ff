"""Discovery: the order never depends on the machine, and the first distribution on the path wins."""

import importlib.metadata
import os
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from xformd.errors import ConfigError
from xformd.plugins import discovery, loader
from xformd.plugins.selection import Selection


class Distribution:
    """An installed package with one entry point for each of these names."""

    def __init__(self, name: str, version: str, *entry_points: str) -> None:
        self.metadata = {"Name": name, "Version": version}
        self.entry_points = EntryPoints(EntryPoint(point, f"{point}_module", "xformd") for point in entry_points)

    def read_text(self, name: str) -> str | None:
        return "[xformd]\n" if name == "entry_points.txt" and self.entry_points else None


def test_plugins_are_sorted_by_distribution_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Distribution("Zoo", "1", "owl", "cat"), Distribution("boat", "1", "pea"), Distribution("plain", "1")]
    for order in (found, found[::-1]):
        monkeypatch.setattr(importlib.metadata, "distributions", lambda order=order: iter(order))
        assert [f"{one.distribution} {one.name}" for one in discovery.installed()] == ["boat pea", "Zoo cat", "Zoo owl"]


def test_the_first_distribution_of_a_name_on_the_path_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Distribution("The-Owl", "2", "owl"), Distribution("the_owl", "1", "owl")]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(found))
    assert [(one.distribution, one.version) for one in discovery.installed()] == [("The-Owl", "2")]


SHOUT = """
import xformd
{imports}

@xformd.transform
def {name}(poem: str) -> str:
    return {result}

@xformd.hookimpl
def xformd_transforms():
    return [{name}]
"""


def write(folder: Path, **files: str) -> None:
    for name, source in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Plugins with helpers, and as packages."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    helpers = "from rhymes_of_owls import RHYME\nimport _private_of_owls, deep_owls.sea, json"
    result = "poem + RHYME + _private_of_owls.END + deep_owls.sea.SEA + json.dumps(1)"
    files = {
        "owl": SHOUT.format(name="owl", imports=helpers, result=result),
        "rhymes_of_owls": "RHYME = ' fowl'",
        "_private_of_owls": "END = '.'",
        "deep_owls/__init__": "",
        "deep_owls/sea": "SEA = ' sea'",
        "json": "raise AssertionError('a loose file must not replace the standard json')",
        "cat/__init__": "from .hooks import xformd_transforms",
        "cat/hooks": SHOUT.format(name="cat", imports="from .words import PURR\nfrom cat import words", result="PURR"),
        "cat/words": "PURR = 'purr'",
        "torn": "1 / 0",
        "folder/none": "",
        ".hidden/__init__": "",
        "__init__": "",
    }
    write(tmp_path, **files)
    return tmp_path


def test_a_folder_has_plugins_packages_and_what_they_import(folder: Path) -> None:
    registry = loader.load(Selection(distributions=frozenset(), directories=(folder,)))
    states = {plugin.distribution: plugin.state for plugin in registry.plugins if plugin.distribution != "xformd"}
    assert states == {"cat": "active", "owl.py": "active", "torn.py": "failed"}
    assert registry.resolve("owl").transform("The") == "The fowl. sea1"
    assert registry.resolve("cat").transform("") == "purr"
    assert [plugin.name for plugin in loader.of_distribution("cat", registry.plugins)] == ["cat"]


def test_a_package_is_read_again_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both versions may have the same time
    selection = Selection(distributions=frozenset(), directories=(folder,))
    assert loader.load(selection).resolve("cat").transform("") == "purr"
    write(folder, **{"cat/words": "PURR = 'hiss'"})
    assert loader.load(selection).resolve("cat").transform("") == "hiss"


@pytest.mark.parametrize("names", [("a/_words", "b/_words"), ("a/owl", "b/owl/__init__"), ("a/owl", "a/owl/__init__")])
def test_equal_names_are_an_error_helpers_too(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path, **dict.fromkeys(names, "import xformd"))
    folders = [tmp_path / name for name in ("a", "b") if (tmp_path / name).exists()]
    with pytest.raises(ConfigError, match="have the same name; rename one of them"):
        list(discovery.loose(folders))


def test_what_is_no_file_and_what_has_no_name_in_utf_8_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "owl.py").write_text("import xformd\n")
    (tmp_path / "\udcff.py").write_text("import xformd\n")
    os.mkfifo(tmp_path / "pipe.py")  # which would keep whoever opens it
    (tmp_path / "endless.py").symlink_to("/dev/zero")
    assert [one.name for one in discovery.loose([tmp_path])] == ["endless", "owl", "pipe", "\udcff"]
