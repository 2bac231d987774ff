"""The command line: the group of commands, and errors as exit statuses.

Each command imports what it needs when it runs, so that ``xformd --help`` stays quick, and a command that needs no
plugin and no reactor loads none.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from xformd import __version__
from xformd.commands.access import token
from xformd.commands.kit import dev, new
from xformd.commands.mcp import mcp
from xformd.commands.options import open_standard_streams, print_error, print_line
from xformd.commands.plugins import check, list_plugins, list_transforms
from xformd.commands.poem import poem
from xformd.commands.proxy import proxy
from xformd.commands.replay import replay
from xformd.commands.serve import config, reload, serve
from xformd.commands.transforms import ping, run, send
from xformd.errors import ConfigError, XformError, printable


@contextlib.contextmanager
def _harmless_usage_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]  # it quotes an argument
        raise


class _Commands(click.Group):
    """Reports errors on one line each, and ends the process with their exit status."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        open_standard_streams()
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                _exit_now(end.code or 0)
            raise

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; what it prints, a help text too, must get somewhere."""
        if sys.stdout is None:
            print_error("bad-config: standard output is closed: redirect it to a file, or to /dev/null")
            sys.exit(ConfigError.exit_status)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # not that the reader has gone, where click ends quietly
            from xformd.client.batch import WRITE_FAILED

            print_error(f"cannot write to standard output: {error.strerror}")
            sys.exit(WRITE_FAILED)

    make_context = _harmless_usage_errors()(click.Group.make_context)

    @_harmless_usage_errors()
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except XformError as error:
            for detail in getattr(error, "details", ()):
                print_error(detail)
            print_error(f"{error.code}: {error.message}")
            ctx.exit(error.exit_status)


def _exit_now(status: int) -> None:
    # Without the interpreter's shutdown, which would wait for threads and exit handlers that a plugin left behind.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):  # a failed write has been reported, or is a plugin's
            stream.flush()
    os._exit(status)


def _show_versions(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version
    from platform import python_version

    from xformd.plugins import discovery

    plugins = dict.fromkeys(f"{each.distribution} {each.version}" for each in discovery.installed())
    versions = [f"xformd {__version__}", f"Python {python_version()}", f"Twisted {version('twisted')}", *plugins]
    for line in versions:
        print_line(line)
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of xformd, Python, Twisted and the plugins, and exit.",
)
def main() -> None:
    """A transform daemon: send it a text and the name of a transform, get the transformed text back.

    \b
    xformd serve                                start a server with every installed plugin
    xformd list-transforms                      what it can do
    xformd send cummingsify poem.txt            send it a poem
    xformd run wrap:width=40+upper poem.txt     the same, without a server
    xformd poem get 127.0.0.1:10000             fetch one, from a poem server
    """


for _command in (
    serve,
    reload,
    config,
    proxy,
    poem,
    list_transforms,
    list_plugins,
    ping,
    send,
    run,
    check,
    replay,
    mcp,
    new,
    dev,
    token,
):
    main.add_command(_command)
