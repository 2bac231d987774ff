"""The request language: parse and print are inverse, and errors point at the character."""

import string
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xformd.errors import BadRequest
from xformd.spec import (
    MAX_REMEMBERED,
    MAX_SPEC_BYTES,
    MAX_STEPS,
    SHORT_CHARACTERS,
    Spec,
    SpecCache,
    Step,
    build,
    parse,
    parse_readable,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
OPTIONS = st.dictionaries(NAMES, TEXTS, max_size=3).map(lambda options: tuple(sorted(options.items())))
STEPS = st.builds(Step, NAMES, OPTIONS)
SPECS = st.builds(Spec, st.lists(STEPS, min_size=1, max_size=4).map(tuple))


@given(SPECS)
def test_parse_and_print_are_inverse(spec: Spec) -> None:
    assert parse(str(spec)) == spec
    assert parse_readable(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)
    assert set(str(spec)) <= set(string.ascii_letters + string.digits + "-_~%:=,+")


@pytest.mark.parametrize("read", [parse, parse_readable])
@given(text=st.text(max_size=40) | st.text("ab:=,+%F0. é", max_size=20))
def test_any_text_parses_or_is_a_bad_request(read: Callable[[str], Spec], text: str) -> None:
    try:
        spec = read(text)
    except BadRequest:
        return
    assert parse(str(spec)) == parse_readable(text) == spec


def test_steps_and_options() -> None:
    steps = (Step("wrap", (("indent", "2"), ("width", "40"))), Step("number-lines"))
    assert parse("wrap:width=40,indent=2+number-lines") == Spec(steps)
    assert str(parse("wrap:width=40,indent=2")) == str(parse("wrap:indent=2,width=40")) == "wrap:indent=2,width=40"


@pytest.mark.parametrize(
    ("readable", "wire"),
    [
        ("indent:prefix=> ", "indent:prefix=%3E%20"),
        ("wrap:width=1.5", "wrap:width=1%2E5"),
        ("indent:prefix=a=b:c", "indent:prefix=a%3Db%3Ac"),
        ("indent:prefix=%2c", "indent:prefix=%2C"),
        ("indent:prefix=é", "indent:prefix=%C3%A9"),
        ("indent:prefix=", "indent:prefix="),
    ],
)
def test_people_may_omit_the_encoding(readable: str, wire: str) -> None:
    assert str(parse_readable(readable)) == wire
    assert parse_readable(readable) == parse(wire)


@pytest.mark.parametrize(
    ("text", "character", "says"),
    [
        *((text, 1, "valid transform name") for text in ("", "Upper", "9lives", "a" * 65, "upper\n")),
        ("upper+", 7, "'' is not a valid transform name: use a-z, then up to 63 of a-z 0-9 - _"),
        ("upper++trim", 7, "valid transform name"),
        ("wrap:", 6, "valid option name"),
        ("wrap:width", 11, "option 'width' needs a value: width=..."),
        ("wrap:width=40,", 15, "valid option name"),
        ("wrap:Width=40", 6, "valid option name"),
        ("upper+wrap:width=4.5", 19, "'.' in a value must be written as %2E"),
        ("wrap:width=40 ", 14, "must be written as %20"),
        ("wrap:width=%4", 12, "two hexadecimal digits"),
        ("wrap:width=a%zz", 13, "two hexadecimal digits"),
        ("wrap:width=%ff", 12, "not valid UTF-8"),
        ("wrap:width=1,width=2", 14, "given twice"),
        ("+".join(["upper"] * (MAX_STEPS + 1)), 6 * MAX_STEPS + 1, f"at most {MAX_STEPS} steps"),
        ("a" * (MAX_SPEC_BYTES + 1), MAX_SPEC_BYTES + 1, f"at most {MAX_SPEC_BYTES} characters"),
    ],
)
def test_an_error_points_at_its_character(text: str, character: int, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert f"character {character}:" in caught.value.message
    assert says in caught.value.message


def test_a_spec_may_have_the_maximum_of_steps() -> None:
    assert len(parse("+".join(["upper"] * MAX_STEPS)).steps) == MAX_STEPS


def test_options_with_their_own_types_join_the_spec() -> None:
    spec = build("wrap:width=40", {"indent": 2, "fill": True, "ratio": 1.5})
    assert str(spec) == "wrap:fill=true,indent=2,ratio=1%2E5,width=40"
    assert str(build("upper+trim", {})) == "upper+trim"


class Tone(Enum):
    LOW = "low"
    HIGH = "high"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00+00:00"),
        (Tone.LOW, "low"),
        ([], ""),
        ([1, 2.5, True], "1,2.5,true"),
        ((Tone.HIGH, date(2026, 1, 31)), "high,2026-01-31"),
        (["a b", ""], "a b,"),
        (["a,b", "c"], '["a,b", "c"]'),
        (["[a"], '["[a"]'),
        ([""], '[""]'),
    ],
)
def test_an_option_is_written_as_its_transform_reads_it(value: object, text: str) -> None:
    spec = build("odd", {"value": value, "other": None})
    assert spec.steps[0].options == (("value", text),)
    assert parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("transform", "options", "says"),
    [
        ("upper+wrap", {"width": 4}, "with several steps, write options into the spec: upper:option=value"),
        ("indent", {"prefix": {"a"}}, "takes a str, int, float, bool, date, Enum, or a list of them, not set"),
        ("indent", {"prefix": [["a"]]}, "not list"),
        ("indent", {"prefix": [None]}, "not NoneType"),
        ("indent", {"prefix": "\ud800"}, "cannot be encoded as UTF-8"),
        ("wrap", {"Width": 4}, "'Width' is not a valid option name"),
    ],
)
def test_options_that_cannot_join_the_spec_are_rejected(transform: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        build(transform, options)


def test_a_cache_of_specs_is_bounded_in_number_and_length() -> None:
    cache: SpecCache[bytes, int] = SpecCache()
    for number in range(2 * MAX_REMEMBERED + 10):
        assert cache.remember(b"%d" % number, number) == number
        assert len(cache) <= MAX_REMEMBERED
    assert cache[b"%d" % (2 * MAX_REMEMBERED + 9)] == 2 * MAX_REMEMBERED + 9
    cache.remember(b"x" * SHORT_CHARACTERS, 1)
    cache.remember(b"x" * (SHORT_CHARACTERS + 1), 1)
    assert [len(key) for key in cache if key.startswith(b"x")] == [SHORT_CHARACTERS]


def test_a_cache_measures_a_spec_as_it_is_written() -> None:
    cache: SpecCache[Spec, int] = SpecCache()
    short, long = parse("upper"), parse("upper:k=" + "v" * SHORT_CHARACTERS)
    cache.remember(short, 1)
    cache.remember(long, 2)
    assert dict(cache) == {short: 1}
