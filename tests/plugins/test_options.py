"""An option converts text, and its JSON Schema accepts what it accepts."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from xformd import Option, Transform
from xformd.plugins.builtin import poetry, text
from xformd.plugins.options import options_schema

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
