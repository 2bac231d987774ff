"""Selecting and loading, with plugins that are made in the test; real packages are in tests/integration."""

from types import SimpleNamespace

import pytest

from xformd import ConfigError, hookimpl, transform
from xformd.plugins import discovery, loader
from xformd.plugins.discovery import Candidate
from xformd.plugins.selection import Selection, parse_distributions


@transform
def echo(poem: str) -> str:
    return poem


def candidate(name: str, distribution: str) -> Candidate:
    @hookimpl
    def xformd_transforms() -> list[object]:
        return [echo]

    plugin = SimpleNamespace(xformd_transforms=xformd_transforms)
    return Candidate(name=name, distribution=distribution, version="1", source=name, load=lambda: plugin)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plugins of one distribution and one of another, all with the transform ``echo``."""
    found = [candidate("one", "both"), candidate("two", "both"), candidate("three", "other")]
    monkeypatch.setattr(discovery, "installed", lambda: found)


def test_a_preferred_distribution_provides_the_transform() -> None:
    assert loader.load(Selection(preferred={"echo": "other"})).resolve("echo").plugin.name == "three"


@pytest.mark.parametrize(
    ("name", "distribution", "says"),
    [
        ("echo", "both", r"echo is provided by both 1 \(one\) and both 1 \(two\) and other 1 \(three\)"),
        ("owl", "other", "no loaded plugin provides a transform 'owl'"),
    ],
)
def test_a_preference_must_match_exactly_one_plugin(name: str, distribution: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loader.load(Selection(preferred={name: distribution}))


def test_a_blocked_plugin_leaves_its_distributions_other_plugins() -> None:
    registry = loader.load(Selection(blocked=frozenset({"one", "three"})))
    assert registry.resolve("echo").plugin.name == "two"
    assert registry.conflicts == ()


def test_checking_one_distribution_ignores_preferences_for_others() -> None:
    settled = Selection(preferred={"echo": "other", "owl": "elsewhere"})
    assert [plugin.name for plugin in loader.load_distribution("both", settled)] == ["one", "two"]


def test_checking_one_distribution_strictly_accepts_a_resolved_conflict() -> None:
    with pytest.raises(ConfigError, match="strict: some plugins failed or provide the same transform"):
        loader.load_distribution("both", Selection(strict=True))
    settled = Selection(preferred={"echo": "other"}, strict=True)
    assert len(loader.load_distribution("both", settled)) == 2


def test_an_unknown_distribution_cannot_be_checked() -> None:
    with pytest.raises(ConfigError, match=r"^no installed distribution 'owl' has xformd plugins") as caught:
        loader.load_distribution("owl")
    assert caught.value.setting is None


@pytest.mark.parametrize("text", ["all,other", "none,other", "", " , "])
def test_a_contradictory_or_empty_selection_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="none"):
        parse_distributions(text)
