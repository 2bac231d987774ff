"""Which results a proxy may cache, and when they stop being valid."""

from typing import Any

import pytest

from xformd.proxy.catalog import Catalog
from xformd.spec import parse


def row(name: str, version: str | None = "1.0", *, deterministic: object = True, distribution: str = "verses") -> Any:
    return {"name": name, "distribution": distribution, "version": version, "deterministic": deterministic}


def listing(*transforms: Any, **parts: Any) -> dict[str, Any]:
    return {"transforms": list(transforms), "plugins": [], "conflicts": [], **parts}


def catalog(**listings: Any) -> Catalog:
    made = Catalog()
    for upstream, listed in listings.items():
        made.learn(upstream, listed)
    return made


def is_cached(made: Catalog, spec: str) -> bool:
    return made.epochs(parse(spec)) is not None


def test_what_is_deterministic_and_has_a_version_is_cached() -> None:
    undeclared = row("undeclared")
    del undeclared["deterministic"]
    rows = [
        row("steady"),
        row("fickle", deterministic=False),
        row("loose", ""),
        row("odd", deterministic="yes"),
        row("none", None),
        undeclared,
    ]
    made = catalog(a=listing(*rows))
    names = [*(each["name"] for each in rows), "unknown"]
    assert [name for name in names if is_cached(made, name)] == ["steady"]


def test_a_pipeline_is_cached_when_all_its_steps_are() -> None:
    made = catalog(a=listing(row("one"), row("two"), row("fickle", deterministic=False)))
    specs = ("one+two:width=4", "one+fickle", "fickle+one")
    assert [is_cached(made, spec) for spec in specs] == [True, False, False]


@pytest.mark.parametrize(
    "other", [row("owl", "2.0"), row("owl", distribution="others"), row("owl", deterministic=False), row("owl", "")]
)
def test_a_transform_that_differs_between_upstreams_is_not_cached(other: Any) -> None:
    made = catalog(a=listing(row("owl"), row("cat"), row("pig")), b=listing(other, row("cat")))
    assert [is_cached(made, name) for name in ("owl", "cat", "pig")] == [False, True, True]
    made.learn("b", listing(row("owl"), row("cat")))
    assert is_cached(made, "owl")


def test_each_change_of_version_begins_a_new_epoch() -> None:
    made = Catalog()
    seen = []
    for version in ("1.0", "1.0", "2.0", "1.0"):
        made.learn("a", listing(row("owl", version), row("cat")))
        seen.append(made.epochs(parse("owl")))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_learning_returns_the_transforms_that_changed() -> None:
    made = catalog(a=listing(row("owl"), row("cat"), row("gone")))
    assert made.learn("a", listing(row("owl", "2.0"), row("cat"), row("new"))) == {"owl", "gone"}
    assert made.learn("a", listing(row("owl", "2.0"), row("cat"), row("new"))) == frozenset()


def test_the_first_listing_of_an_upstream_begins_new_epochs() -> None:
    """Until then it may have answered with any version, and nobody knew."""
    made = catalog(a=listing(row("owl")))
    before = made.epochs(parse("owl"))
    assert made.learn("b", listing(row("owl"))) == {"owl"}
    assert made.epochs(parse("owl")) not in (None, before)


def test_nothing_is_cached_while_an_upstream_answers_that_has_never_listed() -> None:
    made = catalog(a=listing(row("owl")))
    made.note_unlisted("b")
    assert not is_cached(made, "owl")
    made.learn("b", listing(row("owl")))
    made.note_unlisted("b")
    assert is_cached(made, "owl")


def test_the_listings_are_merged() -> None:
    plugin = {"name": "verses", "distribution": "verses", "version": "1.0", "state": "active"}
    made = catalog(
        a=listing(row("owl"), plugins=[plugin], conflicts=[{"name": "sea"}]),
        b=listing(row("cat"), row("owl", "2.0"), plugins=[plugin, {**plugin, "version": "2.0"}]),
    )
    shown = made.describe()
    assert [(each["name"], each["version"]) for each in shown["transforms"]] == [("cat", "1.0"), ("owl", "1.0")]
    assert [each["version"] for each in shown["plugins"]] == ["1.0", "2.0"]
    assert shown["conflicts"] == [{"name": "sea"}]


def test_why_a_plugin_failed_is_not_passed_on() -> None:
    """As servers before 0.2 tell."""
    failed = {"name": "verses", "distribution": "verses", "version": "1.0", "state": "failed", "reason": "/etc/key"}
    assert catalog(a=listing(plugins=[failed])).describe()["plugins"][0]["reason"] == ""
