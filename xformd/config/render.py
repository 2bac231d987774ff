"""Settings for a person, as a TOML file to start from, and for a program, as JSON."""

from collections.abc import Iterator
from typing import Any

from xformd.config.sources import Configuration, Value
from xformd.errors import one_line

HEADER = """\
# Settings of xformd. Save this, and start with: xformd serve --config FILE
# A setting that is commented out has its default; remove the # to change it.
# In the environment max_queue is XFORMD_MAX_QUEUE, on the command line --max-queue."""


def to_toml(configuration: Configuration) -> str:
    """Write every setting, with what it is for and where it comes from.

    Args:
        configuration: the settings.

    Returns:
        A TOML file that means the same settings.
    """
    return "\n\n".join([HEADER, *map(_paragraph, configuration.values)])


def to_json(configuration: Configuration) -> list[dict[str, Any]]:
    """Give every setting as values that JSON has; sizes are in bytes, durations in seconds, and null is no limit."""
    return [
        {
            "name": value.setting.name,
            "value": value.setting.type.to_json(value.value),
            "default": value.setting.type.to_json(value.setting.default),
            "unit": value.setting.type.unit or None,
            "place": value.place,
            "reason": value.setting.reason,
        }
        for value in configuration.values
    ]


def _paragraph(value: Value) -> str:
    setting, kind = value.setting, value.setting.type
    is_default = value.place == "default"
    return "\n".join(
        [
            f"# {setting.reason}",
            *_about(value),
            f"{'#' if is_default else ''}{setting.name} = {kind.to_toml(value.value)}",
        ]
    )


def _about(value: Value) -> Iterator[str]:
    kind = value.setting.type
    unit = f"in {kind.unit}, " if kind.unit else ""
    if value.place == "default":
        yield f"# ({unit}default)"
    else:
        yield one_line(f"# ({unit}from {value.place}; default {kind.to_toml(value.setting.default)})")
