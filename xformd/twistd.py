"""``twistd xformd``: what twistd's plugin is made of, with the settings of ``xformd serve``."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import IService
from twisted.python import usage

from xformd.config import TABLE, Setting, Settings, configure
from xformd.net.allocator import keep_freed_memory
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, tcp_server
from xformd.net.listener import FailFastService
from xformd.server.app import Server, make_server
from xformd.twistd_options import told_at_once

_REPEATED = ("listen", "http", "metrics", "cors", "block", "plugins_dir", "prefer", "inline", "isolate")
_ELSEWHERE = ("strict", "log_format")  # a flag without a value; twistd's own, --logger
_SINGLE = [setting for name, setting in TABLE.items() if name not in (*_REPEATED, *_ELSEWHERE)]


class Options(usage.Options):
    """Of ``twistd xformd``: every setting under the name of its flag."""

    synopsis = "[options]"
    optFlags = [["strict", None, TABLE["strict"].reason]]  # noqa: RUF012 - Twisted's form
    optParameters = [  # noqa: RUF012 - Twisted's form
        ["config", None, None, "Read settings from this TOML file; variables and options go before it."],
        ["host", None, None, f"Address of the interface to listen on. [{DEFAULT_HOST}]"],
        ["port", None, None, f"TCP port to listen on; 0 takes a free one. [{DEFAULT_PORT}]", int],
        *([setting.flag.removeprefix("--"), None, None, setting.reason] for setting in _SINGLE),
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for name in _REPEATED:
            self[name] = []

    def settings(self, environment: Mapping[str, str]) -> Settings:
        """Put the settings together.

        Args:
            environment: the process's variables.

        Returns:
            The settings; folders are whole, because twistd may change to another one.

        Raises:
            ConfigError: a setting's value is none.
        """
        file = self["config"] or environment.get("XFORMD_CONFIG")
        settings = configure(Path(file) if file else None, environment, self._flags()).settings
        directories = tuple(Path(folder).absolute() for folder in settings.selection.directories)
        return attrs.evolve(settings, selection=attrs.evolve(settings.selection, directories=directories))

    def _flags(self) -> dict[str, tuple[str, object]]:
        given: dict[str, object] = {setting.name: self[setting.flag.removeprefix("--")] for setting in _SINGLE}
        given |= {name: self[name] or None for name in _REPEATED}
        given["prefer"] = ",".join(self["prefer"]) or None
        given["strict"] = True if self["strict"] else None
        if self["host"] is not None or self["port"] is not None:
            port = DEFAULT_PORT if self["port"] is None else self["port"]
            given["listen"] = [tcp_server(self["host"] or DEFAULT_HOST, port), *self["listen"]]
        return {name: (TABLE[name].flag, value) for name, value in given.items() if value is not None}


def _repeated(setting: Setting) -> Callable[[Options, str], None]:
    def option(self: Options, value: str) -> None:
        self[setting.name].append(value)

    option.__doc__ = f"{setting.reason}; may be repeated."
    return option


for _name in _REPEATED:
    setattr(Options, f"opt_{_name}", _repeated(TABLE[_name]))


class ReloadingServer(FailFastService):
    """Starts a transform server, and loads its plugins anew on SIGHUP.

    Args:
        server: what to start.
        reactor: what it runs on.
    """

    def __init__(self, server: Server, reactor: Any) -> None:
        super().__init__(server, reactor)
        self._reload: Callable[[], object] = server.reload

    def startService(self) -> None:
        """Start it.

        Raises:
            ListenFailed: it cannot listen.
        """
        super().startService()
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reload))


def makeService(options: Options) -> IService:
    """Give twistd the service that its arguments ask for.

    Args:
        options: as they were parsed.

    Returns:
        A service: it listens, and starts its workers, when it is started.

    Raises:
        SystemExit: something is named that is not there.
    """
    from twisted.internet import reactor

    with told_at_once():
        server = make_server(options.settings(os.environ), reactor)
    keep_freed_memory()
    return ReloadingServer(server, reactor)
