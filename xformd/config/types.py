"""The types of settings: how a value is read from text and from TOML, and how it is written.

Text is the value of a variable or a flag. Invariant: a value that cannot be read raises ``ValueError`` with a complete
message, such as ``expected a whole number of at least 1, got 'many'``.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import attrs

from xformd.limits import MAX_NUMBER, parse_duration, parse_size, parse_timeout, show_value
from xformd.plugins.options import TRUTH_WORDS
from xformd.plugins.selection import parse_distributions
from xformd.telemetry.access_log import STDERR

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_DIGITS = re.compile(r"[0-9]{1,20}\Z")


@attrs.frozen(kw_only=True)
class SettingType:
    """How the value of a setting is read and written.

    Args:
        from_toml: reads a value of a file, or the list of a repeated flag.
        from_text: reads a variable or a flag; by default like ``from_toml``.
        to_json: converts a value to one that JSON has, in its unit.
        to_toml: writes a value so that ``from_toml`` reads the same; by default the TOML of ``to_json``.
        unit: the unit of a number; empty if it has none.
    """

    from_toml: Callable[[Any], Any]
    from_text: Callable[[str], Any] = attrs.Factory(lambda self: self.from_toml, takes_self=True)
    to_json: Callable[[Any], object] = lambda value: value
    to_toml: Callable[[Any], str] = attrs.Factory(
        lambda self: lambda value: to_toml(self.to_json(value)), takes_self=True
    )
    unit: str = ""


def integer(minimum: int = 1, none: str | None = None) -> SettingType:
    """Return the type of a whole number; ``none`` is the word for None, if None is allowed."""

    def from_toml(value: object) -> int | None:
        if none is not None and value == none:
            return None
        if type(value) is int and minimum <= value <= MAX_NUMBER:
            return value
        raise _mismatch((f"'{none}' or " if none else "") + f"a whole number of at least {minimum}", value)

    return SettingType(
        from_toml=from_toml,
        from_text=lambda text: from_toml(int(text) if _DIGITS.match(text) else text),
        to_toml=lambda value: to_toml(none if value is None else value),
    )


def _share_from(value: object) -> float:
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < (share := float(value)) <= 1:  # type: ignore[arg-type]
            return share
    raise _mismatch("a number above 0 and up to 1", value)


def choice(*words: str) -> SettingType:
    """Return the type of one of several words."""

    def from_toml(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise _mismatch(" or ".join(map(repr, words)), value)

    return SettingType(from_toml=from_toml)


is_origin = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,*?#@]+").fullmatch
"""Match a value of the header ``Origin``, or the ``*`` that stands for all."""

is_host_name = re.compile(r"\*|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*").fullmatch
"""Match the name of a host, without a port, or the ``*`` that stands for all."""


def is_network(text: str) -> bool:
    """Whether this is an IP address, a network in CIDR form, or the ``unix`` that stands for Unix sockets."""
    try:
        return text == "unix" or "%" not in str(ip_network(text))
    except ValueError:
        return False


def is_requirement(text: str) -> bool:
    """Whether this is the name of a distribution, alone or with versions: ``xformd-images==1.2.*``."""
    from packaging.requirements import InvalidRequirement, Requirement  # for those who require something

    try:
        found = Requirement(text)
    except InvalidRequirement:
        return False
    return not (found.extras or found.marker or found.url)


def strings(
    noun: str,  # what each string is, in messages
    collect: Callable[[Iterable[str]], tuple[str, ...] | frozenset[str]],  # ``tuple`` if their order matters
    *,
    separators: str = r"[\s,]+",  # what separates them in text, as a regular expression
    accepts: Callable[[str], object] = bool,  # returns something true for a valid string
    minimum: int = 0,  # how many there must be
    empty: str | None = None,  # the word that stands for none at all
    hint: str = "",  # the end of the message about an invalid string: what to write instead
) -> SettingType:
    """Return the type of a list of strings."""

    def from_toml(value: object) -> tuple[str, ...] | frozenset[str]:
        if isinstance(value, str):
            value = [part for part in re.split(separators, value) if part]
        if not isinstance(value, list | tuple):
            raise _mismatch(f"a list of {noun}s", value)
        if empty is not None and empty in value:
            if len(value) > 1:
                raise ValueError(f"{empty!r} stands alone: leave it out, or the others")
            return collect(())
        if invalid := [text for text in value if not (isinstance(text, str) and accepts(text))]:
            raise ValueError(f"invalid {noun} {show_value(invalid[0])}{hint}")
        if len(value) < minimum:
            raise ValueError(f"expected at least {minimum} {noun}")
        return collect(value)

    return SettingType(from_toml=from_toml, to_json=_in_order)


def file_or(**words: Path | None) -> SettingType:
    """Return the type of a file, or of one of these words, each of which stands for something else."""

    def from_toml(value: object) -> Path | None:
        if isinstance(value, str) and value and "\0" not in value:
            return words[value] if value in words else _path(value)
        raise _mismatch(f"{', '.join(map(repr, words))} or a file", value)

    def to_json(file: Path | None) -> str:
        return next((word for word, each in words.items() if each == file), "") or str(Path(file or "").absolute())

    return SettingType(from_toml=from_toml, to_json=to_json)


def _boolean_from(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _mismatch("true or false", value)


def _plugins_from(value: object) -> frozenset[str] | None:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = ",".join(value) or "none"
    if isinstance(value, str):
        return parse_distributions(value)
    raise _mismatch("'all', 'none' or a list of distributions", value)


def _preferences_from_text(text: str) -> Mapping[str, str]:
    pairs = [part.partition("=") for part in re.split(r"[\s,]+", text) if part]
    if not all(name and distribution for name, _, distribution in pairs):
        raise _mismatch("NAME=DISTRIBUTION", text)
    return {name: distribution for name, _, distribution in pairs}


def _preferences_from_toml(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _mismatch("a table such as { shout = 'xformd-shout' }", value)
    for name, distribution in value.items():
        if not isinstance(distribution, str):
            raise _mismatch(f"a distribution for {name}", distribution)
    return dict(value)


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError(f"a path cannot contain a null character: {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from None


def _in_order(value: Iterable[object]) -> list[str]:
    items = list(map(str, value))
    return sorted(items) if isinstance(value, frozenset) else items


def to_toml(value: object) -> str:
    """Write a value that JSON has as TOML, on one line."""
    if isinstance(value, dict):
        pairs = [f"{key if _BARE_KEY.match(key) else to_toml(key)} = {to_toml(item)}" for key, item in value.items()]
        return "{ " + ", ".join(pairs) + " }" if pairs else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except that TOML requires DEL to be escaped; a terminal, more than that.
        readable = json.dumps(value.encode(errors="replace").decode(), ensure_ascii=False)
        return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in readable)
    return json.dumps(value)


def _size_to_toml(size_bytes: int) -> str:
    """Write a number of bytes in the largest unit that needs no fraction."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes % factor == 0:
            return to_toml(f"{size_bytes // factor}{unit}")
    return to_toml(size_bytes)


def _mismatch(expected: str, value: object) -> ValueError:
    return ValueError(f"expected {expected}, got {show_value(value)}")


_PATHS = strings("folder", tuple, separators=re.escape(os.pathsep))

SIZE = SettingType(from_toml=parse_size, to_toml=_size_to_toml, unit="bytes")
DURATION = SettingType(
    from_toml=parse_timeout, to_toml=lambda value: to_toml(int(value) if value == int(value) else value), unit="seconds"
)
DELAY = attrs.evolve(DURATION, from_toml=parse_duration, from_text=parse_duration)  # a duration that may be 0
BOOLEAN = SettingType(from_toml=_boolean_from, from_text=lambda raw: _boolean_from(TRUTH_WORDS.get(raw.lower(), raw)))
SHARE = SettingType(from_toml=_share_from)
FOLDERS = SettingType(
    from_toml=lambda value: tuple(map(_path, _PATHS.from_toml(value))),
    # Absolute, so that the output means the same when it is saved in another folder.
    to_json=lambda paths: [str(path.absolute()) for path in paths],
)
OUTPUT_FILE = file_or(none=None, stderr=STDERR)
LOG_FILE = file_or(stderr=STDERR)
FILE = file_or(none=None)
PLUGINS = SettingType(
    from_toml=_plugins_from, to_json=lambda value: "all" if value is None else sorted(value) or "none"
)
SHOWN = SettingType(from_toml=lambda value: value)
HIDDEN = attrs.evolve(SHOWN, to_json=lambda _: None, to_toml=lambda _: '"***"')  # of a plugin's settings
PREFERENCES = SettingType(
    from_toml=_preferences_from_toml,
    from_text=_preferences_from_text,
    to_json=lambda value: dict(sorted(value.items())),
)
