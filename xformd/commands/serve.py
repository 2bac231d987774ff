"""The commands of an operator: ``serve``, and ``config``, which shows what ``serve`` with the same flags would do."""

import functools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from xformd.commands.options import (
    Command,
    config_option,
    configured,
    flags_of,
    isolated_plugin_output,
    listening_lines,
    plugin_flags,
)
from xformd.config import quantities
from xformd.limits import Limits

if TYPE_CHECKING:
    from xformd.config import Configuration, Settings
    from xformd.plugins.registry import Registry

_LIMITS = frozenset(field.name for field in attrs.fields(Limits))


class SettingsCommand(click.Command):
    """Shows the limits in a group of their own, after everything else."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two groups."""
        limits: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                (limits if param.name in _LIMITS else others).append(record)
        with formatter.section("Options"):
            formatter.write_dl(others)
        with formatter.section("Limits (sizes as 64KiB or 10MiB, durations as 500ms, 30s or 5min)"):
            formatter.write_dl(limits)


def _setting_options(command: Command) -> Command:
    """Add a flag for each setting, and hand the command the ``Configuration``."""

    @_add_flags
    @functools.wraps(command)
    def with_configuration(file: Path | None, host: str | None, port: int | None, **given: Any) -> Any:
        from xformd.config import TABLE

        others = {name: given.pop(name) for name in set(given) - set(TABLE)}
        flags = flags_of(given)
        if host is not None or port is not None:
            place = "--host" if port is None else "--port"
            both = f"{place} and --listen" if given["listen"] else place
            flags["listen"] = (both, (_place(host, port), *given["listen"]))
        with configured(file, flags) as configuration:
            return command(configuration=configuration, **others)

    return with_configuration


def _place(host: str | None, port: int | None) -> str:
    from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, tcp_server

    return tcp_server(host or DEFAULT_HOST, DEFAULT_PORT if port is None else port)


def limit_flag(field: "attrs.Attribute[Any]") -> Callable[[Command], Command]:
    """Make the flag of a limit."""
    metavar, default = "N", "none" if field.default is None else str(field.default)
    if field.name.endswith("_bytes") and field.default is not None:
        metavar, default = "SIZE", quantities.show_size(field.default)
    elif field.name.endswith("_s") and field.default is not None:
        metavar, default = "DURATION", quantities.show_duration(field.default)
    flag = "--" + field.name.replace("_", "-")
    return click.option(flag, metavar=metavar, help=f"{field.metadata['reason']} [{default}]")


def _add_flags(command: Command) -> Command:
    for field in reversed(attrs.fields(Limits)):
        command = limit_flag(field)(command)
    for add in (
        click.option(
            "--log-format",
            metavar="[text|json]",
            help="How to write the log: as text, or as JSON, an object on each line. [text]",
        ),
        click.option(
            "--isolate", multiple=True, metavar="NAME", help="Run this transform in a worker, whatever its author says."
        ),
        click.option(
            "--inline",
            multiple=True,
            metavar="NAME",
            help="Run this transform in the server itself, whatever its author says.",
        ),
        click.option("--workers", metavar="N", help="Worker processes: auto is one for each CPU, 0 is none. [auto]"),
        plugin_flags,
        click.option("--host", help="Address of the interface to listen on. [127.0.0.1]"),
        click.option(
            "--port", type=click.IntRange(0, 65535), help="TCP port to listen on; 0 takes a free one. [11000]"
        ),
        click.option(
            "--listen",
            multiple=True,
            metavar="ENDPOINT",
            help="Where to listen: a Twisted server endpoint, such as unix:/run/xformd.sock. May be repeated.",
        ),
        click.option(
            "--cors", multiple=True, metavar="ORIGIN", help="Let pages of this other site call over HTTP; * is all."
        ),
        click.option(
            "--metrics",
            multiple=True,
            metavar="ENDPOINT",
            help="Where to answer /metrics, /livez and /readyz over HTTP, and nothing else. May be repeated.",
        ),
        click.option(
            "--http",
            multiple=True,
            metavar="ENDPOINT",
            help="Where to answer HTTP too: a Twisted server endpoint, such as tcp:8000. May be repeated.",
        ),
        config_option,
    ):
        command = add(command)
    return command


@click.command(cls=SettingsCommand)
@_setting_options
def serve(configuration: "Configuration") -> None:
    """Serve transforms until SIGTERM or Ctrl-C, then answer what has been accepted.

    Every setting is also one of a file (--config) and of the environment (XFORMD_MAX_QUEUE is --max-queue).

    \b
    Examples:
      xformd serve
      xformd serve --port 0 --plugins xformd-shout
      xformd serve --http tcp:8000:interface=127.0.0.1
      xformd serve --listen unix:/run/xformd.sock --listen tcp:11000
      xformd serve --listen ssl:11000:privateKey=key.pem:certKey=cert.pem
      xformd serve --config /etc/xformd.toml --workers 4 --max-queue 100
    """
    with isolated_plugin_output() as stdout:
        _run(configuration.settings, functools.partial(click.echo, file=stdout))


def _run(settings: "Settings", announce: Callable[[str], None]) -> None:
    from xformd.net import run

    run.default_signals()
    signal.signal(
        signal.SIGHUP, lambda *_: None
    )  # plugins are being loaded: a reload has nothing to add. No child inherits a handler
    run.prepare_to_serve(settings.log_format, with_asyncio=settings.answers_http)
    from xformd.server.app import make_server  # only once the reactor is installed

    run.run_server(
        lambda reactor: make_server(settings, reactor),
        lambda server, addresses: _greeting(addresses, server.registry),
        announce,
        on_sighup=lambda server: server.reload(),
    )


def _greeting(addresses: tuple[str, ...], registry: "Registry") -> Iterator[str]:
    yield from listening_lines(addresses)
    active = registry.with_state("active")
    yield f"{len(registry.entries)} transforms from {len(active)} plugins"
    for plugin in registry.with_state("failed"):
        yield f"failed: plugin {plugin.label}: {plugin.reason}"
    for conflict in registry.conflicts:
        yield f"conflict: {conflict}"


@click.command(cls=SettingsCommand)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md describes it.")
@_setting_options
def config(configuration: "Configuration", as_json: bool) -> None:
    """Print every setting of a server: what it is, what for, and who says so.

    It reads what serve would read, with the same flags, and prints a TOML file to start from.

    \b
    Examples:
      xformd config
      xformd config > xformd.toml && xformd serve --config xformd.toml
      xformd config --config xformd.toml --max-queue 100 --json
    """
    from xformd.config import render

    shown = json.dumps(render.to_json(configuration), indent=2) if as_json else render.to_toml(configuration)
    with isolated_plugin_output() as stdout:
        click.echo(shown, file=stdout)
