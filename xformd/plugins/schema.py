"""The options of a transform as JSON Schema (2020-12): what a form, a client or a test can go by."""

from collections.abc import Iterable, Mapping
from typing import Any

from xformd.plugins.options import Option, OptionType

_TYPES: Mapping[OptionType, str] = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}


def options_schema(options: Iterable[Option]) -> dict[str, Any]:
    """Describe the options of a transform.

    Args:
        options: the transform's.

    Returns:
        The schema of an object that holds them by their names, converted.
    """
    options = tuple(options)
    return {
        "type": "object",
        "properties": {option.name: _schema(option) for option in options},
        "required": [option.name for option in options if option.required],
        "additionalProperties": False,
    }


def _schema(option: Option) -> dict[str, Any]:
    described: dict[str, Any] = (
        {"enum": list(option.choices)} if option.type == "choice" else {"type": _TYPES[option.type]}
    )
    return described if option.required else {**described, "default": option.default}
