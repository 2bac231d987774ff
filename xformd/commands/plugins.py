"""``xformd plugins``, ``list-transforms`` and ``check``: which there are, what they offer, if their examples hold."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

from xformd.commands.options import (
    describe_locally,
    isolated_plugin_output,
    plugin_options,
    print_line,
    report_slow,
)
from xformd.commands.poem_options import client_options
from xformd.errors import ConfigError, printable_json

if TYPE_CHECKING:
    from xformd.config import Settings

CHECK_FAILED = 1
LIST_TIMEOUT_S = 30.0


@click.command("plugins")
@click.option("--requirements", is_flag=True, help="Print what to pin: the selected distributions with their versions.")
@plugin_options
def list_plugins(requirements: bool, settings: "Settings") -> None:
    """List the installed plugins, and which of them a server would load, without importing any.

    What the setting require misses is printed last, and the exit status is that of a server that does not start.

    \b
    Examples:
      xformd plugins
      xformd plugins --requirements > requirements.txt
      xformd plugins --config /etc/xformd.toml
    """
    from xformd.plugins import loader
    from xformd.plugins.listing import align
    from xformd.plugins.selection import check_required

    found = loader.find(attrs.evolve(settings.selection, required=frozenset(), commands={}))
    if requirements:
        loaded = [each for each in found if each.state != "blocked" and each.version]  # a loose file has none
        lines = [*dict.fromkeys(f"{each.distribution}=={each.version}" for each in loaded)]
    else:
        rows = [("PLUGIN", "DISTRIBUTION", "VERSION", "SOURCE", "STATE")]
        for each in found:
            state = each.reason if each.state == "blocked" else "selected"
            rows.append((each.name, each.distribution, each.version, each.source, state))
        lines = align(rows)
    for line in lines:
        print_line(line)
    check_required(settings.selection, found)


@click.command("list-transforms")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md describes it.")
@click.option("--server", metavar="ADDRESS", help="Ask this running server, and load no plugin here.")
@client_options
@plugin_options
def list_transforms(as_json: bool, server: str | None, client: dict[str, Any], settings: "Settings") -> None:
    """List the transforms of the installed plugins, and the plugins that are not active.

    Given the same file, variables and flags as serve, it lists what that server would offer.

    \b
    Examples:
      xformd list-transforms
      xformd list-transforms --json --plugins xformd-shout
      xformd list-transforms --config /etc/xformd.toml
      xformd list-transforms --server 127.0.0.1:11000
    """
    from xformd.client import TransformProxy
    from xformd.net import run
    from xformd.plugins import listing
    from xformd.telemetry import logs

    async def ask(server: str) -> dict[str, Any]:
        return await TransformProxy(server, **client).list_transforms(timeout=LIST_TIMEOUT_S)

    logs.start()
    with isolated_plugin_output() as stdout:
        listed = list_here(settings) if server is None else run.run_until_done(ask(server))
        click.echo(printable_json(listed, indent=2) if as_json else listing.to_table(listed), file=stdout)


def list_here(settings: "Settings") -> dict[str, Any]:
    """Return what a server with these plugins would list, and why plugins failed, which is its operator's."""
    from xformd.net import run
    from xformd.plugins import listing
    from xformd.server.reload import local_service
    from xformd.telemetry import logs

    async def describe() -> dict[str, Any]:
        async with local_service(settings, report_slow, warm_ups=frozenset()) as service:
            return listing.to_json(service.registry)

    logs.start()
    return run.run_until_done(describe())


@click.command()
@click.argument("distribution", required=False)
@plugin_options
def check(distribution: str | None, settings: "Settings") -> None:
    """Run every example of every transform, or of one distribution's.

    \b
    Examples:
      xformd check
      xformd check xformd-shout
      xformd check --plugins-dir . shout.py
      xformd check --config /etc/xformd.toml
    """
    from xformd.net import run
    from xformd.telemetry import logs

    logs.start()
    with isolated_plugin_output() as stdout:
        passed = run.run_until_done(_check(settings, distribution, stdout))
    if not passed:
        raise ConfigError("nothing to check: the selected plugins are blocked, or no transform of theirs is used")
    if not all(passed):
        sys.exit(CHECK_FAILED)


async def _check(settings: "Settings", distribution: str | None, stdout: TextIO) -> list[bool]:
    """Run every example, of one distribution's plugins or of all, the way a request would, and print what is found.

    Returns:
        Whether all examples of each transform hold; False also for each plugin that failed to load.
    """
    from xformd.plugins.discovery import normalize
    from xformd.plugins.loader import of_distribution
    from xformd.server.examples import failing_examples
    from xformd.server.reload import local_service

    passed = []

    def report(failures: Sequence[str], ok: str = "") -> None:
        for line in [f"FAILED  {each}" for each in failures] or [f"ok      {ok}"]:
            print_line(line, stdout)
        passed.append(not failures)

    warm_ups = None if distribution is None else frozenset({normalize(distribution)})
    async with local_service(settings, report_slow, warm_ups=warm_ups) as service:
        registry = service.registry
        plugins = registry.plugins if distribution is None else of_distribution(distribution, registry.plugins)
        for plugin in plugins:
            if plugin.state == "failed":
                report([f"plugin {plugin.label}: {reason}" for reason in plugin.reasons])
            for transform in plugin.transforms:
                entry = registry.entries.get(transform.name)
                if entry is None or entry.plugin.key != plugin.key:
                    print_line(f"unused  {transform.name} of {plugin.label}: another plugin has one too", stdout)
                    continue
                failures = [each async for each in failing_examples(service, transform, describe_locally)]
                count = len(transform.examples)
                report(failures, f"{transform.name}: {count or 'no'} example{'s' * (count != 1)}")
    return passed
