"""``xformd list-transforms`` and ``xformd check``: what plugins offer, and whether their examples hold."""

import json
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

from xformd.commands.options import Selected, describe_locally, isolated_plugin_output, plugin_options
from xformd.errors import ConfigError, XformError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xformd.plugins.definition import Example, Transform
    from xformd.plugins.registry import Plugin
    from xformd.service import TransformService

CHECK_FAILED = 1
LIST_TIMEOUT_S = 30.0


@click.command("list-transforms")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md describes it.")
@click.option("--server", metavar="ADDRESS", help="Ask this running server, and load no plugin here.")
@plugin_options
def list_transforms(as_json: bool, server: str | None, selected: Selected) -> None:
    """List the transforms of the installed plugins, and the plugins that are not active.

    Given the same file, variables and flags as serve, it lists what that server would offer.

    \b
    Examples:
      xformd list-transforms
      xformd list-transforms --json --plugins xformd-shout
      xformd list-transforms --config /etc/xformd.toml
      xformd list-transforms --server 127.0.0.1:11000
    """
    from xformd.plugins import listing

    with isolated_plugin_output() as stdout:
        listed = _list_here(selected) if server is None else _ask_for_list(server)
        click.echo(json.dumps(listed, indent=2) if as_json else listing.to_table(listed), file=stdout)


def _list_here(selected: Selected) -> dict[str, Any]:
    from xformd.plugins import listing, loader

    with selected() as selection:
        return listing.to_json(loader.load(selection))


def _ask_for_list(server: str) -> dict[str, Any]:
    from xformd.client import TransformProxy
    from xformd.net import run
    from xformd.telemetry import logs

    async def ask() -> dict[str, Any]:
        return await TransformProxy(server).list_transforms(timeout=LIST_TIMEOUT_S)

    logs.start()
    return run.run_until_done(ask())


@click.command()
@click.argument("distribution", required=False)
@plugin_options
def check(distribution: str | None, selected: Selected) -> None:
    """Run every example of every transform, or of one distribution's.

    \b
    Examples:
      xformd check
      xformd check xformd-shout
      xformd check --plugins-dir . shout.py
      xformd check --config /etc/xformd.toml
    """
    from twisted.internet import reactor

    from xformd.net import run
    from xformd.plugins import loader
    from xformd.telemetry import logs

    logs.start()
    with isolated_plugin_output() as stdout:
        with selected() as selection:
            if distribution is None:
                plugins = loader.load(selection).plugins
            else:
                plugins = loader.load_distribution(distribution, selection)

        async def check_all() -> list[bool]:
            passed = []
            for plugin in plugins:
                async for verdict in check_plugin(plugin, reactor):
                    _report(verdict, stdout)
                    passed.append(verdict.passed)
            return passed

        passed = run.run_until_done(check_all())
        if not passed:
            raise ConfigError("nothing to check: the selected plugins are blocked or have no transforms")
        if not all(passed):
            sys.exit(CHECK_FAILED)


@attrs.frozen
class Verdict:
    """The outcome of one transform's examples, or of a plugin that failed to load.

    Args:
        subject: the transform, or the plugin.
        examples: how many examples ran.
        failures: one line for each example with another result than it states.
    """

    subject: str
    examples: int
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures


async def check_plugin(plugin: "Plugin", clock: "IReactorTime") -> AsyncIterator[Verdict]:
    """Run every example of a plugin's transforms the way a request would, also where another plugin has the name.

    Yields:
        One verdict per transform, or a single one for a plugin that failed to load.
    """
    from xformd.limits import Limits
    from xformd.plugins.registry import Entry, Registry
    from xformd.service import TransformService

    if plugin.state == "failed":
        yield Verdict(plugin.label, 0, (f"plugin {plugin.label}: {plugin.reason}",))
    own = Registry({transform.name: Entry(transform, plugin) for transform in plugin.transforms}, (plugin,))
    service = TransformService.inline(own, Limits(), clock)
    for transform in plugin.transforms:
        failures = [await _failure(service, transform, example) for example in transform.examples]
        yield Verdict(transform.name, len(failures), tuple(filter(None, failures)))


async def _failure(service: "TransformService", transform: "Transform", example: "Example") -> str:
    """Run one example; return what is wrong with it, or nothing if it holds."""
    from twisted.internet.defer import Deferred

    from xformd import spec

    call = ", ".join([repr(example.poem), *(f"{name}={value!r}" for name, value in example.options.items())])
    poem, wanted = (side.encode() if isinstance(side, str) else side for side in (example.poem, example.result))
    try:
        result = service.xform(spec.build(transform.name, example.options), poem)
        if isinstance(result, Deferred):
            result = await result
    except XformError as error:
        return f"{transform.name}({call}): {describe_locally(error)}"
    if result == wanted:
        return ""
    return f"{transform.name}({call}) gave {transform.decode(result)!r}, not {example.result!r}"


def _report(verdict: Verdict, stdout: TextIO) -> None:
    for failure in verdict.failures:
        click.echo(f"FAILED  {failure}", file=stdout)
    if verdict.passed:
        examples = "1 example" if verdict.examples == 1 else f"{verdict.examples or 'no'} examples"
        click.echo(f"ok      {verdict.subject}: {examples}", file=stdout)
