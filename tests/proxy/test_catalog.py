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
    return made.origins(parse(spec)) is not None


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


def test_nothing_is_cached_of_an_upstream_that_was_forgotten() -> None:
    made = catalog(a=listing(row("owl"), row("cat")), b=listing(row("cat")))
    made.forget("a")
    assert [is_cached(made, name) for name in ("owl", "cat")] == [False, True]


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
