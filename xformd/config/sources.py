"""Where settings come from: defaults < TOML file < ``XFORMD_*`` environment < flags, and how they are written back.

Invariant: an unknown setting or an invalid value is an error of one line that names its place, never ignored.
"""

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import attrs

from xformd.config.settings import TABLE, Setting, Settings
from xformd.config.types import FOLDERS, LOG_FILE, PREFERENCES
from xformd.errors import ConfigError, one_line

NOT_SETTINGS = frozenset({"XFORMD_CONFIG", "XFORMD_SERVER"})
"""Variables of the command line: the file to read, and the server that a client calls."""

MAX_FILE_BYTES = 1_000_000

TOML_HEADER = """\
# Settings of xformd. Save this, and start with: xformd serve --config FILE
# A setting that is commented out has its default; remove the # to change it.
# In the environment max_queue is XFORMD_MAX_QUEUE, on the command line --max-queue."""

_PREFIX = "XFORMD_"
_TOML_POSITION = re.compile(r" \(at (?:line (?P<line>\d+), column \d+|end of document)\)\Z")
# Kubernetes sets these in every container of a namespace with a service called xformd, or xformd- and more.
_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)\Z")


@attrs.frozen
class Value:
    """The value of a setting, and where it was set."""

    setting: Setting
    value: Any
    place: str  # ``default``, ``xformd.toml, line 7``, ``XFORMD_WORKERS`` or ``--workers``
    subject: str  # the start of a message: ``xformd.toml, line 7: workers``, ``XFORMD_WORKERS`` or ``--workers``
    subjects: Mapping[str, str] = attrs.field(factory=dict)  # the same for a key of a table, or a folder

    def to_toml(self) -> str:
        """Return the setting as TOML, with its reason and its place in comments."""
        setting, type_ = self.setting, self.setting.type
        unit = f"in {type_.unit}, " if type_.unit else ""
        if self.place == "default":
            comment, sign = f"# ({unit}default)", "#"
        else:
            comment = one_line(f"# ({unit}from {self.place}; default {type_.to_toml(setting.default)})")
            sign = ""
        return f"# {setting.reason}\n{comment}\n{sign}{setting.name} = {type_.to_toml(self.value)}"

    def to_json(self) -> dict[str, Any]:
        """Return the setting as values that JSON has; a size in bytes, a duration in seconds, null for no limit."""
        type_ = self.setting.type
        return {
            "name": self.setting.name,
            "value": type_.to_json(self.value),
            "default": type_.to_json(self.setting.default),
            "unit": type_.unit or None,
            "place": self.place,
            "reason": self.setting.reason,
        }


@attrs.frozen
class Configuration:
    """The settings with their origin: ``values`` has one for each row of ``TABLE``, in its order."""

    settings: Settings
    values: tuple[Value, ...]

    def locate(self, error: ConfigError) -> ConfigError:
        """Return an error about a setting with the place where it was set, and any other error unchanged."""
        for value in self.values:
            if value.setting.name == error.setting:
                return error.located_at(value.subjects.get(error.entry or "", value.subject))
        return error

    def to_toml(self) -> str:
        """Return a TOML file with the same settings, and the reason and place of each in comments."""
        return "\n\n".join([TOML_HEADER, *(value.to_toml() for value in self.values)])


def configure(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, object]] | None = None,
) -> Configuration:
    """Merge the settings. A value of a higher source replaces the whole value of a lower one.

    Args:
        file: a TOML file, if any.
        environment: the process's variables.
        flags: name of a setting to its flag, for messages, and the value on the command line.

    Raises:
        ConfigError: a setting is unknown or its value is invalid.
    """
    values = {name: Value(setting, setting.default, "default", name) for name, setting in TABLE.items()}
    values |= _from_file(file) if file is not None else {}
    values |= {value.setting.name: value for value in _from_environment(environment or {})}
    values |= {value.setting.name: value for value in _from_flags(flags or {})}
    _reject_both(values["inline"], values["isolate"])
    folders, insecure = values["plugins_dir"], values["insecure_plugins_dir"]
    values["plugins_dir"] = attrs.evolve(folders, subjects=dict.fromkeys(map(str, insecure.value), insecure.subject))
    for folder in folders.value:
        try:
            packages = [init.parent for init in folder.glob("*/__init__.py")]
            inside = (each for package in packages for each in (package, *package.rglob("*")))
            modules = (each for suffix in all_suffixes() for each in folder.glob(f"*{suffix}"))
            for path in (folder, *modules, *folder.glob("__pycache__"), *folder.glob("__pycache__/*"), *inside):
                _reject_untrusted(path, folders.subject, ", or accept its folder with --insecure-plugins-dir")
        except OSError as error:
            raise ConfigError(f"{folders.subject}: cannot read {folder}: {error.strerror}") from error
    settings = Settings.from_values({name: value.value for name, value in values.items()})
    return Configuration(settings, tuple(values.values()))


def _from_file(file: Path) -> dict[str, Value]:
    try:
        with file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
        _reject_untrusted(file, str(file))
    except OSError as error:
        raise ConfigError(f"cannot read settings from {file}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} has more than {MAX_FILE_BYTES} bytes, too many for a file of settings")
    values: dict[str, Value] = {}
    for line, content in toml_statements(data, str(file)):
        for name, raw in content.items():
            value = _read_from_file(name, raw, f"{file}, line {line}")
            values[name] = _merge_tables(values.get(name), value)
    return {name: _relative_to(file, value) for name, value in values.items()}


def _reject_untrusted(path: Path, subject: str, advice: str = "") -> None:
    """Reject what others than root and this user may change, or a folder above it, as sshd does with ``StrictModes``.

    A group with its owner's number is that user's own (umask 002); the mode of /dev/null and a ConfigMap says nothing.
    """
    is_there = os.access(path, os.F_OK)  # or else, whoever reads it will say why
    for each, is_above in dict.fromkeys(_places(path.absolute())) if is_there else ():
        found = each.lstat()
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{subject}: {each} belongs to another user: chown it to root or yourself{advice}")
        others = stat.S_IWOTH if found.st_uid == found.st_gid else stat.S_IWOTH | stat.S_IWGRP
        is_safe = stat.S_IFMT(found.st_mode) in (stat.S_IFCHR, stat.S_IFLNK) or os.statvfs(each).f_flag & os.ST_RDONLY
        if found.st_mode & others and not is_safe and not (is_above and found.st_mode & stat.S_ISVTX):
            raise ConfigError(f"{subject}: other users may write to {each}: run chmod go-w {each}{advice}")


def _places(path: Path, *, is_above: bool = False) -> Iterator[tuple[Path, bool]]:
    """Yield a path and the folders above it, and the same of whatever a link among them leads to."""
    for each in (path, *path.parents):
        yield each, is_above or each != path
        if each.is_symlink() and (target := each.parent / each.readlink()).exists():  # that of a pipe has no name
            yield from _places(target, is_above=is_above or each != path)


def _read_from_file(name: str, raw: object, place: str) -> Value:
    setting = TABLE.get(name)
    if setting is None and isinstance(raw, dict | list) and (inside := _names_in(raw)) & set(TABLE):
        raise ConfigError(f"{place}: {min(inside & set(TABLE))} is inside the table {name!r}; move it to the top level")
    if setting is None:
        raise ConfigError(f"{place}: unknown setting {name!r}" + _did_you_mean(name, TABLE))
    return _read(setting, setting.type.from_toml, raw, place, f"{place}: {name}")


def _names_in(raw: object) -> set[str]:
    if isinstance(raw, list):
        return set().union(*map(_names_in, raw))
    return set(raw) if isinstance(raw, dict) else set()


def _merge_tables(before: Value | None, value: Value) -> Value:
    # Each line of a table arrives on its own: prefer.a = "x" adds a key to the lines before.
    if value.setting.type is not PREFERENCES:
        return value
    before = before or attrs.evolve(value, value={})
    subjects = {**before.subjects, **dict.fromkeys(value.value, value.subject)}
    return attrs.evolve(before, value={**before.value, **value.value}, subjects=subjects)


def _relative_to(file: Path, value: Value) -> Value:
    """Resolve the folders and files that a file names relative to the folder of that file."""
    if value.setting.type is LOG_FILE and value.value is not None:
        return attrs.evolve(value, value=file.parent / value.value)
    if value.setting.type is not FOLDERS:
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
        yield _read(setting, setting.type.from_text, text, variable, variable)


def _is_service_link(variable: str, text: str) -> bool:
    return bool(_SERVICE_LINK.search(variable) or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text)))


def _from_flags(flags: Mapping[str, tuple[str, object]]) -> Iterator[Value]:
    for name, (flag, raw) in flags.items():
        type_ = TABLE[name].type
        yield _read(TABLE[name], type_.from_text if isinstance(raw, str) else type_.from_toml, raw, flag, flag)


def _read(setting: Setting, read: Callable[[Any], Any], raw: object, place: str, subject: str) -> Value:
    try:
        return Value(setting, read(raw), place, subject)
    except ValueError as error:
        raise ConfigError(f"{subject}: {error}") from error


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    # Without the common prefix, which would make every name similar.
    nearest = difflib.get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    return f"; did you mean '{prefix}{nearest[0]}'?" if nearest else "; 'xformd config' lists them"


def _reject_both(inline: Value, isolate: Value) -> None:
    for name in sorted(inline.value & isolate.value):
        raise ConfigError(f"{name!r} is in both inline ({inline.place}) and isolate ({isolate.place}); remove one")


def toml_statements(data: bytes, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line of each statement of a TOML file, from 1, and its value inside its tables.

    ``tomllib`` reports no lines. But TOML is read from top to bottom and a statement ends at the end of a line, so the
    shortest run of lines that parses is a statement. That leaves multi-line strings and arrays, quoted and dotted keys
    to the parser. Nothing is yielded before the whole file has been parsed: ``ConfigError`` says what is wrong with it.
    """
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise ConfigError(f"{file}, line {line}: not valid TOML: it is not UTF-8") from error
    lines = text.split("\n")
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # for 5,000 digits or brackets, tomllib raises other errors
        reason = _TOML_POSITION.sub("", str(error))
        raise ConfigError(f"{file}, line {_line_of(error, lines)}: not valid TOML: {reason}") from error
    header, start = "", 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[start:end])
        is_header = statement.lstrip().startswith("[")
        content = _parse_toml(statement if is_header else f"{header}\n{statement}")
        if content is None:
            continue  # it continues on the next line
        if is_header:
            header = statement
        if statement.strip() and not statement.lstrip().startswith("#"):
            yield start + 1, content
        start = end


def _line_of(error: Exception, lines: list[str]) -> int:
    if match := _TOML_POSITION.search(str(error)):
        return int(match["line"] or len(lines))
    for end in range(1, len(lines)):
        try:
            tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # it ends inside a statement
        except (ValueError, RecursionError):
            return end
    return len(lines)


def _parse_toml(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
