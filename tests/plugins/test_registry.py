"""The Registry: a name is found, suggested, or ambiguous."""

import difflib
from unittest.mock import Mock

import attrs
import pytest

from support.registries import plugin_of, registry_of
from xformd import AmbiguousTransform, NoSuchTransform, transform
from xformd.plugins.registry import Conflict, Registry


@transform
def shout(poem: str) -> str:
    return poem


def test_a_name_is_found_with_its_plugin() -> None:
    entry = registry_of(shout).resolve("shout")
    assert entry.transform is shout
    assert entry.plugin.label == "xformd-verses 1.0 (verses)"


def test_a_misspelled_name_gets_the_nearest_one() -> None:
    with pytest.raises(NoSuchTransform, match=r"no transform 'shuot' here; did you mean 'shout'\?"):
        registry_of(shout).resolve("shuot")
    with pytest.raises(NoSuchTransform, match="see 'xformd list-transforms'"):
        registry_of(shout).resolve("entirely-else")


def test_few_of_many_similar_names_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Mock(wraps=difflib.get_close_matches)
    monkeypatch.setattr(difflib, "get_close_matches", compared)
    names = [f"acme-report-{number}-to-pdf" for number in range(300)]
    registry = registry_of(*(attrs.evolve(shout, name=name) for name in names))
    with pytest.raises(NoSuchTransform, match="did you mean 'acme-report-77-to-pdf'"):
        registry.resolve("acme-reprot-77-to-pdf")
    ((_, similar), _) = compared.call_args
    assert len(similar) < 10


def test_a_name_that_resembles_another_may_be_that_of_a_plugin_that_failed() -> None:
    failed = plugin_of(name="upper", distribution="x-upper", state="failed", reason="no numpy")
    registry = registry_of(shout)
    registry = Registry(registry.entries, (*registry.plugins, failed))
    says = "no transform 'shouts' here; did you mean 'shout'? plugin x-upper 1.0 (upper) failed"
    with pytest.raises(NoSuchTransform) as raised:
        registry.resolve("shouts")
    assert (raised.value.message, raised.value.log_message) == (says, f"{says}: no numpy")
    registry = Registry(registry.entries, (*registry.plugins, attrs.evolve(failed, name="lower")))
    with pytest.raises(NoSuchTransform, match=r"'shout'\? 2 plugins failed; see 'xformd list-transforms'$"):
        registry.resolve("shouts")


@pytest.mark.parametrize(
    ("distributions", "says"),
    [
        (("b", "a"), "a 1.0 (p1) and b 1.0 (p0)"),
        (("both", "both"), "both 1.0 (p0) and both 1.0 (p1)"),
        (("a", "b", "c"), "a 1.0 (p0) and b 1.0 (p1) and c 1.0 (p2)"),
    ],
)
def test_an_ambiguous_name_says_who_provides_it_and_what_to_do(distributions: tuple[str, ...], says: str) -> None:
    rivals = tuple(plugin_of(name=f"p{at}", distribution=name) for at, name in enumerate(distributions))
    with pytest.raises(AmbiguousTransform) as caught:
        Registry({}, rivals, (Conflict("echo", rivals, None),)).resolve("echo")
    advice = "choose with --prefer echo=DISTRIBUTION, or --block the others"
    assert caught.value.message == f"transform echo is provided by {says}: none is used; {advice}"
