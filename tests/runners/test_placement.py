"""Where a transform runs: its author's word, unless the operator has another."""

import pytest

from support.registries import registry_of
from xformd import transform
from xformd.errors import ConfigError
from xformd.runners.placement import Placement


@transform
def plain(poem: str) -> str:
    return poem


@transform(inline=True)
def quick(poem: str) -> str:
    return poem


@transform
async def patient(poem: str) -> str:
    return poem


REGISTRY = registry_of(plain, quick, patient)


@pytest.mark.parametrize(
    ("placement", "isolated"),
    [
        (Placement(), {"plain"}),
        (Placement(inline=frozenset({"plain", "patient"})), set()),
        (Placement(isolate=frozenset({"quick"})), {"plain", "quick"}),
        (Placement(isolate=frozenset({"patient"})), {"plain"}),
        (Placement(inline=frozenset({"quick"}), isolate=frozenset({"quick"})), {"plain"}),
    ],
)
def test_the_operator_has_the_last_word(placement: Placement, isolated: set[str]) -> None:
    assert {name for name, entry in REGISTRY.entries.items() if placement.is_isolated(entry.transform)} == isolated


def placement_of(setting: str, name: str) -> Placement:
    return Placement(**{setting: frozenset({name})})


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("inline", "plian", "inline: no transform 'plian' here; did you mean 'plain'?"),
        ("isolate", "plian", "isolate: no transform 'plian' here; did you mean 'plain'?"),
        ("isolate", "patient", "isolate: patient is asynchronous, and needs the reactor that runs in the server alone"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        placement_of(setting, name).check(REGISTRY)
    assert (caught.value.message, caught.value.setting) == (message, setting)


def test_what_can_be_is_taken() -> None:
    Placement(inline=frozenset({"plain", "patient"}), isolate=frozenset({"quick", "plain"})).check(REGISTRY)
