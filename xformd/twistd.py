"""``twistd xformd``, ``xformd-proxy`` and ``xformd-poem``: the services that twistd runs, with their commands' options.

Invariant: a mistake in an option or a setting ends twistd before it goes into the background.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from twisted.application.service import IService
from twisted.python import usage

from xformd.commands.options import LOCATE
from xformd.commands.poem import serve as serve_poem
from xformd.commands.proxy import poem_proxy, proxy
from xformd.commands.serve import serve
from xformd.errors import ConfigError
from xformd.net.allocator import keep_freed_memory
from xformd.net.deadline import use_monotonic_clock
from xformd.net.listener import FailFastService, ListeningService


class _CommandOptions(usage.Options):
    """Takes the arguments of a command of ``xformd`` as that does, and makes the server that it would run."""

    command: click.Command

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

        def keep(make: Callable[[Any], ListeningService]) -> None:
            made.append(FailFastService(make(reactor), reactor, context.meta[LOCATE]))

        with self._context as context:
            context.obj = keep
            files = {name: value for name, value in context.params.items() if isinstance(value, Path)}
            context.params |= {name: file.absolute() for name, file in files.items()}  # twistd may change its folder
            context.command.invoke(context)
        return made[0]


class ServerOptions(_CommandOptions):
    """The options of ``twistd xformd``: those of ``xformd serve``."""

    command = serve


class ProxyOptions(_CommandOptions):
    """The options of ``twistd xformd-proxy``."""

    command = proxy


class PoemOptions(_CommandOptions):
    """The options of ``twistd xformd-poem``."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:  # noqa: N802
        """Read the command and its arguments."""
        commands = {"serve": serve_poem, "proxy": poem_proxy}
        name, *rest = options or ("",)
        if name not in commands:
            raise usage.UsageError("name a command: 'serve FILE' or 'proxy UPSTREAM'")
        self.command = commands[name]
        super().parseOptions(rest)


def make_service(options: _CommandOptions) -> IService:
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
