"""What is asked for, of transforms that differ: the first takes the poem, the last says what the result is."""

from typing import Any

import attrs
import pytest

from support.registries import registry_of
from xformd import BadOptions, GibberishError, transform
from xformd.errors import TooLarge
from xformd.http.requests import MAX_QUERY_POEM_BYTES, TransformRequest, matches_etag, take_poem
from xformd.plugins.registry import Entry, Registry
from xformd.spec import parse_readable


@transform(deterministic=True)
def text(poem: str, *, width: int = 1) -> str:
    """Take text."""
    return poem


@transform(media_type="image/png")
def image(poem: bytes) -> bytes:
    """Give bytes, another time others."""
    return poem


def asked(spec: str, **plugin: Any) -> TransformRequest:
    registry = registry_of(text, image)
    entries = {
        name: Entry(each.transform, attrs.evolve(each.plugin, **plugin)) for name, each in registry.entries.items()
    }
    return TransformRequest.from_spec(parse_readable(spec), Registry(entries, registry.plugins))


def test_the_last_says_what_the_result_is() -> None:
    assert asked("text+image").media_type == b"image/png"
    assert asked("image+text").media_type == b"text/plain; charset=utf-8"


def test_the_first_takes_the_poem() -> None:
    headers = {b"content-type": b"text/plain; charset=latin-1"}
    assert asked("text+image").decode(b"\xe9", headers, 100) == "é".encode()
    assert asked("image+text").decode(b"\xe9", headers, 100) == b"\xe9"
    with pytest.raises(GibberishError, match="ascii"):
        asked("text").decode(b"\xe9", {b"content-type": b"text/plain; charset=ascii"}, 100)


def test_one_that_is_another_every_time_makes_the_whole_so() -> None:
    assert asked("text+text").is_deterministic
    assert not asked("text+image").is_deterministic
    assert not asked("image+text").is_deterministic


def test_a_plugin_without_a_version_has_a_dash() -> None:
    assert asked("text+image", version="").versions == b"text/-+image/-"


def test_what_may_change_the_result_changes_its_tag() -> None:
    html = registry_of(attrs.evolve(text, media_type="text/html"))
    tags = {
        asked("text").etag(b"owl"),
        asked("text").etag(b"cat"),
        asked("text:width=2").etag(b"owl"),
        asked("text", version="2.0").etag(b"owl"),
        TransformRequest.from_spec(parse_readable("text"), html).etag(b"owl"),
    }
    assert len(tags) == 5
    assert asked("text").etag(b"owl") in tags


def test_options_are_checked_without_a_poem() -> None:
    asked("text:width=2+image").check_options()
    with pytest.raises(BadOptions, match="width"):
        asked("image+text:width=wide").check_options()


def test_a_poem_in_an_address_is_measured_in_bytes() -> None:
    assert take_poem({"poem": "é" * (MAX_QUERY_POEM_BYTES // 2)}, 2 * MAX_QUERY_POEM_BYTES)
    with pytest.raises(TooLarge):
        take_poem({"poem": "é" * (MAX_QUERY_POEM_BYTES // 2) + "a"}, 2 * MAX_QUERY_POEM_BYTES)


@pytest.mark.parametrize(
    ("given", "is_there"),
    [(b" * ", True), (b'"a"', True), (b'"b" , W/"a"', True), (b'"b"', False), (b"", False), (b'"*"', False)],
)
def test_a_client_says_what_it_has(given: bytes, is_there: bool) -> None:
    assert matches_etag({b"if-none-match": given}, b'"a"') is is_there
    assert not matches_etag({}, b'"a"')
