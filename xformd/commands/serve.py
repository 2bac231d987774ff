"""``xformd serve`` and ``xformd config``, which shows the settings that ``serve`` with the same flags would use."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import (
    Command,
    LimitsCommand,
    configuration_options,
    isolated_plugin_output,
    limit_options,
    log_format_option,
    plugin_flags,
    run_server,
    setting_option,
)
from xformd.errors import printable_json
from xformd.net.defaults import DEFAULT_PORT

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.server.app import Server


def _setting_options(command: Command) -> Command:
    """Add a flag for each setting, and pass the command the ``configuration``."""
    for add in (
        limit_options(),
        log_format_option,
        setting_option("access_log", "[none|stderr|FILE]"),
        setting_option("isolate", "NAME", multiple=True),
        setting_option("inline", "NAME", multiple=True),
        setting_option("workers", "N"),
        plugin_flags,
        setting_option("trusted_proxies", "CIDR,..."),
        setting_option("host_names", "NAME", multiple=True),
        setting_option("cors", "ORIGIN", multiple=True),
        setting_option("metrics", "ENDPOINT", multiple=True),
        setting_option("http", "ENDPOINT", multiple=True),
        configuration_options(DEFAULT_PORT),
    ):
        command = add(command)
    return command


@click.command(cls=LimitsCommand)
@_setting_options
def serve(configuration: "Configuration") -> None:
    """Serve transforms until SIGTERM or Ctrl-C, then answer every accepted request before ending.

    Every setting can also stand in a file (--config) or in the environment (XFORMD_MAX_QUEUE is --max-queue).

    \b
    Examples:
      xformd serve
      xformd serve --port 0 --plugins xformd-shout
      xformd serve --http tcp:8000:interface=127.0.0.1
      xformd serve --http none --plugins-dir . --metrics 9100 --access-log stderr
      xformd serve --http tcp:8000 --trusted-proxies 10.0.0.0/8,127.0.0.1
      xformd serve --listen unix:/run/xformd.sock --listen tcp:11000
      xformd serve --listen ssl:11000:privateKey=key.pem:certKey=cert.pem
      xformd serve --config /etc/xformd.toml --workers 4 --max-queue 100
    """
    settings = configuration.settings

    def make(reactor: Any) -> "Server":
        from xformd.server.app import make_server  # only once the reactor is installed

        return make_server(settings, reactor)

    run_server(make, _describe, settings.log_format)


def _describe(server: "Server") -> Iterator[str]:
    registry = server.registry
    active = registry.with_state("active")
    yield f"{len(registry.entries)} transforms from {len(active)} plugins"
    for plugin in (*registry.with_state("loading"), *registry.with_state("failed")):
        yield f"{plugin.state}: plugin {plugin.label}: {plugin.reason}"
    for conflict in registry.conflicts:
        yield f"conflict: {conflict}"


@click.command(cls=LimitsCommand)
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
    listed = [value.to_json() for value in configuration.values]
    shown = printable_json(listed, indent=2) if as_json else configuration.to_toml()
    with isolated_plugin_output() as stdout:
        click.echo(shown, file=stdout)
