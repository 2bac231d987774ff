"""An option converts text, and its JSON Schema accepts what it accepts."""

import json
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from xformd import BadOptions, Option, Transform
from xformd.plugins.builtin import poetry, text
from xformd.plugins.options import MAX_ITEMS, options_schema
from xformd.spec import build


class Tone(Enum):
    LOW = "low"
    HIGH = "high"


OPTIONS = (
    Option("marks", "int", 1),
    Option("ratio", "float", 1),
    Option("loud", "bool", True),
    Option("end", "str"),
    Option("style", "choice", "up", ("up", 3)),
)


BOUNDED = (
    Option("width", "int", bounds={"minimum": 1, "maximum": 10}, default=5),
    Option("share", "float", bounds={"exclusive_minimum": 0, "exclusive_maximum": 1}, is_optional=True),
    Option("step", "int", 10, bounds={"multiple_of": 5}),
    Option("word", "str", is_optional=True, bounds={"min_length": 1, "max_length": 3}),
    Option("sizes", "int", is_list=True, default=[1], bounds={"minimum": 1, "min_items": 1, "max_items": 3}),
    Option("tones", "choice", is_list=True, choices=tuple(Tone), default=(Tone.LOW,)),
    Option("since", "date", is_optional=True, bounds={"minimum": date(2026, 1, 1)}),
    Option("at", "datetime", datetime(2026, 1, 1, 12, tzinfo=UTC)),
)


def validator(*options: Option) -> Draft202012Validator:
    schema = json.loads(json.dumps(options_schema(options)))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("word", ["true", "True", "yes", "ON", "1"])
def test_truth_has_several_names(word: str) -> None:
    assert Option("loud", "bool", False).convert(word) is True


@pytest.mark.parametrize("transform", [*poetry.xformd_transforms(), *text.xformd_transforms()])
def test_the_options_of_each_example_are_valid(transform: Transform) -> None:
    for example in transform.examples:
        validator(*transform.options).validate(dict(example.options))


@pytest.mark.parametrize("options", [{"end": ""}, {"end": "!", "marks": -3, "ratio": 0.5, "loud": False, "style": 3}])
def test_the_schema_accepts_what_the_options_accept(options: dict[str, Any]) -> None:
    validator(*OPTIONS).validate(options)


WRONG = [("marks", 1.5), ("marks", "1"), ("ratio", "1"), ("loud", 1), ("style", "3"), ("style", "down"), ("volume", 11)]


@pytest.mark.parametrize("options", [{}, {"end": 1}, *({"end": "", name: value} for name, value in WRONG)])
def test_the_schema_rejects_everything_else(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validator(*OPTIONS).validate(options)


def test_a_schema_shows_defaults_that_are_false_or_empty() -> None:
    options = [Option("loud", "bool", False), Option("end", "str", ""), Option("word", "str", description="any\nword")]
    assert options_schema([*options, Option("marks", "int", 1), Option("how", "choice", "up", ("up", 3))]) == {
        "type": "object",
        "properties": {
            "loud": {"type": "boolean", "default": False},
            "end": {"type": "string", "default": ""},
            "word": {"type": "string", "description": "any word"},
            "marks": {"type": "integer", "default": 1},
            "how": {"enum": ["up", 3], "default": "up"},
        },
        "required": ["word"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 1, "share": 0.5, "step": -5, "word": "abc", "sizes": [1, 2, 3], "tones": []},
        {"since": "2026-01-01"},
    ],
)
def test_the_schema_accepts_what_is_in_range(options: dict[str, Any]) -> None:
    validator(*BOUNDED).validate(options)


OUT_OF_RANGE = [
    *(
        ("width", 0),
        ("width", 11),
        ("share", 0),
        ("share", 1),
        ("step", 3),
        ("word", ""),
        ("word", "abcd"),
        ("word", None),
    ),
    *(("sizes", []), ("sizes", [0]), ("sizes", [1, 2, 3, 4]), ("sizes", 1), ("tones", ["loud"]), ("since", 1)),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_the_schema_rejects_what_is_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        validator(*BOUNDED).validate({name: value})


def test_a_schema_names_the_format_of_dates_and_what_is_in_a_list() -> None:
    schemas = options_schema(BOUNDED)
    assert schemas["required"] == []
    assert {name: schemas["properties"][name] for name in ("tones", "since", "at")} == {
        "tones": {"type": "array", "items": {"enum": ["low", "high"]}, "maxItems": MAX_ITEMS, "default": ["low"]},
        "since": {"type": "string", "format": "date", "formatMinimum": "2026-01-01"},
        "at": {"type": "string", "format": "date-time", "default": "2026-01-01T12:00:00+00:00"},
    }


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("width", "10", 10),
        ("share", "0.25", 0.25),
        ("word", "日本語", "日本語"),
        ("sizes", "1,2,3", (1, 2, 3)),
        ("sizes", '[1, "2"]', (1, 2)),
        ("tones", "high,low", (Tone.HIGH, Tone.LOW)),
        ("tones", "", ()),
        ("tones", "[]", ()),
        ("since", "2026-01-31", date(2026, 1, 31)),
        ("at", "2026-01-31", datetime(2026, 1, 31)),
        ("at", "2026-01-31T12:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_a_text_becomes_what_the_function_takes(name: str, text: str, value: object) -> None:
    (option,) = (each for each in BOUNDED if each.name == name)
    assert option.convert(text) == value
    assert option.accepts(value)


@pytest.mark.parametrize(
    ("name", "texts", "takes"),
    [
        ("width", ("0", "11", "five"), "a whole number from 1 to 10"),
        ("share", ("0", "1", "nan"), "a number above 0 and below 1"),
        ("step", ("3",), "a whole number divisible by 5"),
        ("word", ("", "four"), "a string of length from 1 to 3"),
        (
            "sizes",
            ("", "0", "1,2,3,4", "1,", "1, 2", "[1", "[true]", "[[1]]", "[NaN]", "[" * 8_000),
            "a comma-separated list of length from 1 to 3, each item a whole number from 1",
        ),
        (
            "tones",
            ("LOW", "low,,high", '["\\ud800"]', ",".join(["low"] * (MAX_ITEMS + 1)), "," * 1_000_000),
            "a comma-separated list of length up to 1000, each item one of low, high",
        ),
        ("since", ("2025-12-31", "31.1.2026", "2026-02-30", "٢٠٢٦-٠١-٠١"), "a date (YYYY-MM-DD) from 2026-01-01"),
        ("at", ("noon", ""), "a time (YYYY-MM-DDTHH:MM)"),
    ],
)
def test_a_text_that_is_out_of_range_does_not_convert(name: str, texts: tuple[str, ...], takes: str) -> None:
    odd = Transform("odd", print, "text", options=BOUNDED)
    for wrong in texts:
        with pytest.raises(BadOptions) as caught:
            odd.convert({name: wrong})
        assert caught.value.message == f"odd: option {name!r} takes {takes}, not {wrong[:80]!r}"


@pytest.mark.parametrize(
    ("kind", "bounds", "takes"),
    [
        ("int", {"minimum": -1}, "a whole number from -1"),
        ("float", {"exclusive_minimum": 0, "maximum": 1}, "a number above 0 to 1"),
        ("int", {"exclusive_maximum": 5, "multiple_of": 2}, "a whole number below 5 and divisible by 2"),
        ("str", {"min_length": 1, "max_length": 1}, "a string of length 1"),
        ("str", {"min_length": 2}, "a string of length from 2"),
    ],
)
def test_a_range_is_told_in_words(kind: Any, bounds: dict[str, Any], takes: str) -> None:
    assert Option("odd", kind, bounds=bounds).takes == takes


def test_a_float_may_be_a_multiple_that_floats_cannot_hold() -> None:
    option = Option("share", "float", bounds={"multiple_of": 0.1})
    assert [option.accepts(value) for value in (0.3, 0.7, 100_000.1, 0.35, 1, -0.2)] == [*[True] * 3, False, True, True]


def test_times_with_and_without_an_offset_do_not_compare() -> None:
    option = Option("at", "datetime", bounds={"minimum": datetime(2026, 1, 1, tzinfo=UTC)})
    assert option.convert("2026-01-01T01:00+01:00") == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(ValueError, match="2026-01-02"):
        option.convert("2026-01-02")


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=5))
def test_a_list_survives_the_way_through_a_spec(items: list[str]) -> None:
    ((_, text),) = build("odd", {"words": items}).steps[0].options
    assert Option("words", "str", is_list=True).convert(text) == tuple(items)
