"""One option of a transform: its type, and how the text of a request becomes its value."""

import math
import re
from collections.abc import Mapping
from typing import Literal, cast, get_args

import attrs

from xformd.errors import DefinitionError
from xformd.spec import NAME_RULE, OptionValue, is_valid_name

OptionType = Literal["int", "float", "bool", "str", "choice"]

_TAKES: Mapping[OptionType, str] = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
}
_TRUTH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_INT = re.compile(r"[+-]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,5})?\Z")


@attrs.frozen
class Option:
    """One option of a transform.

    Args:
        name: as in the function's signature and in a spec.
        type: what its value is; a ``choice`` is one of ``choices``.
        default: the value when the caller gives none; None for an option that must be given.
        choices: for a ``choice``, the values that it takes.
    """

    name: str
    type: OptionType
    default: OptionValue | None = None
    choices: tuple[str | int, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is no option name ({NAME_RULE})")
        if self.type not in get_args(OptionType):
            raise DefinitionError(f"option {self.name!r}: {self.type!r} is no type of option")
        if len(set(map(str, self.choices))) < len(self.choices):
            raise DefinitionError(f"option {self.name!r}: two of its choices are written the same way")
        if self.default is not None and not self.accepts(self.default):
            raise DefinitionError(f"the default of option {self.name!r}, {self.default!r}, is not {self.takes}")

    @property
    def required(self) -> bool:
        """Whether the caller must give it."""
        return self.default is None

    @property
    def takes(self) -> str:
        """What a value must be, for a person."""
        if self.type == "choice":
            return "one of " + ", ".join(map(str, self.choices))
        return _TAKES[self.type]

    def convert(self, text: str) -> OptionValue:
        """Read a value.

        Args:
            text: the value as it stands in a spec, decoded.

        Returns:
            The value in this option's type.

        Raises:
            ValueError: it does not convert.
        """
        if self.type == "str":
            return text
        if self.type == "bool":
            value: OptionValue | None = _TRUTH.get(text.lower())
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
        """Whether this is a value of the option, converted."""
        if self.type == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.type == "float":
            return type(value) in (int, float) and math.isfinite(cast(float, value))
        return type(value).__name__ == self.type
