"""The settings of a server: their table, with type, default and reason, and their values as one object."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from xformd.config import types
from xformd.config.resources import find_resources
from xformd.config.types import SettingType
from xformd.limits import Limits
from xformd.net.defaults import DEFAULT_HTTP_PORT, tcp_server
from xformd.plugins.selection import EVERYTHING, Selection
from xformd.spec import NAME_RULE, is_valid_name

LOG_FORMATS = ("text", "json")


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of a server: the rows of ``TABLE``, where each is described.

    ``selection`` and ``limits`` group the rows that belong together. ``workers`` is None for as many as there is room
    for; with 0 every transform runs in the reactor.
    """

    listen: tuple[str, ...] = (tcp_server(),)
    http: tuple[str, ...] = (tcp_server(port=DEFAULT_HTTP_PORT),)
    metrics: tuple[str, ...] = ()
    cors: frozenset[str] = frozenset()
    host_names: frozenset[str] = frozenset()
    trusted_proxies: frozenset[str] = frozenset()
    selection: Selection = EVERYTHING
    limits: Limits = attrs.field(factory=Limits)
    workers: int | None = None
    inline: frozenset[str] = frozenset()
    isolate: frozenset[str] = frozenset()
    log_format: str = "text"
    access_log: Path | None = None

    @property
    def worker_count(self) -> int:
        """How many worker processes run jobs."""
        if self.workers is not None:
            return self.workers
        return find_resources().workers(self.limits.worker_memory_bytes)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Settings":
        """Make settings from the value of each row of ``TABLE``, by its name."""
        return cls(
            selection=Selection(
                distributions=values["plugins"],
                blocked=values["block"],
                directories=values["plugins_dir"] + values["insecure_plugins_dir"],
                preferred=values["prefer"],
                strict=values["strict"],
            ),
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


def _limit_type(field: "attrs.Attribute[Any]") -> SettingType:
    if "_bytes" in field.name:  # or in bytes a second
        return types.SIZE
    if field.name.endswith("_s"):
        return types.DURATION
    return types.integer(none="none" if field.default is None else None)


_WRITE_TCP = ": write it as tcp:11000:interface=127.0.0.1"
_ENDPOINTS = types.strings("Twisted server endpoint", tuple, separators=r"\s+", empty="none", hint=_WRITE_TCP)
_LISTEN = types.strings("Twisted server endpoint", tuple, separators=r"\s+", minimum=1, hint=_WRITE_TCP)
_ORIGINS = types.strings("origin", frozenset, accepts=types.is_origin, hint=": write it as https://example.org, or *")
_HOSTS = types.strings("host name", frozenset, accepts=types.is_host_name, hint=": write it as poems.example.org, or *")
_AS_PROXIES = ": write it as 192.0.2.1, 10.0.0.0/8, 2001:db8::/32, or unix"
_PROXIES = types.strings("proxy", frozenset, accepts=types.is_network, hint=_AS_PROXIES)
_BLOCKED = types.strings("plugin", frozenset, hint=": use a plugin's name")
_TRANSFORMS = types.strings("transform name", frozenset, accepts=is_valid_name, hint=f": use {NAME_RULE}")

_SETTINGS = (
    Setting("listen", _LISTEN, (tcp_server(),), "where to listen: Twisted server endpoints"),
    Setting(
        "http",
        _ENDPOINTS,
        (tcp_server(port=DEFAULT_HTTP_PORT),),
        "where to answer HTTP, with a page to try the transforms on: Twisted server endpoints, or none",
    ),
    Setting(
        "metrics",
        _ENDPOINTS,
        (),
        "where to answer only /metrics, /livez and /readyz over HTTP: Twisted server endpoints, or none",
    ),
    Setting("cors", _ORIGINS, frozenset(), "origins of other sites whose pages may call over HTTP; * for all"),
    Setting(
        "host_names",
        _HOSTS,
        frozenset(),
        "names that HTTP clients call this server by, besides localhost and its addresses; * is any",
    ),
    Setting(
        "trusted_proxies",
        _PROXIES,
        frozenset(),
        "proxies whose Forwarded and X-Forwarded headers are believed: addresses, networks, unix for Unix sockets",
    ),
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
        "workers",
        types.integer(0, "auto"),
        None,
        "worker processes: auto for one per CPU, if there is worker_memory_bytes for each, 0 for none",
        find_resources,
    ),
    Setting("inline", _TRANSFORMS, frozenset(), "transforms that run in the server, overriding their author"),
    Setting("isolate", _TRANSFORMS, frozenset(), "transforms that run in a worker, overriding their author"),
    Setting("log_format", types.choice(*LOG_FORMATS), "text", "format of the log: text, or one JSON object per line"),
    Setting("access_log", types.LOG_FILE, None, "where to write a line for each request: none, stderr or a file"),
    *(Setting(each.name, _limit_type(each), each.default, each.metadata["reason"]) for each in attrs.fields(Limits)),
)

TABLE: Mapping[str, Setting] = {setting.name: setting for setting in _SETTINGS}
"""Every setting, by its name."""
