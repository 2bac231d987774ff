"""``twistd xformd``, ``xformd-proxy`` and ``xformd-poem``: their options, and the services that twistd runs.

A settings file says how a server works; an option is only what a file cannot say.
Invariant: a mistake in either ends twistd before it goes into the background.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import click
from twisted.application.service import IService
from twisted.python import usage

from xformd.commands.poem import serve
from xformd.commands.proxy import poem_proxy, proxy
from xformd.config import configure
from xformd.errors import ConfigError
from xformd.net.allocator import keep_freed_memory
from xformd.net.deadline import use_monotonic_clock
from xformd.net.listener import FailFastService, ListeningService
from xformd.server.app import make_server
from xformd.telemetry.logs import change_server_log


class ServerOptions(usage.Options):
    """The options of ``twistd xformd``."""

    synopsis = "[--config FILE]"
    optParameters: ClassVar = [["config", "c", None, "TOML file with the settings, as 'xformd config' prints it."]]

    def make(self, reactor: Any) -> FailFastService:
        """Make the server, with the settings of the file and the environment."""
        file = self["config"] or os.environ.get("XFORMD_CONFIG")
        configuration = configure(Path(file) if file else None, os.environ)
        selection = configuration.settings.selection
        folders = tuple(folder.absolute() for folder in selection.directories)  # twistd may change to another folder
        selection = attrs.evolve(selection, directories=folders)
        try:
            settings = attrs.evolve(configuration.settings, selection=selection)
            change_server_log(settings.log_format, settings.log_file, settings.log_level)
            server = make_server(settings, reactor, lambda: configuration.read_again().settings)
        except ConfigError as error:
            raise configuration.locate(error) from error
        return FailFastService(server, reactor, configuration.locate)


class _CommandOptions(usage.Options):
    """Takes the arguments of a command of ``xformd`` as that does, and makes the server that it would run."""

    command: ClassVar[click.Command]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:  # noqa: N802 - Twisted's name
        """Read the arguments."""
        try:
            self._context = self.command.make_context(self.command.name, [*(options or ())])
        except click.exceptions.Exit as end:  # after its help
            raise SystemExit(end.exit_code) from None
        except click.ClickException as error:
            raise usage.UsageError(error.format_message()) from None

    def make(self, reactor: Any) -> FailFastService:
        """Make the server."""
        made: list[FailFastService] = []

        def locate(error: ConfigError) -> ConfigError:
            return error if error.setting is None else error.located_at(f"--{error.setting}")

        def keep(make: Callable[[Any], ListeningService]) -> None:
            made.append(FailFastService(make(reactor), reactor, locate))

        with self._context as context:
            context.obj = keep
            files = {name: value for name, value in context.params.items() if isinstance(value, Path)}
            context.params |= {name: file.absolute() for name, file in files.items()}  # twistd may change its folder
            context.command.invoke(context)
        return made[0]


class ProxyOptions(_CommandOptions):
    """The options of ``twistd xformd-proxy``."""

    command = proxy


class PoemServerOptions(_CommandOptions):
    """The options of ``twistd xformd-poem serve``."""

    command = serve


class PoemProxyOptions(_CommandOptions):
    """The options of ``twistd xformd-poem proxy``."""

    command = poem_proxy


class PoemOptions(usage.Options):
    """The options of ``twistd xformd-poem``."""

    synopsis = "serve FILE | proxy UPSTREAM"
    subCommands: ClassVar = [
        ["serve", None, PoemServerOptions, "Serve the poem in a file."],
        ["proxy", None, PoemProxyOptions, "Cache another server's poem."],
    ]
    subOptions: PoemServerOptions | PoemProxyOptions

    def postOptions(self) -> None:
        """Require a command."""
        if self.subCommand is None:
            raise usage.UsageError("name a command: 'serve FILE' or 'proxy UPSTREAM'")

    def make(self, reactor: Any) -> FailFastService:
        """Make the server of the command."""
        return self.subOptions.make(reactor)


def make_service(options: ServerOptions | ProxyOptions | PoemOptions) -> IService:
    """Make the service that twistd's arguments describe; it listens once it is started.

    Raises ``SystemExit`` if an argument or a setting names something that does not exist.
    """
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    keep_freed_memory()
    try:
        return options.make(reactor)
    except ConfigError as error:
        lines = (*error.details, f"{error.code}: {error.message}")
        raise SystemExit("\n".join(f"xformd: {line}" for line in lines)) from None


# What twistd/xformd_services.py names: twistd looks up Options and makeService in each.
server = SimpleNamespace(Options=ServerOptions, makeService=make_service)
caching_proxy = SimpleNamespace(Options=ProxyOptions, makeService=make_service)
poem = SimpleNamespace(Options=PoemOptions, makeService=make_service)
