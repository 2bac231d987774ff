"""Where settings come from: defaults < TOML file < ``XFORMD_*`` environment < flags, each value with its place.

The law: what is misspelled or does not read is one line that names the place, and never passed over.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.config.settings import TABLE, Setting, Settings
from xformd.config.toml_lines import NotTomlError, statements
from xformd.config.types import FOLDERS, PREFERENCES
from xformd.errors import ConfigError

NOT_SETTINGS = frozenset({"XFORMD_CONFIG", "XFORMD_SERVER"})
"""Variables of the command line: which file to read, and which server a client calls."""

_PREFIX = "XFORMD_"
# What Kubernetes sets in every container beside a service that is called xformd.
_SERVICE_LINK = re.compile(r"XFORMD_(SERVICE_(HOST|PORT(_.*)?)|PORT_[0-9]+_.*)\Z", re.DOTALL)


@attrs.frozen
class Value:
    """What a setting is, and who says so.

    Args:
        setting: which.
        value: what it is.
        place: where that stands: ``default``, ``xformd.toml, line 7``, ``XFORMD_WORKERS`` or ``--workers``.
        subject: how a message about it begins: ``xformd.toml, line 7: workers``, ``XFORMD_WORKERS`` or ``--workers``.
        subjects: the same for each key, where it is a table in a file.
    """

    setting: Setting
    value: Any
    place: str
    subject: str
    subjects: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Configuration:
    """Every setting.

    Args:
        settings: what a server is made from.
        values: one for each row of the table, in its order.
    """

    settings: Settings
    values: tuple[Value, ...]

    def locate(self, error: ConfigError) -> ConfigError:
        """Say of an error where the setting that it is about was set; give any other as it is."""
        for value in self.values:
            if value.setting.name == error.setting:
                return error.located_at(value.subjects.get(error.entry or "", value.subject))
        return error


def configure(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, object]] | None = None,
) -> Configuration:
    """Put the settings together. What stands in a higher place replaces the whole value of a lower one.

    Args:
        file: a TOML file, if there is one.
        environment: the process's variables.
        flags: name of a setting to the flag as the operator knows it, and what was given.

    Returns:
        The settings.

    Raises:
        ConfigError: a setting is unknown, or its value cannot be read.
    """
    values = {name: Value(setting, setting.default, "default", name) for name, setting in TABLE.items()}
    values |= _from_file(file) if file is not None else {}
    values |= {value.setting.name: value for value in _from_environment(environment or {})}
    values |= {value.setting.name: value for value in _from_flags(flags or {})}
    _refuse_both(values["inline"], values["isolate"])
    settings = Settings.of({name: value.value for name, value in values.items()})
    return Configuration(settings, tuple(values.values()))


def _from_file(file: Path) -> dict[str, Value]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read settings from {file}: {error.strerror}") from error
    values: dict[str, Value] = {}
    try:
        for statement in statements(data):
            place = f"{file}, line {statement.line}"
            for name, given in statement.content.items():
                value = _read_from_file(name, given, place)
                values[name] = _join(values.get(name), value)
    except NotTomlError as error:
        raise ConfigError(f"{file}, line {error.line}: this is not TOML: {error.reason}") from error
    return {name: _beside(file, value) for name, value in values.items()}


def _read_from_file(name: str, given: object, place: str) -> Value:
    setting = TABLE.get(name)
    if setting is None and isinstance(given, dict | list) and (inside := _names_in(given)) & set(TABLE):
        raise ConfigError(f"{place}: {min(inside & set(TABLE))} stands in a table, {name!r}; settings stand in none")
    if setting is None:
        raise ConfigError(f"{place}: unknown setting {name!r}" + _did_you_mean(name, TABLE))
    return _read(setting, setting.kind.from_toml, given, place, f"{place}: {name}")


def _names_in(given: object) -> set[str]:
    if isinstance(given, list):
        return set().union(*map(_names_in, given))
    return set(given) if isinstance(given, dict) else set()


def _join(before: Value | None, value: Value) -> Value:
    """Add to a table what another line says of it."""
    if value.setting.kind is not PREFERENCES:
        return value
    before = before or attrs.evolve(value, value={})
    subjects = {**before.subjects, **dict.fromkeys(value.value, value.subject)}
    return attrs.evolve(before, value={**before.value, **value.value}, subjects=subjects)


def _beside(file: Path, value: Value) -> Value:
    """Let a relative folder in a file start where the file lies."""
    if value.setting.kind is not FOLDERS:
        return value
    return attrs.evolve(value, value=tuple(file.parent / folder for folder in value.value))


def _from_environment(environment: Mapping[str, str]) -> Iterator[Value]:
    settings = {setting.variable: setting for setting in TABLE.values()}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(_PREFIX) or variable in NOT_SETTINGS or _is_service_link(variable, text):
            continue
        if variable not in settings:
            raise ConfigError(f"{variable}: unknown setting" + _did_you_mean(variable, settings, _PREFIX))
        setting = settings[variable]
        yield _read(setting, setting.kind.from_text, text, variable, variable)


def _is_service_link(variable: str, text: str) -> bool:
    return bool(_SERVICE_LINK.match(variable)) or (variable == "XFORMD_PORT" and "://" in text)


def _from_flags(flags: Mapping[str, tuple[str, object]]) -> Iterator[Value]:
    for name, (flag, given) in flags.items():
        kind = TABLE[name].kind
        yield _read(TABLE[name], kind.from_text if isinstance(given, str) else kind.from_toml, given, flag, flag)


def _read(setting: Setting, read: Callable[[Any], Any], given: object, place: str, subject: str) -> Value:
    try:
        return Value(setting, read(given), place, subject)
    except ValueError as error:
        raise ConfigError(f"{subject}: {error}") from error


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    # A prefix that all have in common would make everything near.
    nearest = difflib.get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"; did you mean '{prefix}{nearest[0]}'?" if nearest else "; 'xformd config' lists them"


def _refuse_both(inline: Value, isolate: Value) -> None:
    for name in sorted(inline.value & isolate.value):
        raise ConfigError(f"{name!r} is both in inline ({inline.place}) and in isolate ({isolate.place})")
