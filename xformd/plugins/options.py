"""One option of a transform: its type, how the text of a request becomes its value, and its JSON Schema."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

import attrs

from xformd.errors import DefinitionError, one_line
from xformd.spec import NAME_RULE, OptionValue, is_valid_name

OptionType = Literal["int", "float", "bool", "str", "choice"]

_TAKES: Mapping[OptionType, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
}
_JSON_TYPES: Mapping[OptionType, str] = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
TRUTH_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,5})?\Z")


@attrs.frozen
class Option:
    """One option of a transform.

    Args:
        name: as in the function's signature and in a spec.
        type: the type of its value; a ``choice`` is one of ``choices``.
        default: the value when the caller sends none; None for a required option.
        choices: the allowed values of a ``choice``.
        description: one line of help for callers.
    """

    name: str
    type: OptionType
    default: OptionValue | None = None
    choices: tuple[str | int, ...] = ()
    description: str = attrs.field(default="", converter=one_line)

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is not a valid option name: use {NAME_RULE}")
        if self.type not in get_args(OptionType):
            raise DefinitionError(f"option {self.name!r}: unknown type {self.type!r}")
        if len(set(map(str, self.choices))) < len(self.choices):
            raise DefinitionError(f"option {self.name!r}: two choices have the same spelling")
        if self.default is not None and not self.accepts(self.default):
            raise DefinitionError(f"the default of option {self.name!r}, {self.default!r}, is not {self.takes}")

    @property
    def required(self) -> bool:
        """Whether every request must set it."""
        return self.default is None

    @property
    def takes(self) -> str:
        """What a value must be, in words for a person."""
        if self.type == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        return _TAKES[self.type]

    def convert(self, text: str) -> OptionValue:
        """Convert the decoded text of a spec to this option's type.

        Raises:
            ValueError: the text is not a value of this option.
        """
        if self.type == "str":
            return text
        if self.type == "bool":
            value: OptionValue | None = TRUTH_WORDS.get(text.lower())
        elif self.type == "choice":
            value = {str(choice): choice for choice in self.choices}.get(text)
        elif self.type == "int":
            value = int(text) if _INT.match(text) else None
        else:
            value = float(text) if _FLOAT.match(text) and math.isfinite(float(text)) else None
        if value is None:
            raise ValueError(text)
        return value

    def accepts(self, value: object) -> bool:
        """Whether this is a value of the option, already converted."""
        if self.type == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.type == "float":
            return type(value) in (int, float) and math.isfinite(cast(float, value))
        return type(value).__name__ == self.type

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON Schema (2020-12)."""
        schema = {"enum": list(self.choices)} if self.type == "choice" else {"type": _JSON_TYPES[self.type]}
        described = {"description": self.description} if self.description else {}
        return {**schema, **described} if self.required else {**schema, **described, "default": self.default}


def options_schema(options: Iterable[Option]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an object that holds these options, converted, by their names."""
    options = tuple(options)
    return {
        "type": "object",
        "properties": {option.name: option.schema for option in options},
        "required": [option.name for option in options if option.required],
        "additionalProperties": False,
    }
