"""The command line: options, calls and exit statuses, nothing else.

Each command imports what it needs when it runs, so that ``xformd --help`` stays quick, and a command that loads no
plugin and needs no reactor gets none.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from xformd import __version__
from xformd.client.files import WRITE_FAILED
from xformd.commands.options import Selected, isolated_plugin_output, plugin_options, poem_options, server_options
from xformd.commands.poem import poem
from xformd.commands.proxy import proxy
from xformd.commands.serve import config, serve
from xformd.errors import ConfigError, XformError, one_line

if TYPE_CHECKING:
    from xformd.client.batch import Batch
    from xformd.commands.checking import Verdict

CHECK_FAILED = 1
LIST_TIMEOUT_S = 30.0


class _Commands(click.Group):
    """Turns our errors into one line and an exit status, and ends the process with it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                _leave(end.code or 0)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # nobody reads any more, which click knows how to end quietly
        except OSError as error:
            _print_error(f"cannot write to standard output: {error.strerror}")
            ctx.exit(WRITE_FAILED)
        except XformError as error:
            for detail in getattr(error, "details", ()):
                _print_error(detail)
            _print_error(f"{error.code}: {error.message}")
            ctx.exit(error.exit_status)


def _leave(status: int) -> None:
    """End the process: what a plugin has left running, a thread or an exit handler, is not waited for."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # which the interpreter tells of in its own way
    os._exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xformd")
def main() -> None:
    """A transform daemon: send it a text and the name of a transform, get the transformed text back.

    \b
    xformd serve                                start a server with every installed plugin
    xformd list-transforms                      what it can do
    xformd send cummingsify poem.txt            send it a poem
    xformd run wrap:width=40+upper poem.txt     the same, without a server
    xformd poem get 127.0.0.1:10000             fetch one, from a poem server
    """


main.add_command(serve)
main.add_command(config)
main.add_command(poem)
main.add_command(proxy)


@main.command("list-transforms")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/cli.md describes it.")
@click.option("--server", metavar="ADDRESS", help="Ask this running server, and not the plugins installed here.")
@plugin_options
def list_transforms(as_json: bool, server: str | None, selected: Selected) -> None:
    """List the transforms of the installed plugins, and the plugins that are not active.

    With the same file, variables and flags it has the plugins that serve would have.

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


@main.command()
@server_options
def ping(servers: tuple[str, ...], timeout: float) -> None:
    """Ask servers for a sign of life, each in turn.

    \b
    Examples:
      xformd ping
      xformd ping --server 127.0.0.1:11000 --server unix:/run/xformd.sock
    """
    from xformd.client import TransformProxy
    from xformd.net import run
    from xformd.telemetry import logs

    async def ping_all(stdout: TextIO) -> int:
        status = 0
        for server in servers:
            start = time.perf_counter()
            try:
                name = await TransformProxy(server).ping(timeout=timeout)
            except XformError as error:
                _print_error(f"{error.code}: {error.message}")
                status = status or error.exit_status
            else:
                click.echo(f"{server}: {name}, {1000 * (time.perf_counter() - start):.1f} ms", file=stdout)
        return status

    logs.start()
    with isolated_plugin_output() as stdout:
        status = run.run_until_done(ping_all(stdout))
    if status:
        sys.exit(status)


@main.command()
@poem_options
@server_options
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="How many poems to send at once."
)
@click.option("--fallback", is_flag=True, help="Where the transform fails, give the original poem.")
def send(
    spec: str,
    files: tuple[Path, ...],
    options: dict[str, str],
    output_dir: Path | None,
    servers: tuple[str, ...],
    timeout: float,
    jobs: int,
    fallback: bool,
) -> None:
    """Send poems to a server: files, or standard input, to standard output.

    SPEC names a transform, with its options, or several with + between them.

    \b
    Examples:
      xformd send cummingsify poem.txt
      xformd send wrap -o width=40 < poem.txt
      xformd send wrap:width=40+number-lines --output-dir out *.txt
    """
    from xformd import spec as specs
    from xformd.client import TransformProxy
    from xformd.client.batch import Batch
    from xformd.telemetry import logs

    logs.start()
    built = str(specs.build(spec, options))
    with isolated_plugin_output() as stdout:
        proxy = TransformProxy(servers)

        async def transform(poem: bytes) -> bytes:
            return await proxy.xform(built, poem, timeout=timeout)

        batch = Batch(transform=transform, complain=_print_error, fallback=fallback, jobs=jobs)
        _run_batch(batch, files, output_dir, stdout)


@main.command()
@poem_options
@plugin_options
@click.option("--traceback", is_flag=True, help="Show the traceback of a transform that raised.")
def run(
    spec: str,
    files: tuple[Path, ...],
    options: dict[str, str],
    output_dir: Path | None,
    selected: Selected,
    traceback: bool,
) -> None:
    """Transform poems in this process, without a server.

    \b
    Examples:
      xformd run cummingsify poem.txt
      xformd run --plugins-dir . shout:marks=3 < poem.txt
      xformd run --config /etc/xformd.toml shout poem.txt
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from xformd import spec as specs
    from xformd.client.batch import Batch
    from xformd.commands import checking
    from xformd.limits import Limits
    from xformd.plugins import loader
    from xformd.service import TransformService
    from xformd.telemetry import logs
    from xformd.telemetry.tracebacks import SafeTraceback

    logs.start(*([logs.observer()] if traceback else []))
    parsed = specs.build(spec, options)
    with isolated_plugin_output() as stdout:
        with selected() as selection:
            look = SafeTraceback.in_full if traceback else SafeTraceback.of
            service = TransformService.inline(loader.load(selection), Limits(), reactor, look=look)

        async def transform(poem: bytes) -> bytes:
            result = service.xform(parsed, poem)
            return await result if isinstance(result, Deferred) else result

        batch = Batch(transform=transform, complain=_print_error, explain=checking.explain)
        _run_batch(batch, files, output_dir, stdout)


@main.command()
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

    from xformd.commands import checking
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
                async for verdict in checking.check(plugin, reactor):
                    _report(verdict, stdout)
                    passed.append(verdict.passed)
            return passed

        passed = run.run_until_done(check_all())
        if not passed:
            raise ConfigError("there is nothing to check: what was selected is blocked, or has no transforms")
        if not all(passed):
            sys.exit(CHECK_FAILED)


def _report(verdict: "Verdict", stdout: TextIO) -> None:
    for failure in verdict.failures:
        click.echo(f"FAILED  {failure}", file=stdout)
    if verdict.passed:
        click.echo(f"ok      {verdict.subject}: {_count(verdict.examples, 'example')}", file=stdout)


def _count(number: int, thing: str) -> str:
    return f"{number or 'no'} {thing}" if number == 1 else f"{number or 'no'} {thing}s"


def _print_error(message: str) -> None:
    click.echo(f"xformd: {one_line(message)}", err=True)


def _run_batch(batch: "Batch", files: Sequence[Path], output_dir: Path | None, stdout: TextIO) -> None:
    """Transform the poems that a command was given, and exit with the status of the first that failed."""
    from xformd.client import batch as batches
    from xformd.net import run

    sources = files or (batches.STDIN,)
    sink = batches.Stream(stdout.buffer) if output_dir is None else batches.Folder(output_dir, sources)
    # A bar is drawn where a person waits, and not into the middle of results on the same terminal.
    drawn = len(sources) > 1 and sys.stderr.isatty() and (output_dir is not None or not stdout.isatty())
    with click.progressbar(length=len(sources), label="poems", file=sys.stderr, hidden=not drawn) as bar:
        status = run.run_until_done(batch.run(sources, sink, functools.partial(bar.update, 1)))
    if status:
        sys.exit(status)
