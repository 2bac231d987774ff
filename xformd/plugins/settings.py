"""Settings of plugins: the tables of a configuration, and the classes that say what may be in one.

Invariant: no ``Secret`` gets into a message, a listing or a ``repr``.
"""

import dataclasses
import difflib
import hmac
import inspect
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

import attrs

from xformd.errors import ConfigError, DefinitionError, one_line, safe_str
from xformd.plugins.options import Option
from xformd.plugins.signature import read_option

FILE = "_file"  # the end of a key that names a file with the value
MAX_FILE_BYTES = 64 * 1024  # of such a file

VARIABLE = re.compile(r"XFORMD_PLUGIN_(?P<distribution>[A-Z0-9]+(?:_[A-Z0-9]+)*)__(?P<key>[A-Z0-9_]+)\Z")
"""The name of a variable with a setting of a plugin."""


class Secret:
    """A text that must not show, such as the key of an API: only ``reveal`` gives it."""

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """Return the text."""
        return self.__text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.__text.encode(), other.__text.encode())

    def __hash__(self) -> int:
        return hash(self.__text)

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __deepcopy__(self, _: object) -> "Secret":
        return self  # for dataclasses.asdict

    def __reduce_ex__(self, _: object) -> NoReturn:
        raise TypeError("a Secret is not pickled; what reveal() returns can be")


@attrs.frozen
class Table:
    """A table of a configuration, such as ``[plugin."xformd-summarise"]``, with the variables that stand above it.

    Args:
        values: key to value, as TOML and JSON have it; that of a variable is text.
        places: key to where it is set; that of a key in a table of it as ``options.toc``, that of the table as ``""``.
        folder: of the configuration, which its paths are relative to.
    """

    values: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    places: Mapping[str, str] = attrs.field(factory=dict)
    folder: str = ""

    def locate(self, key: str, problem: str) -> str:
        """Return a problem with the place of its key, or else of the table."""
        places = (self.places[each] for each in (key, key.partition(".")[0], "") if each in self.places)
        return one_line(f"{place}: {problem}" if (place := next(places, "")) else problem)

    def path(self, value: str) -> Path:
        """Return the path that a value means."""
        return Path(self.folder, os.path.expanduser(value))  # noqa: PTH111 - which does not raise

    def read_file(self, key: str) -> str:
        """Return what the file that a key names has, without the newline at its end; raise ``ValueError``."""
        if not isinstance(self.values[key], str):
            raise ValueError(f"{key} takes the name of a file")
        file = self.path(self.values[key])
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe has nothing left for a reload
                raise ValueError("it is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
            text = re.sub(r"\r?\n\Z", "", file.read_bytes().decode())
            if not text:
                raise ValueError("it is empty")
            return text
        except (OSError, ValueError) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", error)
            raise ValueError(f"{key}: cannot read {file}: {reason}") from None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the nearest one, or all; without a ``prefix`` they share."""
    known = [each.removeprefix(prefix) for each in known]
    if nearest := difflib.get_close_matches(name.removeprefix(prefix), known, n=1):
        return f"; did you mean {prefix + nearest[0]!r}?"
    return otherwise or (f"; choose from {', '.join(known)}" if known else "; there are none")


@attrs.frozen
class Field:
    """A setting: a field of a class."""

    option: Option  # its name in a table and its type
    is_required: bool  # it has no default
    make: Any = None  # ``Secret``, ``Path``, or a function that reads a value of our own tables

    @property
    def type(self) -> str:
        """Its type, for a person; that of a ``Secret`` is ``secret``."""
        if self.make in (Secret, Path):
            return str(self.make.__name__).lower()
        return f"list of {self.option.type}" if self.option.is_list else self.option.type

    def read(self, value: Any, table: Table) -> Any:
        """Convert a value of a table; raise ``ValueError``, which quotes no secret."""
        option = self.option
        try:
            if inspect.isfunction(self.make):
                return self.make(value)
            if not option.accepts(value):
                if not isinstance(value, (str, list) if option.is_list else str):
                    raise ValueError
                value = option.convert(value if isinstance(value, str) else json.dumps(value))
        except ValueError as error:
            quoted = "" if self.make is Secret else f", not {value!r:.80}"
            says = f": {error}" if inspect.isfunction(self.make) else f" takes {option.takes}{quoted}"
            raise ValueError(option.name + says) from None
        if self.make is not None:
            return Secret(value) if self.make is Secret else table.path(value)
        return [*value] if option.is_list else value


def read_class(cls: Any) -> dict[str, Field]:
    """Read what an attrs class or a dataclass takes, by its names; raise ``DefinitionError`` for another annotation."""
    if not isinstance(cls, type) or not (attrs.has(cls) or dataclasses.is_dataclass(cls)):
        raise DefinitionError(f"it returns {cls!r:.80}, and not an attrs class or a dataclass")
    types = get_type_hints(cls, include_extras=True)
    types = {**{name.lstrip("_"): each for name, each in types.items()}, **types}  # as attrs calls what is private
    parameters = inspect.signature(cls).parameters.values()
    return {each.name: _read_field(each.name, types.get(each.name), each.default is each.empty) for each in parameters}


def _read_field(name: str, annotation: Any, is_required: bool) -> Field:
    if get_origin(annotation) in (Union, UnionType):  # TOML has no null: only the default can be None
        annotation = Union[tuple(each for each in get_args(annotation) if each is not NoneType)]  # noqa: UP007
    special = (*getattr(annotation, "__metadata__", ()), annotation)
    make = next((each for each in special if inspect.isfunction(each) or each in (Secret, Path)), None)
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation if make is None else str)
    return Field(read_option(parameter), is_required, make)


def make_settings(
    cls: Any, fields: Mapping[str, Field] | None, table: Table, distribution: str = ""
) -> tuple[Any, list[str]]:
    """Return an instance of a class with these fields, or else a dict, and the secrets in it.

    ``ConfigError`` has a line for each mistake in the table; for a plugin of this distribution it says how to set it.
    """
    values, secrets, mistakes = _read_values(fields, table)
    for name in [name for name, field in (fields or {}).items() if field.is_required and name not in values]:
        variable = re.sub("[-_.]+", "_", f"xformd_plugin_{distribution}").upper() + f"__{name.upper()}"
        how = f', or {name}{FILE} to a file that has it, in [plugin."{distribution}"], or {variable}'
        mistakes.append(table.locate("", f"{name} is missing: set it{how if distribution else ''}"))
    if not mistakes:
        try:
            return cls(**values), secrets
        except Exception as error:
            mistakes = [table.locate("", hide(f"{type(error).__name__}: {safe_str(error)}", secrets))]
    raise ConfigError("a table is wrong", details=mistakes)


def _read_values(fields: Mapping[str, Field] | None, table: Table) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the values of a table, the secrets among them, and the mistakes."""
    values: dict[str, Any] = {}
    secrets, mistakes = [], []
    for key, value in table.values.items():
        name = key.removesuffix(FILE) if key.endswith(FILE) and key not in (fields or {}) else key
        try:
            if fields is not None and name not in fields:
                raise ValueError(f"unknown setting {key!r}{did_you_mean(key, fields)}")
            if name in values:
                raise ValueError(f"set {name} or {name}{FILE}, not both")
            values[name] = None  # it is not missing, even if it is wrong
            value = value if key == name else table.read_file(key)
            values[name] = value if fields is None else fields[name].read(value, table)
            if key != name or isinstance(values[name], Secret):
                secrets.append(value)
        except ValueError as error:
            mistakes.append(table.locate(key, str(error)))
    return values, secrets, mistakes


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text without these secrets."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text
