"""What a setting may be: how its value reads from text and from TOML, and how it is written.

Text is what a variable or a flag holds. What does not read raises ``ValueError`` with the rest of a sentence that
begins with the setting: ``takes a whole number from 1, not 'many'``.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.config import quantities
from xformd.plugins.options import Option
from xformd.plugins.selection import parse_distributions

MAX_NUMBER = 2**63 - 1
MAX_DURATION_S = 1e9

_SWITCH = Option("switch", "bool")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*?#@]+\Z")
_WHOLE = re.compile(r"[0-9]{1,20}\Z")


@attrs.frozen(kw_only=True)
class SettingType:
    """What the value of a setting is.

    Args:
        from_text: reads it from a variable or a flag.
        from_toml: reads it from what stands in a file, or from a list of the values of a flag.
        to_toml: writes it so that ``from_toml`` reads the same.
        to_json: gives it as a value that JSON has, in its unit.
        unit: what its number counts; empty where that goes without saying.
    """

    from_text: Callable[[str], Any]
    from_toml: Callable[[object], Any]
    to_toml: Callable[[Any], str]
    to_json: Callable[[Any], object] = lambda value: value
    unit: str = ""


def count(minimum: int = 1, word: str | None = None) -> SettingType:
    """Give the kind of a whole number.

    Args:
        minimum: the least.
        word: what None is called, where that is a value.
    """

    def from_toml(value: object) -> int | None:
        if word is not None and value == word:
            return None
        if type(value) is int and minimum <= value <= MAX_NUMBER:
            return value
        raise _refusal(f"a whole number from {minimum}" + (f", or '{word}'" if word else ""), value)

    return SettingType(
        from_text=lambda text: from_toml(int(text) if _WHOLE.match(text) else text),
        from_toml=from_toml,
        to_toml=lambda value: _quote(str(word)) if value is None else str(value),
    )


def choice(*words: str) -> SettingType:
    """Give the kind of one of several words."""

    def from_toml(value: object) -> str:
        if isinstance(value, str) and value in words:
            return value
        raise _refusal(" or ".join(map(repr, words)), value)

    return SettingType(from_text=from_toml, from_toml=from_toml, to_toml=_quote)


def is_origin(text: str) -> bool:
    """Whether this is what a browser sends as ``Origin``, or the ``*`` that stands for all."""
    return text == "*" or _ORIGIN.match(text) is not None


def texts(
    thing: str,
    collect: Callable[[Iterable[str]], tuple[str, ...] | frozenset[str]],
    *,
    separators: str = r"[\s,]+",
    accepts: Callable[[str], bool] = bool,
    minimum: int = 0,
) -> SettingType:
    """Give the kind of several texts.

    Args:
        thing: what each is, for a person.
        collect: what holds them: ``tuple`` where their order counts, else ``frozenset``.
        separators: what stands between them in a variable, as a regular expression.
        accepts: whether one of them is right.
        minimum: how many there must be.
    """

    def from_toml(value: object) -> tuple[str, ...] | frozenset[str]:
        if isinstance(value, str):
            value = [part for part in re.split(separators, value) if part]
        if not isinstance(value, list | tuple):
            raise _refusal(f"a list of {thing}s", value)
        for text in value:
            if not isinstance(text, str) or not accepts(text):
                raise _refusal(f"{thing}s", text)
        if len(value) < minimum:
            raise ValueError(f"takes at least {minimum} {thing}")
        return collect(value)

    return SettingType(from_text=from_toml, from_toml=from_toml, to_toml=_list_to_toml, to_json=_in_order)


def _size_from(value: object) -> int:
    size = quantities.read_size(value) if isinstance(value, str) else value
    if type(size) is int and 0 < size <= MAX_NUMBER:
        return size
    raise _refusal("a number of bytes above 0, as 65536, '64KiB', '10MiB' or '1GiB'", value)


def _duration_from(value: object) -> float:
    seconds = quantities.read_duration(value) if isinstance(value, str) else value
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= MAX_DURATION_S:
        return float(seconds)
    raise _refusal("a number of seconds above 0, as 2.5, '500ms', '30s' or '5min'", value)


def _switch_from_text(text: str) -> bool:
    try:
        return bool(_SWITCH.convert(text))
    except ValueError:
        raise _refusal("true or false", text) from None


def _switch_from_toml(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise _refusal("true or false", value)


def _selection_from(value: object) -> frozenset[str] | None:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = ",".join(value) or "none"
    if isinstance(value, str):
        return parse_distributions(value)
    raise _refusal("'all', 'none', or a list of distributions", value)


def _selection_to_json(value: frozenset[str] | None) -> object:
    return "all" if value is None else sorted(value) or "none"


def _selection_to_toml(value: frozenset[str] | None) -> str:
    return _quote("all") if value is None else _list_to_toml(value) if value else _quote("none")


def _preferences_from_text(text: str) -> Mapping[str, str]:
    pairs = [part.partition("=") for part in re.split(r"[\s,]+", text) if part]
    if not all(name and distribution for name, _, distribution in pairs):
        raise _refusal("NAME=DISTRIBUTION", text)
    return {name: distribution for name, _, distribution in pairs}


def _preferences_from_toml(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _refusal("a table, as { shout = 'xformd-shout' }", value)
    for name, distribution in value.items():
        if not isinstance(distribution, str):
            raise _refusal(f"a distribution for {name}", distribution)
    return dict(value)


def _preferences_to_toml(value: Mapping[str, str]) -> str:
    pairs = [
        f"{name if _BARE_KEY.match(name) else _quote(name)} = {_quote(distribution)}"
        for name, distribution in sorted(value.items())
    ]
    return "{ " + ", ".join(pairs) + " }" if pairs else "{}"


def _list_to_toml(value: Iterable[object]) -> str:
    return "[" + ", ".join(map(_quote, _in_order(value))) + "]"


def _in_order(value: Iterable[object]) -> list[str]:
    shown = [str(item) for item in value]
    return sorted(shown) if isinstance(value, frozenset) else shown


def _quote(text: str) -> str:
    # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped.
    readable = text.encode(errors="replace").decode()
    return json.dumps(readable, ensure_ascii=False).replace("\x7f", "\\u007f")


def _size_to_toml(size_bytes: int) -> str:
    shown = quantities.show_size(size_bytes)
    return shown if shown.isdigit() else _quote(shown)


def _refusal(wanted: str, value: object) -> ValueError:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return ValueError(f"takes {wanted}, not {shown}")


_FOLDER_NAMES = texts("folder", tuple, separators=re.escape(os.pathsep))


def _full(folders: Iterable[Path]) -> list[Path]:
    # What is shown holds wherever it is saved.
    return [folder.absolute() for folder in folders]


SIZE = SettingType(
    from_text=_size_from,
    from_toml=_size_from,
    to_toml=_size_to_toml,
    unit="bytes",
)
DURATION = SettingType(
    from_text=_duration_from, from_toml=_duration_from, to_toml=quantities.show_duration, unit="seconds"
)
SWITCH = SettingType(from_text=_switch_from_text, from_toml=_switch_from_toml, to_toml=lambda value: str(value).lower())
FOLDERS = SettingType(
    from_text=lambda text: tuple(map(Path, _FOLDER_NAMES.from_text(text))),
    from_toml=lambda value: tuple(map(Path, _FOLDER_NAMES.from_toml(value))),
    to_toml=lambda value: _list_to_toml(_full(value)),
    to_json=lambda value: _in_order(_full(value)),
)
SELECTION = SettingType(
    from_text=_selection_from, from_toml=_selection_from, to_toml=_selection_to_toml, to_json=_selection_to_json
)
PREFERENCES = SettingType(
    from_text=_preferences_from_text,
    from_toml=_preferences_from_toml,
    to_toml=_preferences_to_toml,
    to_json=lambda value: dict(sorted(value.items())),
)
