"""One option of a transform: its type, how the text of a request becomes its value, and its JSON Schema."""

import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from enum import Enum
from typing import Any, Literal, cast, get_args

import attrs

from xformd.errors import DefinitionError, one_line
from xformd.spec import NAME_RULE, OptionItem, OptionValue, is_valid_name, plain_value

OptionType = Literal["int", "float", "bool", "str", "date", "datetime", "choice"]

MAX_ITEMS = 1_000  # the longest list: a short request must not ask for much work

TRUTH_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_INT = re.compile(r"[+-]?[0-9]{1,300}\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,5})?\Z")

_TYPES: Mapping[str, tuple[str, Mapping[str, str], Callable[[str], Any]]] = {
    "int": ("a whole number", {"type": "integer"}, lambda text: int(text) if _INT.match(text) else None),
    "float": ("a number", {"type": "number"}, lambda text: float(text) if _FLOAT.match(text) else None),
    "bool": ("true or false", {"type": "boolean"}, lambda text: TRUTH_WORDS.get(text.lower())),
    "str": ("a string", {"type": "string"}, str),
    "date": ("a date (YYYY-MM-DD)", {"type": "string", "format": "date"}, date.fromisoformat),
    "datetime": ("a time (YYYY-MM-DDTHH:MM)", {"type": "string", "format": "date-time"}, datetime.fromisoformat),
}
"""What a value is in words, its JSON Schema, and how its text is read."""

_TIMES = ("date", "datetime")
_ORDERED = ("int", "float", *_TIMES)

BOUNDS: Mapping[str, tuple[str, tuple[str, ...], Callable[[Any, Any], bool]]] = {
    "minimum": ("from", _ORDERED, operator.ge),
    "exclusive_minimum": ("above", _ORDERED, operator.gt),
    "maximum": ("up to", _ORDERED, operator.le),
    "exclusive_maximum": ("below", _ORDERED, operator.lt),
    # For floats too: 0.3 is three times 0.1.
    "multiple_of": ("divisible by", ("int", "float"), lambda value, step: round(value % step / step, 9) in (0, 1)),
    "min_length": ("from", ("str",), lambda value, least: len(value) >= least),
    "max_length": ("up to", ("str",), lambda value, most: len(value) <= most),
    "min_items": ("from", ("list",), lambda value, least: len(value) >= least),
    "max_items": ("up to", ("list",), lambda value, most: len(value) <= most),
}
"""What may limit an option's values: its word, the types that it is for, and whether a value is within it."""


def _is_a(kind: str, value: object) -> bool:
    if kind == "list":
        return isinstance(value, list | tuple) and len(value) <= MAX_ITEMS
    if kind == "float":
        return type(value) in (int, float) and math.isfinite(cast(float, value))
    return type(value).__name__ == kind


def _split(text: str) -> list[str]:
    """Return the items of a list's text; raise ``ValueError`` if it is malformed."""
    if not text.startswith("["):
        return text.split(",") if text else []
    try:
        items: list[str] = json.loads(text, parse_int=str, parse_float=str)
        "".join(items).encode()  # fails for anything but text, and for a lone surrogate
    except (TypeError, RecursionError) as error:
        raise ValueError(text) from error
    return items


def read_json(value: Any, kind: str = "") -> Any:
    """Return the value of an option of this type, or a bound, as it was before ``plain_value``; a list as a tuple."""
    if isinstance(value, list):
        return tuple(read_json(item, kind) for item in value)
    return _TYPES[kind][2](value) if kind in _TIMES and isinstance(value, str) else value


@attrs.frozen
class Option:
    """One option of a transform.

    Args:
        name: as in the function's signature and in a spec.
        type: the type of its value, or of each item of a list; a ``choice`` is one of ``choices``.
        default: the value when the caller sends none; None for a required option, and for an optional one.
        choices: the allowed values of a ``choice``, or the members of an ``Enum`` whose values are allowed.
        description: one line of help for callers.
        is_optional: without a default it may be left out, and then is None.
        is_list: its value is a list; a tuple here, of which each call of the function gets a list of its own.
        bounds: its limits by their names in ``BOUNDS``; those of a list, other than of its length, are for each item.
    """

    name: str
    type: OptionType
    default: OptionValue | None = attrs.field(default=None, converter=read_json)
    choices: tuple[str | int | Enum, ...] = ()
    description: str = attrs.field(default="", converter=one_line)
    is_optional: bool = False
    is_list: bool = False
    bounds: Mapping[str, Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not is_valid_name(self.name):
            raise DefinitionError(f"{self.name!r} is not a valid option name: use {NAME_RULE}")
        if self.type not in get_args(OptionType):
            raise DefinitionError(f"option {self.name!r}: unknown type {self.type!r}")
        if len(self._choices) < len(self.choices):
            raise DefinitionError(f"option {self.name!r}: two choices have the same spelling")
        for bound, limit in self.bounds.items():
            self._check_bound(bound, limit)
        if self.default is not None and not self.accepts(self.default):
            raise DefinitionError(f"the default of option {self.name!r}, {self.default!r}, is not {self.wants}")

    def _check_bound(self, bound: str, limit: Any) -> None:
        types = BOUNDS[bound][1]
        kind = self.type if self.type in types and "length" not in bound else "int"
        if self.type not in types and not (self.is_list and "list" in types):
            rule = f"is for {', '.join(types)}, not for {self.type}: leave it out"
        elif not _is_a(kind, limit):
            rule = f"must be {_TYPES[kind][0]}, not {plain_value(limit)!r}"
        elif (bound == "multiple_of" and limit <= 0) or (bound == "max_items" and limit > MAX_ITEMS):
            rule = f"must be {'above 0' if limit <= 0 else f'up to {MAX_ITEMS}'}, not {limit}"
        else:
            return
        raise DefinitionError(f"option {self.name!r}: {bound} {rule}")

    @property
    def required(self) -> bool:
        """Whether every request must set it."""
        return self.default is None and not self.is_optional

    @property
    def takes(self) -> str:
        """What a value must be, in words for a person."""
        one = "one of " + ", ".join(self._choices) if self.type == "choice" else _TYPES[self.type][0]
        if limits := self._limits(self.type):
            one += " of length" * (self.type == "str") + limits
        length = self._limits("list") or f" up to {MAX_ITEMS}"
        return f"a comma-separated list of length{length}, each item {one}" if self.is_list else one

    def _limits(self, kind: str) -> str:
        bounds = [(word, self.bounds.get(bound)) for bound, (word, types, _) in BOUNDS.items() if kind in types]
        words = [f" {word} {plain_value(limit)}" for word, limit in bounds if limit is not None]
        return re.sub(r"from (\S+) to \1(?!\S)", r"\1", " and".join(words).replace(" and up to", " to"))

    @property
    def wants(self) -> str:
        """What a value must be, in words for its author."""
        kind = type(self.choices[0]).__name__ if self.choices else self.type
        return f"{self.takes}, of type {f'list[{kind}]' if self.is_list else kind}"

    def convert(self, text: str) -> OptionValue:
        """Convert the decoded text of a spec to this type, that of a list to a tuple; raise ``ValueError``."""
        read = self._choices.get if self.type == "choice" else _TYPES[self.type][2]
        value: Any = tuple(map(read, _split(text)[: MAX_ITEMS + 1])) if self.is_list else read(text)
        if not self.accepts(value):
            raise ValueError(text)
        return cast(OptionValue, value)

    def accepts(self, value: object) -> bool:
        """Whether this is a value of the option, already converted."""
        if not self.is_list:
            return self._is_within(self.type, value)
        return self._is_within("list", value) and all(self._is_within(self.type, item) for item in cast(Any, value))

    def _is_within(self, kind: str, value: object) -> bool:
        if kind == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        rules = [(BOUNDS[bound][2], limit) for bound, limit in self.bounds.items() if kind in BOUNDS[bound][1]]
        try:
            return _is_a(kind, value) and all(keeps(value, limit) for keeps, limit in rules)
        except TypeError:  # of two times only one has an offset from UTC
            return False

    @functools.cached_property
    def _choices(self) -> Mapping[str, OptionItem]:
        return {str(plain_value(choice)): choice for choice in self.choices}

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON Schema (2020-12)."""
        item: dict[str, Any] = {"enum": plain_value(self.choices)} if self.choices else {**_TYPES[self.type][1]}
        sizes = {"maxItems": MAX_ITEMS}
        for bound, limit in self.bounds.items():
            is_size = "list" in BOUNDS[bound][1]
            first, *rest = ["format"] * (self.type in _TIMES and not is_size) + bound.split("_")
            (sizes if is_size else item)[first + "".join(map(str.capitalize, rest))] = plain_value(limit)
        times = (*self.bounds.values(), *(cast(Any, self.default or ()) if self.is_list else [self.default]))
        if any(isinstance(time, datetime) and time.tzinfo is None for time in times):
            del item["format"]  # in which RFC 3339 wants an offset from UTC
        schema = {"type": "array", "items": item, **sizes} if self.is_list else item
        described = {"description": self.description} if self.description else {}
        default = {} if self.default is None else {"default": plain_value(self.default)}
        return {**schema, **described, **default}


def options_schema(options: Iterable[Option]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an object that holds these options, converted, by their names."""
    options = tuple(options)
    return {
        "type": "object",
        "properties": {option.name: option.schema for option in options},
        "required": [option.name for option in options if option.required],
        "additionalProperties": False,
    }


def with_own_lists(function: Callable[..., Any], options: Iterable[Option]) -> Callable[..., Any]:
    """Return a function whose lists may be changed in a call: values and defaults are shared by all calls."""
    lists = {option.name: option.default for option in options if option.is_list}

    def call(*poem: Any, **given: Any) -> Any:
        values = {name: given.get(name, default) for name, default in lists.items()}
        return function(*poem, **{**given, **{name: [*v] for name, v in values.items() if isinstance(v, tuple | list)}})

    return functools.wraps(function)(call) if lists else function
