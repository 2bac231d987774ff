"""Whose results a proxy may keep, and from when on they are those of other code."""

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
    for upstream, told in listings.items():
        made.learn(upstream, told)
    return made


def is_kept(made: Catalog, spec: str) -> bool:
    return made.epochs(parse(spec)) is not None


def test_what_is_deterministic_and_has_a_version_is_kept() -> None:
    made = catalog(
        a=listing(
            row("steady"),
            row("fickle", deterministic=False),
            row("loose", ""),
            row("odd", deterministic="yes"),
            row("none", None),
            row("x"),
        )
    )
    names = ("steady", "fickle", "loose", "odd", "none", "unknown")
    assert [name for name in names if is_kept(made, name)] == ["steady"]


def test_a_transform_of_a_server_that_does_not_say_is_not_kept() -> None:
    old = row("upper")
    del old["deterministic"]
    assert not is_kept(catalog(a=listing(old)), "upper")


def test_a_pipeline_is_kept_when_all_its_steps_are() -> None:
    made = catalog(a=listing(row("one"), row("two"), row("fickle", deterministic=False)))
    assert is_kept(made, "one+two:width=4")
    assert not is_kept(made, "one+fickle")
    assert not is_kept(made, "fickle+one")


@pytest.mark.parametrize(
    "other", [row("owl", "2.0"), row("owl", distribution="others"), row("owl", deterministic=False), row("owl", "")]
)
def test_upstreams_that_do_not_agree_on_a_name_leave_it_unkept(other: Any) -> None:
    made = catalog(a=listing(row("owl"), row("cat")), b=listing(other, row("cat")))
    assert not is_kept(made, "owl")
    assert is_kept(made, "cat")
    made.learn("b", listing(row("owl"), row("cat")))
    assert is_kept(made, "owl")


def test_a_name_that_only_one_upstream_has_is_kept() -> None:
    assert is_kept(catalog(a=listing(row("owl")), b=listing()), "owl")


def test_another_version_is_another_edition_and_so_is_one_that_comes_back() -> None:
    made = Catalog()
    seen = []
    for version in ("1.0", "1.0", "2.0", "1.0"):
        made.learn("a", listing(row("owl", version), row("cat")))
        seen.append(made.epochs(parse("owl")))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_what_has_changed_is_said_by_name() -> None:
    made = catalog(a=listing(row("owl"), row("cat"), row("gone")))
    assert made.learn("a", listing(row("owl", "2.0"), row("cat"), row("new"))) == {"owl", "gone"}
    assert made.learn("a", listing(row("owl", "2.0"), row("cat"), row("new"))) == frozenset()


def test_when_an_upstream_speaks_for_the_first_time_nothing_from_before_is_used() -> None:
    """Until then it may have answered with any version, and nobody knew."""
    made = catalog(a=listing(row("owl")))
    before = made.epochs(parse("owl"))
    assert made.learn("b", listing(row("owl"))) == {"owl"}
    assert made.epochs(parse("owl")) not in (None, before)


def test_the_listings_are_shown_as_one() -> None:
    plugin = {"name": "verses", "distribution": "verses", "version": "1.0", "state": "active"}
    made = catalog(
        a=listing(row("owl"), plugins=[plugin], conflicts=[{"name": "sea"}]),
        b=listing(row("cat"), row("owl", "2.0"), plugins=[plugin, {**plugin, "version": "2.0"}]),
    )
    shown = made.describe()
    assert [(each["name"], each["version"]) for each in shown["transforms"]] == [("cat", "1.0"), ("owl", "1.0")]
    assert [each["version"] for each in shown["plugins"]] == ["1.0", "2.0"]
    assert shown["conflicts"] == [{"name": "sea"}]


@pytest.mark.parametrize(
    "told",
    [None, [], {}, listing() | {"plugins": None}, listing("owl"), listing(["name"]), listing({"summary": "no name"})],
)
def test_what_is_no_listing_is_refused_and_changes_nothing(told: object) -> None:
    made = catalog(a=listing(row("owl")))
    with pytest.raises(ValueError, match=r"is not a list of|not a JSON object"):
        made.learn("a", told)
    assert is_kept(made, "owl")
