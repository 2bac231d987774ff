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


def test_checking_one_distribution_does_not_ask_for_those_that_are_preferred_to_it(installed: None) -> None:
    settled = Selection(preferred={"echo": "other", "owl": "elsewhere"})
    assert [plugin.name for plugin in loader.load_distribution("both", settled)] == ["one", "two"]


def test_checking_one_distribution_strictly_accepts_what_is_settled(installed: None) -> None:
    with pytest.raises(ConfigError, match="strict: these plugins do not all work, or contest a name"):
        loader.load_distribution("both", Selection(strict=True))
    settled = Selection(preferred={"echo": "other"}, strict=True)
    assert len(loader.load_distribution("both", settled)) == 2


def test_a_distribution_that_is_not_there_cannot_be_checked(installed: None) -> None:
    with pytest.raises(ConfigError, match=r"^no distribution 'owl' with xformd plugins is installed") as caught:
        loader.load_distribution("owl")
    assert caught.value.setting is None


def test_one_of_a_distributions_plugins_can_be_kept_out(installed: None) -> None:
    registry = loader.load(Selection(blocked=frozenset({"one", "three"})))
    assert registry.resolve("echo").plugin.name == "two"
    assert registry.conflicts == ()


@pytest.mark.parametrize("text", ["all,other", "none,other", "", " , "])
def test_a_selection_that_says_two_things_or_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none"):
        loader.parse_distributions(text)
