"""Sizes and durations as people write them: ``10MiB``, ``500ms``, or a plain number of bytes or seconds."""

import re
from collections.abc import Mapping

_QUANTITY = re.compile(r"(?P<number>[0-9]{1,20}(\.[0-9]{1,20})?) ?(?P<unit>[A-Za-z]*)\Z")
_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_DURATIONS = {"": 1, "ms": 0.001, "s": 1, "min": 60, "h": 3600}


def read_size(text: str) -> int | None:
    """Read a number of bytes; give None for what cannot be read, or is no whole one."""
    size = _read(text, _SIZES)
    return int(size) if size is not None and size == int(size) else None


def show_size(size_bytes: int) -> str:
    """Write a number of bytes in the largest unit that needs no fraction."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def read_duration(text: str) -> float | None:
    """Read a number of seconds; give None for what cannot be read."""
    return _read(text, _DURATIONS)


def show_duration(duration_s: float) -> str:
    """Write a number of seconds, without a fraction where it has none."""
    return str(int(duration_s)) if duration_s == int(duration_s) else repr(duration_s)


def _read(text: str, units: Mapping[str, float]) -> float | None:
    match = _QUANTITY.match(text)
    factor = units.get(match["unit"].lower()) if match else None
    if match is None or factor is None:
        return None
    number = match["number"]
    return (int(number) if number.isdigit() else float(number)) * factor
