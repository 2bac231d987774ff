"""``xformd list-transforms`` and ``xformd check``: what plugins offer, and whether their examples hold."""

import contextlib
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

from xformd.commands import options
from xformd.commands.options import Selected, describe_locally, isolated_plugin_output, plugin_options, report_slow
from xformd.errors import ConfigError, XformError, printable_json

if TYPE_CHECKING:
    from xformd.config import Settings
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
    from xformd.client import TransformProxy
    from xformd.net import run
    from xformd.plugins import listing
    from xformd.telemetry import logs

    async def ask(server: str) -> dict[str, Any]:
        return await TransformProxy(server).list_transforms(timeout=LIST_TIMEOUT_S)

    logs.start()
    with isolated_plugin_output() as stdout:
        if server is None:
            with selected() as settings:
                listed = list_here(settings)
        else:
            listed = run.run_until_done(ask(server))
        click.echo(printable_json(listed, indent=2) if as_json else listing.to_table(listed), file=stdout)


def list_here(settings: "Settings") -> dict[str, Any]:
    """Return what a server with these plugins would list, and why plugins failed, which is its operator's."""
    from xformd.net import run
    from xformd.plugins import listing
    from xformd.server.reload import local_service
    from xformd.telemetry import logs

    async def describe() -> dict[str, Any]:
        async with local_service(settings, report_slow) as service:
            return listing.to_json(service.registry)

    logs.start()
    return run.run_until_done(describe())


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
    from xformd.net import run
    from xformd.telemetry import logs

    logs.start()
    with isolated_plugin_output() as stdout:
        passed: list[bool] = []

        async def check_all() -> None:
            async with contextlib.aclosing(check_plugins(settings, distribution)) as verdicts:
                async for verdict in verdicts:
                    _report(verdict, stdout)
                    passed.append(not verdict.failures)

        with selected() as settings:
            run.run_until_done(check_all())
        if not passed:
            raise ConfigError("nothing to check: the selected plugins are blocked or have no transforms")
        if not all(passed):
            sys.exit(CHECK_FAILED)


@attrs.frozen
class Verdict:
    """The outcome of one transform's examples, with a line for each failure; or a plugin that failed to load."""

    subject: str
    examples: int
    failures: tuple[str, ...]


async def check_plugins(settings: "Settings", distribution: str | None) -> AsyncGenerator[Verdict, None]:
    """Run every example, of one distribution's plugins or of all, the way a request would.

    Yields:
        One verdict per transform, also where another plugin has its name, and one for each plugin that failed to load.
    """
    from xformd.plugins.loader import of_distribution
    from xformd.server.reload import local_service

    async with local_service(settings, report_slow) as service:
        registry = service.registry
        plugins = registry.plugins if distribution is None else of_distribution(distribution, registry.plugins)
        for plugin in plugins:
            if plugin.state == "failed":
                yield Verdict(plugin.label, 0, (f"plugin {plugin.label}: {plugin.reason}",))
            for transform in plugin.transforms:
                if _is_used(service, transform, plugin):
                    yield await _verdict(service, transform)
    for conflict in registry.conflicts:
        for plugin in conflict.plugins:
            if plugin.key in {each.key for each in plugins} and plugin != conflict.winner:
                yield await _check_loser(settings, conflict.name, plugin)


async def _check_loser(settings: "Settings", name: str, plugin: "Plugin") -> Verdict:
    """Check a transform whose name another plugin has, with a selection that prefers it."""
    from xformd.server.reload import local_service

    selection = attrs.evolve(settings.selection, preferred={name: plugin.distribution}, strict=False)
    try:
        async with local_service(attrs.evolve(settings, selection=selection), report_slow) as service:
            return await _verdict(service, service.registry.resolve(name).transform)
    except ConfigError as error:
        return Verdict(name, 0, (error.message,))


def _is_used(service: "TransformService", transform: "Transform", plugin: "Plugin") -> bool:
    entry = service.registry.entries.get(transform.name)
    return entry is not None and entry.plugin.key == plugin.key


async def _verdict(service: "TransformService", transform: "Transform") -> Verdict:
    failures = [await _failure(service, transform, example) for example in transform.examples]
    return Verdict(transform.name, len(failures), tuple(filter(None, failures)))


async def _failure(service: "TransformService", transform: "Transform", example: "Example") -> str:
    """Run one example; return what is wrong with it, or nothing if it holds."""
    from twisted.internet.defer import Deferred

    from xformd import spec

    call = ", ".join([repr(example.poem), *(f"{name}={value!r}" for name, value in example.options.items())])
    poem, wanted = map(transform.encode, (example.poem, example.result))
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
        options.print_line(f"FAILED  {failure}", stdout)
    if not verdict.failures:
        examples = "1 example" if verdict.examples == 1 else f"{verdict.examples or 'no'} examples"
        options.print_line(f"ok      {verdict.subject}: {examples}", stdout)
