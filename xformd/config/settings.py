"""The settings of a server: their table, with type, default and reason, and their values as one object."""

import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.config import types
from xformd.config.resources import find_resources
from xformd.config.types import SettingType
from xformd.limits import MIB, Limits, show_value
from xformd.net.defaults import DEFAULT_HTTP_PORT, tcp_server
from xformd.plugins.selection import EVERYTHING, Selection
from xformd.plugins.settings import Table
from xformd.spec import NAME_RULE, is_valid_name
from xformd.telemetry.access_log import STDERR


def host_node() -> str:
    """Return the host's name as that of a node."""
    return re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("-._")[:63] or "node"


def _node_from(value: object) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        return None if value == "auto" else value
    raise ValueError(f"invalid node {show_value(value)}: use up to 63 letters, digits, and . _ - after the first")


_NODE = SettingType(read=_node_from, words={"auto": None}, metavar="NAME")
_WRITE_TCP = ": write it as tcp:11000:interface=127.0.0.1"
_ENDPOINTS = types.strings("Twisted server endpoint", tuple, separators=r"\s+", empty="none", hint=_WRITE_TCP)
_LISTEN = types.strings("Twisted server endpoint", tuple, separators=r"\s+", minimum=1, hint=_WRITE_TCP)
_ORIGINS = types.strings("origin", frozenset, accepts=types.is_origin, hint=": write it as https://example.org, or *")
_HOSTS = types.strings("host name", frozenset, accepts=types.is_host_name, hint=": write it as poems.example.org, or *")
_AS_PROXIES = ": write it as 192.0.2.1, 10.0.0.0/8, 2001:db8::/32, or unix"
_PROXIES = attrs.evolve(
    types.strings("proxy", frozenset, accepts=types.is_network, hint=_AS_PROXIES), metavar="CIDR,...", is_repeated=False
)
_REQUIRED = types.strings(
    "requirement",
    frozenset,
    separators=r"\s+",
    accepts=types.is_requirement,
    hint=": write it as xformd-images==1.2.*, without spaces",
)
_BLOCKED = types.strings("plugin", frozenset, hint=": use a plugin's name")
_TRANSFORMS = types.strings("transform name", frozenset, accepts=is_valid_name, hint=f": use {NAME_RULE}")


def _setting(type_: SettingType, default: Any, reason: str, found: Callable[[], object] | None = None) -> Any:
    return attrs.field(default=default, metadata={"type": type_, "reason": reason, "found": found})


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a server, each with its type, default and reason; ``selection`` and ``limits`` group some.

    ``workers`` is None for as many as there is room for; with 0 every transform runs in the reactor.
    """

    listen: tuple[str, ...] = _setting(_LISTEN, (tcp_server(),), "where to listen: Twisted server endpoints")
    http: tuple[str, ...] = _setting(
        _ENDPOINTS,
        (tcp_server(port=DEFAULT_HTTP_PORT),),
        "where to answer HTTP, with a page to try the transforms on: Twisted server endpoints, or none",
    )
    metrics: tuple[str, ...] = _setting(
        _ENDPOINTS, (), "where to answer only /metrics, /livez and /readyz over HTTP: Twisted server endpoints, or none"
    )
    agent: tuple[str, ...] = _setting(
        _ENDPOINTS, (), "where to answer HAProxy's agent checks in plain text: Twisted server endpoints, or none"
    )
    reuse_port: bool = _setting(
        types.BOOLEAN, False, "whether several servers of one user may listen on the same TCP ports"
    )
    tls_certificate: Path | None = _setting(
        types.FILE, None, "the server's certificate and its chain (PEM), for TLS on its TCP ports"
    )
    tls_key: Path | None = _setting(types.FILE, None, "the certificate's key; none if it is in the same file")
    tls_client_ca: Path | None = _setting(
        types.FILE, None, "certificates of those who may issue certificates for clients, which are then asked for one"
    )
    tls: str = _setting(
        types.choice("external", "all"),
        "external",
        "which TCP ports have TLS: external for those not on loopback, or all",
    )
    cors: frozenset[str] = _setting(
        _ORIGINS, frozenset(), "origins of other sites whose pages may call over HTTP; * for all"
    )
    host_names: frozenset[str] = _setting(
        _HOSTS,
        frozenset(),
        "names that HTTP clients call this server by, besides localhost and its addresses; * is any",
    )
    trusted_proxies: frozenset[str] = _setting(
        _PROXIES,
        frozenset(),
        "proxies whose Forwarded and X-Forwarded headers are believed: addresses, networks, unix for Unix sockets",
    )
    access: Path | None = _setting(types.FILE, None, "file that says who may use which transforms; none for all")
    jobs_dir: Path | None = _setting(
        types.FOLDER, None, "folder where jobs over HTTP and their results are kept; none for no jobs"
    )
    node: str | None = _setting(
        _NODE, None, "name of this server in the addresses of its jobs; auto for the host's", host_node
    )
    selection: Selection = EVERYTHING
    reload_check: str = _setting(
        types.choice("examples", "off"),
        "examples",
        "what a reload tries in the new workers first: examples, and it is refused if one fails that did not, or off",
    )
    record: Path | None = _setting(
        types.FOLDER, None, "folder to keep a sample of the poems in, for xformd replay; none for none"
    )
    record_sample: float = _setting(types.SHARE, 0.01, "which share of the poems to keep, above 0 and up to 1")
    record_only: frozenset[str] = _setting(
        _TRANSFORMS, frozenset(), "transforms whose poems to keep; all if none is named"
    )
    record_max_bytes: int = _setting(types.SIZE, 100 * MIB, "the most that the kept poems may take")
    workers: int | None = _setting(
        types.integer(0, "auto"),
        None,
        "worker processes: auto for one per CPU, if there is worker_memory_bytes for each, 0 for none",
        find_resources,
    )
    inline: frozenset[str] = _setting(
        _TRANSFORMS, frozenset(), "transforms that run in the server, overriding their author"
    )
    isolate: frozenset[str] = _setting(
        _TRANSFORMS, frozenset(), "transforms that run in a worker, overriding their author"
    )
    log_file: Path = _setting(types.LOG_FILE, STDERR, "where to write the log: stderr or a file")
    log_format: str = _setting(
        types.choice("text", "json"), "text", "format of the log: text, or one JSON object per line"
    )
    log_level: str = _setting(
        types.choice("debug", "info", "warn", "error"),
        "info",
        "the least important lines that the log has: debug, info, warn or error",
    )
    access_log: Path | None = _setting(
        types.OUTPUT_FILE, None, "where to write a line for each request: none, stderr or a file"
    )
    traces: str = _setting(
        types.choice("none", "otlp"),
        "none",
        "where to send OpenTelemetry spans: none, or otlp, to what OTEL_* variables name (needs xformd[otel])",
    )
    limits: Limits = attrs.field(factory=Limits)

    @property
    def worker_count(self) -> int:
        """How many worker processes run jobs."""
        if self.workers is not None:
            return self.workers
        return find_resources().workers(self.limits.worker_memory_bytes)

    def by_name(self) -> dict[str, Any]:
        """Return the value of each row, to compare settings: paths are absolute, and the two kinds of folders one."""
        chosen = {name: getattr(self.selection, field) for name, field in _OF_SELECTION.items()}
        values = {**attrs.asdict(self, recurse=False), **attrs.asdict(self.limits), **chosen}
        return {name: each.absolute() if isinstance(each, Path) else each for name, each in values.items()}

    def with_changes(self, new: "Settings", kept_limits: Iterable[str] = ("listen_backlog",)) -> "Settings":
        """Return these settings with those of ``new`` that may change while a server runs."""
        chosen, kept = new.selection, {name: getattr(self.limits, name) for name in kept_limits}
        tables: Any = {"settings": chosen.settings, "commands": chosen.commands, "required": chosen.required}
        return attrs.evolve(
            self,
            selection=attrs.evolve(self.selection, **tables),
            limits=attrs.evolve(new.limits, **kept),
            **{name: getattr(new, name) for name in _ALSO_CHANGE},
        )

    def changes(self, before: "Settings", wanted: "Settings") -> Iterator[str]:
        """Yield a line of what a reload has changed to these settings, and one of what a restart would change."""
        old, now, new = before.by_name(), self.by_name(), wanted.by_name()
        if changed := [name for name in TABLE if old.get(name) != now.get(name)]:
            yield f"changed settings: {', '.join(changed)}"
        if waiting := [name for name in TABLE if now.get(name) != new.get(name)]:
            yield f"changed settings that need a restart: {', '.join(waiting)}"

    @classmethod
    def from_values(cls, values: Mapping[str, Any], tables: Mapping[str, Mapping[str, Table]]) -> "Settings":
        """Make settings from the value of each row of ``TABLE``, by its name, and from the other tables."""
        chosen = {field: values[name] for name, field in _OF_SELECTION.items()}
        folders = (*values["plugins_dir"], *values["insecure_plugins_dir"])
        chosen["directories"] = tuple(folder.absolute() for folder in folders)  # twistd may change to another folder
        return cls(
            selection=Selection(**chosen, settings=tables["plugin"], commands=tables["transform"]),
            limits=Limits(**{field.name: values[field.name] for field in attrs.fields(Limits)}),
            **{field.name: values[field.name] for field in attrs.fields(cls) if field.name in values},
        )


@attrs.frozen
class Setting:
    """One row of the table. Its variable and its flag follow from its name in a file.

    ``purpose`` says what it is for, and ``found`` what was found on this machine that decides its default.
    """

    name: str
    type: SettingType
    default: Any
    purpose: str
    found: Callable[[], object] | None = None

    @property
    def reason(self) -> str:
        """Its purpose, and what was found."""
        return self.purpose if self.found is None else f"{self.purpose} (found: {self.found()})"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"XFORMD_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")


_OF_SELECTION = {
    "plugins": "distributions",
    "block": "blocked",
    "plugins_dir": "directories",
    "prefer": "preferred",
    "strict": "strict",
    "require": "required",
}
"""The settings that are fields of a ``Selection``, and the names of the fields."""

_SELECTING = (
    Setting("plugins", types.PLUGINS, None, "installed plugins to load: all, none, or a list of distributions"),
    Setting(
        "block",
        _BLOCKED,
        frozenset(),
        "plugins that are never imported: distributions, entry points, loose files without .py",
    ),
    Setting("plugins_dir", types.FOLDERS, (), "folders whose *.py files and packages are loaded as plugins too"),
    Setting("insecure_plugins_dir", types.FOLDERS, (), "the same, but other users may write to these folders"),
    Setting("prefer", types.PREFERENCES, {}, "the distribution to use for a transform that several provide"),
    Setting("strict", types.BOOLEAN, False, "refuse to start if a plugin fails or two provide the same transform"),
    Setting(
        "require",
        _REQUIRED,
        frozenset(),
        "plugins without which to refuse to start, with their versions, such as xformd-images==1.2.*",
    ),
)


def _rows(cls: Any) -> Iterator[Setting]:
    for field in attrs.fields(cls):
        if field.name == "selection":
            yield from _SELECTING
        elif field.name == "limits":
            yield from _rows(Limits)
        else:
            facts = field.metadata
            type_ = facts.get("type") or _limit_type(field)
            yield Setting(field.name, type_, field.default, facts["reason"], facts.get("found"))


def _limit_type(field: "attrs.Attribute[Any]") -> SettingType:
    if "_bytes" in field.name:  # or in bytes a second
        return types.SIZE
    if field.name.endswith("_s"):
        return types.DURATION if field.default else types.DELAY
    return types.integer(none="none" if field.default is None else None)


TABLE: Mapping[str, Setting] = {setting.name: setting for setting in _rows(Settings)}
"""Every setting, by its name."""

_ALSO_CHANGE = ("workers", "log_level", "reload_check")
"""Settings that a reload changes, besides limits. All else is chosen at the start: sockets, plugins, where they run."""
