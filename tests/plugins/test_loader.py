"""The loader's choices, with plugins that are made in the test; real packages are in tests/integration."""

from types import SimpleNamespace

import pytest

from xformd import ConfigError, hookimpl, transform
from xformd.plugins import discovery, loader
from xformd.plugins.discovery import Candidate
from xformd.plugins.loader import Selection


@transform
def echo(poem: str) -> str:
    return poem


def candidate(name: str, distribution: str) -> Candidate:
    @hookimpl
    def xformd_transforms() -> list[object]:
        return [echo]

    plugin = SimpleNamespace(xformd_transforms=xformd_transforms)
    return Candidate(name=name, distribution=distribution, version="1", source=name, load=lambda: plugin)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins of one distribution and one of another, all with the transform ``echo``."""
    found = [candidate("one", "both"), candidate("two", "both"), candidate("three", "other")]
    monkeypatch.setattr(discovery, "installed", lambda: found)


def test_a_preference_must_name_one_plugin_and_not_two(installed: None) -> None:
    assert loader.load(Selection(preferred={"echo": "other"})).resolve("echo").plugin.name == "three"
    with pytest.raises(
        ConfigError, match=r"echo is provided by both 1 \(one\) and both 1 \(two\) and other 1 \(three\)"
    ):
        loader.load(Selection(preferred={"echo": "both"}))


def test_a_preference_for_what_nobody_provides_is_refused(installed: None) -> None:
    with pytest.raises(ConfigError, match="no loaded plugin provides a transform 'owl'"):
        loader.load(Selection(preferred={"owl": "other"}))


def test_one_of_a_distributions_plugins_can_be_kept_out(installed: None) -> None:
    registry = loader.load(Selection(blocked=frozenset({"one", "three"})))
    assert registry.resolve("echo").plugin.name == "two"
    assert registry.conflicts == ()


@pytest.mark.parametrize("text", ["all,other", "none,other", "", " , "])
def test_a_selection_that_says_two_things_or_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none"):
        loader.parse_distributions(text)
