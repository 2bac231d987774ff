"""Discovery: the order never depends on the machine, and the first distribution on the path wins."""

import os
import sys
from pathlib import Path

import pytest

from xformd.errors import ConfigError
from xformd.plugins import discovery, loader
from xformd.plugins.selection import Selection


def install(folder: Path, name: str, version: str, *entry_points: str) -> None:
    """Install a package with an entry point for each of these names."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points:
        lines = [f"{point} = {point}_module\n" for point in entry_points]
        (info / "entry_points.txt").write_text(f"[xformd]\n{''.join(lines)}")


def found_in(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> list[str]:
    monkeypatch.setattr(sys, "path", [*map(str, folders)])
    return [f"{one.distribution} {one.version} {one.name}" for one in discovery.installed()]


def test_plugins_are_sorted_by_distribution_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "a", "Zoo", "1", "owl", "cat")
    install(tmp_path / "b", "boat", "2", "pea")
    install(tmp_path / "b", "plain", "1")
    for order in (("a", "b"), ("b", "a")):
        assert found_in(monkeypatch, *(tmp_path / name for name in order)) == ["boat 2 pea", "Zoo 1 cat", "Zoo 1 owl"]


@pytest.mark.parametrize(("first", "expected"), [(["owl"], ["The-Owl 2 owl"]), ([], [])], ids=["a plugin", "none"])
def test_the_first_distribution_of_a_name_on_the_path_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: list[str], expected: list[str]
) -> None:
    install(tmp_path / "a", "The-Owl", "2", *first)
    install(tmp_path / "b", "the_owl", "1", "owl")
    assert found_in(monkeypatch, tmp_path / "a", tmp_path / "b") == expected


def test_one_of_two_versions_in_a_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1", "2"):
        install(tmp_path, "owl", version, "owl")
    assert len(found_in(monkeypatch, tmp_path)) == 1


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
