"""The schema of a transform's options takes what the transform takes, and nothing else."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from xformd import Option, Transform
from xformd.plugins.loader import Selection, load
from xformd.plugins.schema import options_schema

OPTIONS = (
    Option("marks", "int", 1),
    Option("ratio", "float", 1),
    Option("loud", "bool", True),
    Option("end", "str"),
    Option("style", "choice", "up", ("up", 3)),
)


def validator(*options: Option) -> Draft202012Validator:
    schema = json.loads(json.dumps(options_schema(options)))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    "transform", [entry.transform for entry in load(Selection(distributions=frozenset())).entries.values()]
)
def test_the_options_of_each_example_are_valid(transform: Transform) -> None:
    assert transform.examples
    for example in transform.examples:
        validator(*transform.options).validate(dict(example.options))


@pytest.mark.parametrize("options", [{"end": ""}, {"end": "!", "marks": -3, "ratio": 0.5, "loud": False, "style": 3}])
def test_what_fits_is_valid(options: dict[str, Any]) -> None:
    validator(*OPTIONS).validate(options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"end": 1},
        {"end": "", "marks": 1.5},
        {"end": "", "marks": "1"},
        {"end": "", "ratio": "1"},
        {"end": "", "loud": 1},
        {"end": "", "style": "3"},
        {"end": "", "style": "down"},
        {"end": "", "volume": 11},
    ],
)
def test_what_does_not_fit_is_not(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        validator(*OPTIONS).validate(options)


def test_a_default_is_told_also_where_it_is_false_or_nothing() -> None:
    properties = options_schema([Option("loud", "bool", False), Option("end", "str", ""), Option("word", "str")])
    assert properties["properties"] == {
        "loud": {"type": "boolean", "default": False},
        "end": {"type": "string", "default": ""},
        "word": {"type": "string"},
    }
    assert properties["required"] == ["word"]


def test_without_options_there_is_nothing_to_say() -> None:
    with pytest.raises(ValidationError, match="'volume' was unexpected"):
        validator().validate({"volume": 11})
