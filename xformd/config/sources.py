"""Where settings come from: defaults < TOML file < ``XFORMD_*`` environment < flags, and how they are written back.

Invariant: an unknown setting or an invalid value is an error of one line that names its place, never ignored.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import attrs

from xformd.config.settings import TABLE, Setting, Settings
from xformd.config.types import SHOWN, to_toml
from xformd.errors import ConfigError, one_line
from xformd.plugins.discovery import normalize
from xformd.plugins.settings import FILE, VARIABLE, Table, did_you_mean

NOT_SETTINGS = frozenset(
    {"XFORMD_CONFIG", "XFORMD_SERVER", "XFORMD_TOKEN", "XFORMD_CLIENT_TLS"}
    | {"XFORMD_TLS_CA", "XFORMD_TLS_CLIENT_CERTIFICATE", "XFORMD_TLS_CLIENT_KEY"}
)
"""Variables of the command line: the file to read, and the server that a client calls, with its token and its TLS."""

MAX_FILE_BYTES = 1_000_000

TABLES = ("plugin", "transform")  # tables of tables whose keys are no settings of the server

TOML_HEADER = """\
# Settings of xformd. Save this, and start with: xformd serve --config FILE
# A setting that is commented out has its default; remove the # to change it.
# In the environment max_queue is XFORMD_MAX_QUEUE, on the command line --max-queue."""

LISTED = "; 'xformd config' lists them"

Places = dict[tuple[str, ...], str]
"""Where the keys of a file are set: in ``xformd.toml, line 7``; one in a table has the table's name before it."""

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
    is_hidden: bool = False

    def to_toml(self) -> str:
        """Return the setting as TOML, with its reason and its place in comments."""
        setting, type_ = self.setting, self.setting.type
        origin, default = f"from {self.place}", ""
        if self.place == "default":
            origin = "default"
        elif type_ is not SHOWN:
            default = f"; default {type_.to_toml(setting.default)}"
        comment = one_line(f"# ({f'in {type_.unit}, ' if type_.unit else ''}{origin}{default})")
        sign = "#" if self.place == "default" or self.is_hidden else ""
        value = '"***"' if self.is_hidden else type_.to_toml(self.value)
        return f"# {setting.reason}\n{comment}\n{sign}{setting.name} = {value}"

    def to_json(self) -> dict[str, Any]:
        """Return the setting as values that JSON has; a size in bytes, a duration in seconds, null for no limit."""
        type_ = self.setting.type
        return {
            "name": self.setting.name,
            "value": None if self.is_hidden else type_.to_json(self.value),
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
    read_again: Callable[[], "Configuration"] = attrs.field(eq=False, repr=False)

    def locate(self, error: ConfigError) -> ConfigError:
        """Return an error about a setting with the place where it was set, and any other error unchanged."""
        for value in self.values:
            if value.setting.name == error.setting:
                return error.located_at(value.subject)
        return error

    def to_toml(self, more: Iterable[Value] = ()) -> str:
        """Return a TOML file with the same settings, and the reason and place of each in comments."""
        return "\n\n".join([TOML_HEADER, *(value.to_toml() for value in (*self.values, *more))])

    def table_values(self, types: Mapping[str, Mapping[str, str]]) -> Iterator[Value]:
        """Yield what the tables of plugins and commands have.

        What is not in the ``types`` of the settings, by normalized distribution, may be secret.
        """
        for name, table in self.settings.selection.settings.items():
            known = types.get(name, {})
            for key, value in table.values.items():
                names_file = key not in known and key.endswith(FILE) and key.removesuffix(FILE) in known
                is_path = names_file or known.get(key) == "path"
                is_hidden = not is_path and known.get(key, "secret") == "secret"
                setting = Setting(f"plugin.{to_toml(name)}.{key}", SHOWN, None, f"a setting of {name}")
                value = str(table.path(value)) if is_path else value
                yield Value(setting, value, table.places[key], key, is_hidden=is_hidden)
        for name, table in self.settings.selection.commands.items():
            for key, value in table.values.items():
                setting = Setting(f"transform.{to_toml(name)}.{key}", SHOWN, None, "of a command")
                yield Value(setting, value, table.places[key], key)


def configure(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, object]] | None = None,  # with the flag, for messages, before its value
) -> Configuration:
    """Merge the settings: a value of a higher source replaces the whole value of a lower one.

    Raises ``ConfigError`` if a setting is unknown or its value is invalid.
    """
    values = {name: Value(setting, setting.default, "default", name) for name, setting in TABLE.items()}
    tables: dict[str, dict[str, Table]] = {name: {} for name in TABLES}
    values |= _from_file(file, tables) if file is not None else {}
    _add_variables(tables["plugin"], environment or {}, str((file or Path("file")).parent.absolute()))
    values |= {value.setting.name: value for value in _from_environment(environment or {})}
    values |= {value.setting.name: value for value in _from_flags(flags or {})}
    inline, isolate = values["inline"], values["isolate"]
    for name in sorted(inline.value & isolate.value):
        raise ConfigError(f"{name!r} is in both inline ({inline.place}) and isolate ({isolate.place}); remove one")
    folders = values["plugins_dir"]
    for folder in folders.value:
        try:
            packages = [init.parent for init in folder.glob("*/__init__.py")]
            inside = (each for package in packages for each in (package, *package.rglob("*")))
            modules = (each for suffix in all_suffixes() for each in folder.glob(f"*{suffix}"))
            for path in (folder, *modules, *folder.glob("__pycache__"), *folder.glob("__pycache__/*"), *inside):
                _reject_untrusted(path, folders.subject, ", or accept its folder with --insecure-plugins-dir")
        except OSError as error:
            raise ConfigError(f"{folders.subject}: cannot read {folder}: {error.strerror}") from error
    settings = Settings.from_values({name: value.value for name, value in values.items()}, tables)
    # Absolute: a daemon may change to another folder.
    read_again = partial(configure, file and file.absolute(), environment, flags)
    return Configuration(settings, tuple(values.values()), read_again)


def read_tables(file: Path, kind: str) -> dict[str, Table]:
    """Read a TOML file that has tables ``[kind.NAME]`` and nothing else; raise ``ConfigError`` if it has."""
    others, tables, places = _read_file(file, (kind,))
    for name in others:
        raise ConfigError(f"{places[name,]}: {name!r} is not known here: write [{kind}.NAME]")
    return tables[kind]


def _from_file(file: Path, tables: Mapping[str, dict[str, Table]]) -> dict[str, Value]:
    others, found, places = _read_file(file, TABLES)
    tables["plugin"].update({normalize(name): table for name, table in found["plugin"].items()})
    tables["transform"].update(found["transform"])
    return {name: _read_from_file(file, name, raw, places) for name, raw in others.items()}


def _read_file(file: Path, kinds: Iterable[str]) -> tuple[Mapping[str, object], Mapping[str, dict[str, Table]], Places]:
    """Return the values of a file, its tables of tables of these kinds, and the place of each key."""
    try:
        with file.open("rb") as source:
            data = source.read(MAX_FILE_BYTES + 1)
        _reject_untrusted(file, str(file))
    except OSError as error:
        raise ConfigError(f"cannot read settings from {file}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} has more than {MAX_FILE_BYTES} bytes, too many for a file of settings")
    places: Places = {}
    for line, content in toml_statements(data, str(file)):
        _note_places(content, f"{file}, line {line}", places)
    # JSON has no dates: they become text.
    values = json.loads(json.dumps(tomllib.loads(data.decode("utf-8-sig")), default=str))
    inside: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in kinds}
    for (kind, *path), place in places.items():
        if kind not in inside:
            continue
        if not isinstance(values[kind] if not path else values[kind][path[0]], dict):
            raise ConfigError(f"{place}: {kind} has a table for each: write [{kind}.NAME]")
        if path:
            inside[kind].setdefault(path[0], {})[".".join(path[1:])] = place
    folder = str(file.parent.absolute())
    tables = {
        kind: {name: Table(values[kind][name], places, folder) for name, places in found.items()}
        for kind, found in inside.items()
    }
    return {name: raw for name, raw in values.items() if name not in inside}, tables, places


def _note_places(content: Mapping[str, Any], place: str, places: Places, *above: str) -> None:
    """Note where each key is set, also in a table."""
    for key, value in content.items():
        places.setdefault((*above, key), place)
        if isinstance(value, dict):
            _note_places(value, place, places, *above, key)


def _add_variables(tables: dict[str, Table], environment: Mapping[str, str], folder: str) -> None:
    """Set plugins' settings from the environment: a variable replaces what the file has, or has a file for."""
    for variable, text in sorted(environment.items()):
        if match := VARIABLE.match(variable):
            distribution, key = match["distribution"].lower().replace("_", "-"), match["key"].lower()
            table = tables.get(distribution, Table())
            pair = key.removesuffix(FILE), key.removesuffix(FILE) + FILE
            own = {each for each in pair if VARIABLE.match(table.places.get(each, ""))}
            kept = {each: table.values[each] for each in table.values if each in own or each not in pair}
            places = {"": variable, **table.places, key: variable}
            tables[distribution] = Table({**kept, key: text}, places, folder)


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


def _read_from_file(file: Path, name: str, raw: object, places: Places) -> Value:
    setting, place = TABLE.get(name), places[name,]
    if name == "plugins" and isinstance(raw, dict):  # what is in it may be secret
        raise ConfigError(f'{place}: plugins says which are loaded; the settings of one are in [plugin."NAME"]')
    if setting is None and isinstance(raw, dict) and (inside := raw.keys() & TABLE.keys()):
        raise ConfigError(f"{place}: {min(inside)} is inside the table {name!r}; move it to the top level")
    if setting is None:
        raise ConfigError(f"{place}: unknown setting {name!r}" + did_you_mean(name, (*TABLE, *TABLES), LISTED))
    value = _read(setting, raw, place, f"{place}: {name}")
    return attrs.evolve(value, value=_relative_to(file.parent, value.value))


def _relative_to(folder: Path, value: Any) -> Any:
    """Resolve the folders and files that a file names relative to the folder of that file."""
    if isinstance(value, Path):
        return folder / value
    return tuple(_relative_to(folder, each) for each in value) if isinstance(value, tuple) else value


def _from_environment(environment: Mapping[str, str]) -> Iterator[Value]:
    settings = {setting.variable: setting for setting in TABLE.values()}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(_PREFIX) or variable in NOT_SETTINGS or _is_service_link(variable, text):
            continue
        if VARIABLE.match(variable):  # which _add_variables has read
            continue
        if variable not in settings:
            raise ConfigError(f"{variable}: unknown setting" + did_you_mean(variable, settings, LISTED, _PREFIX))
        setting = settings[variable]
        yield _read(setting, text, variable, variable, is_text=True)


def _is_service_link(variable: str, text: str) -> bool:
    return bool(_SERVICE_LINK.search(variable) or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text)))


def _from_flags(flags: Mapping[str, tuple[str, object]]) -> Iterator[Value]:
    for name, (flag, raw) in flags.items():
        yield _read(TABLE[name], raw, flag, flag, is_text=isinstance(raw, str))


def _read(setting: Setting, raw: Any, place: str, subject: str, *, is_text: bool = False) -> Value:
    try:
        return Value(setting, setting.type.read(setting.type.from_text(raw) if is_text else raw), place, subject)
    except ValueError as error:
        raise ConfigError(f"{subject}: {error}") from error


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
        reason, position = _TOML_POSITION.sub("", str(error)), _TOML_POSITION.search(str(error))
        where = f"{file}, line {position['line'] or len(lines)}" if position else file
        raise ConfigError(f"{where}: not valid TOML: {reason}") from error
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


def _parse_toml(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None
