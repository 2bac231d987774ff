"""Settings: the table of what an operator may decide, and what a server is made from."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from xformd.config import types
from xformd.config.types import SettingType
from xformd.limits import Limits
from xformd.net.defaults import tcp_server
from xformd.plugins.selection import EVERYTHING, Selection
from xformd.spec import is_valid_name

LOG_FORMATS = ("text", "json")


@attrs.frozen(kw_only=True)
class Settings:
    """What an operator decides.

    Args:
        listen: where to answer netstrings, as Twisted server endpoint strings.
        http: where to answer HTTP, likewise.
        metrics: where to answer HTTP with metrics and health alone, likewise.
        cors: origins of other sites whose pages may call over HTTP; ``*`` stands for all.
        selection: which plugins to load.
        limits: what clients and transforms may do.
        workers: how many worker processes; None for as many as there are CPUs, 0 for none: then every transform runs
            in the reactor.
        inline: transforms that run in the reactor, whatever their author says.
        isolate: transforms that run in a worker, whatever their author says.
        log_format: how the log is written: ``text`` or ``json``.
    """

    listen: tuple[str, ...] = (tcp_server(),)
    http: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    cors: frozenset[str] = frozenset()
    selection: Selection = EVERYTHING
    limits: Limits = attrs.field(factory=Limits)
    workers: int | None = None
    inline: frozenset[str] = frozenset()
    isolate: frozenset[str] = frozenset()
    log_format: str = "text"

    @property
    def answers_http(self) -> bool:
        """Whether anything is answered over HTTP."""
        return bool(self.http or self.metrics)

    @property
    def worker_count(self) -> int:
        """How many worker processes run jobs at a time."""
        return usable_cpus() if self.workers is None else self.workers

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Settings":
        """Put settings together.

        Args:
            values: the value of each ``Setting`` of the table, by its name.
        """
        return cls(
            listen=values["listen"],
            http=values["http"],
            metrics=values["metrics"],
            cors=values["cors"],
            selection=Selection(
                distributions=values["plugins"],
                blocked=values["block"],
                directories=values["plugins_dir"],
                preferred=values["prefer"],
                strict=values["strict"],
            ),
            limits=Limits(**{field.name: values[field.name] for field in attrs.fields(Limits)}),
            workers=values["workers"],
            inline=values["inline"],
            isolate=values["isolate"],
            log_format=values["log_format"],
        )


@attrs.frozen
class Setting:
    """One row of the table.

    Args:
        name: what it is called in a file; the names of its variable and its flag follow from it.
        kind: what its value is.
        default: the value when nobody says anything.
        reason: one line for a person: what it is for.
    """

    name: str
    kind: SettingType
    default: Any
    reason: str

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"XFORMD_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")


_TRANSFORMS = types.strings("transform name", frozenset, accepts=is_valid_name)
_ORIGINS = types.strings("https://example.org-like origin", frozenset, accepts=types.is_origin)
_PLUGINS = types.strings("plugin", frozenset)


def _table() -> Iterator[Setting]:
    listen = types.strings("Twisted server endpoint", tuple, separators=r"\s+", minimum=1)
    also = types.strings("Twisted server endpoint", tuple, separators=r"\s+")
    yield Setting("listen", listen, (tcp_server(),), "where to listen: Twisted server endpoints")
    yield Setting("http", also, (), "where to answer HTTP too: Twisted server endpoints")
    yield Setting("metrics", also, (), "where to answer HTTP with metrics and health alone: Twisted server endpoints")
    yield Setting("cors", _ORIGINS, frozenset(), "origins of other sites whose pages may call over HTTP; * is all")
    yield Setting("plugins", types.PLUGINS, None, "which installed plugins to load: all, none, or distributions")
    yield Setting("block", _PLUGINS, frozenset(), "plugins that are never imported")
    yield Setting("plugins_dir", types.FOLDERS, (), "folders whose *.py files are plugins too")
    yield Setting("prefer", types.PREFERENCES, {}, "which distribution has a name that several provide")
    yield Setting("strict", types.BOOLEAN, False, "refuse to start when a plugin fails or a name is contested")
    yield Setting("workers", types.integer(0, "auto"), None, "worker processes: auto is one for each CPU, 0 is none")
    yield Setting("inline", _TRANSFORMS, frozenset(), "transforms that run in the server, whatever their author says")
    yield Setting("isolate", _TRANSFORMS, frozenset(), "transforms that run in a worker, whatever their author says")
    yield Setting("log_format", types.choice(*LOG_FORMATS), "text", "how the log is written: as text, or JSON per line")
    for field in attrs.fields(Limits):
        yield Setting(field.name, _kind_of_limit(field), field.default, field.metadata["reason"])


def _kind_of_limit(field: "attrs.Attribute[Any]") -> SettingType:
    if field.name.endswith("_bytes"):
        return types.SIZE
    if field.name.endswith("_s"):
        return types.DURATION
    return types.integer(none="none" if field.default is None else None)


TABLE: Mapping[str, Setting] = {setting.name: setting for setting in _table()}
"""Every setting, by its name."""


def usable_cpus() -> int:
    """Count the CPUs that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
