"""``xformd new``: what it makes is complete, well formed, and named so that it works."""

import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from xformd import Transform
from xformd.errors import ConfigError
from xformd.kit.new import KINDS, make_plugin
from xformd.plugins import loader
from xformd.plugins.selection import Selection

NOTHING: frozenset[str] = frozenset()


def transform_of(folder: Path) -> Transform:
    """Return the transform of a plugin's only module."""
    registry = loader.load(Selection(distributions=NOTHING, directories=(folder,), strict=True))
    (plugin,) = (plugin for plugin in registry.plugins if plugin.distribution.endswith(".py"))
    (transform,) = plugin.transforms
    return transform


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_complete(tmp_path: Path, kind: str) -> None:
    folder, *files = make_plugin("word-count", kind, tmp_path)
    assert folder == tmp_path / "xformd-word-count"
    assert {str(file.relative_to(folder)) for file in files} == {
        "xformd_word_count.py",
        "tests/test_word_count.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".gitignore",
        ".github/workflows/check.yml",
        ".github/workflows/release.yml",
    }
    assert not [file for file in files if "__NAME" in file.read_text() or "__FUNCTION" in file.read_text()]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["entry-points"]) == (
        "xformd-word-count",
        {"xformd": {"word-count": "xformd_word_count"}},
    )
    for workflow in (folder / ".github" / "workflows").iterdir():
        assert yaml.safe_load(workflow.read_text())["jobs"]
    compile((folder / "tests" / "test_word_count.py").read_text(), "test", "exec")
    transform = transform_of(folder)
    assert transform.name == "word-count"
    assert len(transform.examples) >= 2


@pytest.mark.parametrize("name", ["format", "class", "json", "csv", "load", "xformd", "list"])
def test_a_name_that_python_or_the_module_uses_works(tmp_path: Path, name: str) -> None:
    for kind in KINDS:
        (folder, *_) = make_plugin(name, kind, tmp_path / kind)
        assert transform_of(folder).name == name


def test_the_name_of_the_distribution_will_do(tmp_path: Path) -> None:
    assert make_plugin("xformd-shout", "text", tmp_path)[0].name == "xformd-shout"


@pytest.mark.parametrize("name", ["", "Shout", "../shout", "shout!", "1st", "shout-", "a--b", "x" * 70])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a plugin"):
        make_plugin(name, "text", tmp_path)


def test_a_name_that_xformd_has_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="xformd itself has a transform 'upper': take another name"):
        make_plugin("upper", "text", tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_plugin("shout", "text", tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        make_plugin("shout", "bytes", tmp_path)


def test_the_author_is_that_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gitconfig"
    file.write_text('[user]\n  name = "Edward \\"Ned\\" Lear"\n  email = lear@example.org\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    monkeypatch.chdir(tmp_path)
    folder, *_ = make_plugin("shout", "text", tmp_path)
    (author,) = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["authors"]
    assert author == {"name": 'Edward "Ned" Lear', "email": "lear@example.org"}
    assert 'Edward "Ned" Lear' in (folder / "LICENSE").read_text()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    folder, *_ = make_plugin("whisper", "text", tmp_path)
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["authors"] == [{"name": "The author"}]


@pytest.mark.parametrize(("name", "found"), [("Zoë 🦉".encode(), "Zoë 🦉"), (b"Zo\xeb", "Zo\ufffd")])
def test_the_author_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, found: str) -> None:
    file = tmp_path / "gitconfig"
    file.write_bytes(b"[user]\n  name = %b\n" % name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(file))
    monkeypatch.chdir(tmp_path)
    folder, *_ = make_plugin("shout", "text", tmp_path)
    assert tomllib.loads((folder / "pyproject.toml").read_text())["project"]["authors"] == [{"name": found}]
