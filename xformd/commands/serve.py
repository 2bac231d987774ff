"""``xformd serve`` and ``reload``, and ``config``, which shows what ``serve`` with the same flags would use."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import click

from xformd.commands.options import (
    TIMEOUT,
    TLS_SETTINGS,
    Command,
    configuration_options,
    isolated_plugin_output,
    print_line,
    quantity_option,
    run_server,
    setting_options,
)
from xformd.commands.plugins import list_here
from xformd.config import TABLE
from xformd.errors import ConfigError, printable_json
from xformd.net.defaults import DEFAULT_PORT

if TYPE_CHECKING:
    from xformd.config import Configuration, Settings
    from xformd.server.app import Server


def _setting_options(command: Command) -> Command:
    """Add a flag for each setting, and pass the command the ``configuration``."""
    names = [name for name in TABLE if name not in ("listen", *TLS_SETTINGS)]
    return configuration_options(DEFAULT_PORT)(setting_options(*names)(command))


@click.command()
@_setting_options
def serve(configuration: "Configuration") -> None:
    """Serve transforms until SIGTERM or Ctrl-C, then answer every accepted request before ending.

    Every setting can also stand in a file (--config) or in the environment (XFORMD_MAX_QUEUE is --max-queue). Sizes are
    written as 64KiB or 10MiB, durations as 500ms, 30s or 5min.

    \b
    Examples:
      xformd serve
      xformd serve --port 0 --plugins xformd-shout
      xformd serve --http tcp:8000:interface=127.0.0.1
      xformd serve --http none --plugins-dir . --metrics 9100 --access-log stderr
      xformd serve --http tcp:8000 --trusted-proxies 10.0.0.0/8,127.0.0.1 --agent tcp:8404
      xformd serve --listen unix:/run/xformd.sock --listen tcp:11000
      xformd serve --listen ssl:11000:privateKey=key.pem:certKey=cert.pem
      xformd serve --access access.toml
      xformd serve --config /etc/xformd.toml --workers 4 --max-queue 100
    """
    settings = configuration.settings

    def make(reactor: Any) -> "Server":
        from xformd.server.app import make_server  # only once the reactor is installed

        return make_server(settings, reactor, lambda: configuration.read_again().settings)

    run_server(make, _describe, settings)


def _describe(server: "Server") -> Iterator[str]:
    registry = server.registry
    active = registry.with_state("active")
    yield f"{len(registry.entries)} transforms from {len(active)} plugins"
    for plugin in (*registry.with_state("loading"), *registry.with_state("failed")):
        yield from (f"{plugin.state}: plugin {plugin.label}: {reason}" for reason in plugin.reasons)
    for conflict in registry.conflicts:
        yield f"conflict: {conflict}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md describes it.")
@_setting_options
def config(configuration: "Configuration", as_json: bool) -> None:
    """Print every setting of a server with its value, its purpose and where it was set.

    Reads what serve would read, given the same flags, and prints a TOML file to start from.

    \b
    Examples:
      xformd config
      xformd config > xformd.toml && xformd serve --config xformd.toml
      xformd config --config xformd.toml --max-queue 100 --json
    """
    with isolated_plugin_output() as stdout:
        rows = [*configuration.table_values(_setting_types(configuration.settings))]
        listed = [value.to_json() for value in (*configuration.values, *rows)]
        click.echo(printable_json(listed, indent=2) if as_json else configuration.to_toml(rows), file=stdout)


@click.command()
@click.option(
    "--pid",
    type=click.IntRange(1),
    metavar="PID",
    envvar="MAINPID",
    show_envvar=True,
    help="The server's process id. [that of the only server here]",
)
@quantity_option("--timeout", TIMEOUT, "2min", "How long to wait for the outcome.")
def reload(pid: int | None, timeout: float) -> None:
    """Have a server read its settings, plugins and certificates again, and wait for the outcome.

    Sends it SIGHUP; works for proxies and poem servers too, on their machine, as their user or root. The exit status is
    0 if it has reloaded, and 78 if it goes on as before, or with a part, with one line for each reason.

    \b
    Examples:
      xformd reload
      xformd reload --pid "$(cat /run/xformd.pid)" --timeout 5min
    """
    from xformd.telemetry import reloads

    outcome = reloads.reload(reloads.the_only_server() if pid is None else pid, timeout)
    for line in outcome.notes:
        print_line(line)
    if outcome.errors:
        part = "reloaded in part: what these lines name stays as it was"
        message = part if outcome.notes else "not reloaded: the server goes on with what it had"
        raise ConfigError(message, details=outcome.errors)


def _setting_types(settings: "Settings") -> dict[str, dict[str, str]]:
    """Return the settings of each plugin with a table, with their types: which are secret only its code says."""
    if not settings.selection.settings:
        return {}
    from xformd.plugins.discovery import normalize

    selection = attrs.evolve(settings.selection, strict=False, ignore_unknown=True)
    plugins = list_here(attrs.evolve(settings, selection=selection))["plugins"]
    return {normalize(plugin["distribution"]): plugin["settings"] for plugin in plugins}
