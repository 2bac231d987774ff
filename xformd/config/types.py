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
from xformd.telemetry.access_log import STDERR

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_DIGITS = re.compile(r"[0-9]{1,20}\Z")


@attrs.frozen(kw_only=True)
class SettingType:
    """How the value of a setting is read and written."""

    read: Callable[[Any], Any]  # a value of a file, or the tuple of a repeated flag
    from_text: Callable[[str], Any] = lambda text: text  # makes of a variable or a flag what a file would have
    unit: str = ""  # of a number; empty if it has none
    words: Mapping[str, Any] = attrs.field(factory=dict)  # that stand for some values
    none: str | None = None  # the word for None in a file, where JSON has null
    metavar: str = "N"  # what the help of its flag calls a value
    is_repeated: bool = False  # whether its flag may be repeated

    def to_json(self, value: Any) -> Any:
        """Convert a value to one that JSON has, in its unit."""
        for word, meaning in self.words.items():
            if value == meaning:
                return word
        match value:
            case Path():
                return str(value.absolute())  # so that the output means the same when it is saved in another folder
            case frozenset():
                return sorted(value)
            case tuple():
                return [*map(self.to_json, value)]
        return value

    def to_toml(self, value: Any) -> str:
        """Write a value so that ``read`` reads the same."""
        if self.unit == "bytes":
            return to_toml(_in_largest_unit(value))
        if self.unit == "seconds" and value == int(value):
            return to_toml(int(value))
        return to_toml(self.none if value is None and self.none else self.to_json(value))


def _expect(expected: str, is_valid: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Return what returns a valid value, and raises ``ValueError`` for any other."""

    def read(value: Any) -> Any:
        if is_valid(value):
            return value
        raise _mismatch(expected, value)

    return read


def integer(minimum: int = 1, none: str | None = None) -> SettingType:
    """Return the type of a whole number; ``none`` is the word for None, if None is allowed."""
    expected = (f"'{none}' or " if none else "") + f"a whole number of at least {minimum}"
    read = _expect(expected, lambda value: type(value) is int and minimum <= value <= MAX_NUMBER)
    return SettingType(
        read=lambda value: None if none is not None and value == none else read(value),
        from_text=lambda text: int(text) if _DIGITS.match(text) else text,
        none=none,
    )


def _share_from(value: object) -> float:
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < (share := float(value)) <= 1:  # type: ignore[arg-type]
            return share
    raise _mismatch("a number above 0 and up to 1", value)


def choice(*words: str) -> SettingType:
    """Return the type of one of several words."""
    read = _expect(" or ".join(map(repr, words)), lambda value: value in words)
    return SettingType(read=read, metavar=f"[{'|'.join(words)}]")


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
    collect: Callable[[Iterable[str]], Any],  # ``tuple`` if their order matters, else ``frozenset``
    *,
    separators: str = r"[\s,]+",  # what separates them in text, as a regular expression
    accepts: Callable[[str], object] = bool,  # returns something true for a valid string
    minimum: int = 0,  # how many there must be
    empty: str | None = None,  # the word that stands for none at all
    hint: str = "",  # the end of the message about an invalid string: what to write instead
) -> SettingType:
    """Return the type of a list of strings."""

    def read(value: object) -> Any:
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
            raise ValueError(f"expected at least {minimum} {noun}" + (f", or {empty!r}" if empty else ""))
        return collect(value)

    return SettingType(read=read, metavar=noun.upper().split()[-1], is_repeated=True)


def file_or(metavar: str, **words: Path | None) -> SettingType:
    """Return the type of a file, or of one of these words, each of which stands for something else."""
    expected = f"{', '.join(map(repr, words))} or a file"
    read = _expect(expected, lambda value: isinstance(value, str) and value != "" and "\0" not in value)
    return SettingType(
        read=lambda value: words[value] if read(value) in words else _path(value),
        words=words,
        metavar=metavar,
    )


def _preferences_from_text(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, re.split(r"[\s,]+", text)):
        name, _, distribution = part.partition("=")
        if not (name and distribution):
            raise _mismatch("NAME=DISTRIBUTION", part)
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = distribution
    return found


def _preferences_from(value: object) -> Mapping[str, str]:
    if isinstance(value, tuple):  # of a repeated flag
        value = _preferences_from_text(" ".join(value))
    if not isinstance(value, Mapping):
        raise _mismatch("a table such as { shout = 'xformd-shout' }", value)
    for name, distribution in value.items():
        if not isinstance(distribution, str):
            raise _mismatch(f"a distribution for {name}", distribution)
    return dict(sorted(value.items()))


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError(f"a path cannot contain a null character: {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text}: {error}") from None


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


def _in_largest_unit(size_bytes: int) -> str | int:
    """Return a number of bytes in the largest unit that needs no fraction."""
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    return next((f"{size_bytes // factor}{unit}" for unit, factor in units if size_bytes % factor == 0), size_bytes)


def _mismatch(expected: str, value: object) -> ValueError:
    return ValueError(f"expected {expected}, got {show_value(value)}")


SIZE = SettingType(read=parse_size, unit="bytes", metavar="SIZE")
DURATION = SettingType(read=parse_timeout, unit="seconds", metavar="DURATION")
DELAY = attrs.evolve(DURATION, read=parse_duration)  # a duration that may be 0
BOOLEAN = SettingType(
    read=_expect("true or false", lambda value: isinstance(value, bool)),
    from_text=lambda text: TRUTH_WORDS.get(text.lower(), text),
)
SHARE = SettingType(read=_share_from, metavar="SHARE")
_FOLDERS = strings("folder", lambda texts: tuple(map(_path, texts)), separators=re.escape(os.pathsep))
FOLDERS = attrs.evolve(_FOLDERS, metavar="DIR")
OUTPUT_FILE = file_or("[none|stderr|FILE]", none=None, stderr=STDERR)
LOG_FILE = file_or("[stderr|FILE]", stderr=STDERR)
FILE = file_or("FILE", none=None)
FOLDER = file_or("DIR", none=None)
_DISTRIBUTIONS = strings(
    "distribution",
    frozenset,
    accepts=lambda name: name != "all",
    minimum=1,
    empty="none",
    hint=": it stands alone, or not at all",
)
PLUGINS = SettingType(
    read=lambda value: None if value in ("all", ["all"]) else _DISTRIBUTIONS.read(value),
    words={"all": None, "none": frozenset()},
    metavar="SELECTION",
)
SHOWN = SettingType(read=lambda value: value)  # of a plugin's settings
PREFERENCES = SettingType(
    read=_preferences_from, from_text=_preferences_from_text, metavar="NAME=DISTRIBUTION", is_repeated=True
)
