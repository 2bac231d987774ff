"""The command line: the group of commands, and errors as exit statuses.

Each command imports what it needs when it runs, so that ``xformd --help`` stays quick, and a command that needs no
plugin and no reactor loads none.
"""

import os
import sys
from typing import Any

import click

from xformd import __version__
from xformd.commands.options import print_error
from xformd.commands.plugins import check, list_transforms
from xformd.commands.poem import poem
from xformd.commands.proxy import proxy
from xformd.commands.serve import config, serve
from xformd.commands.transforms import ping, run, send
from xformd.errors import XformError


class _Commands(click.Group):
    """Reports errors on one line each, and ends the process with their exit status."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                _exit_now(end.code or 0)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader has gone: click ends quietly
        except OSError as error:
            from xformd.client.batch import WRITE_FAILED

            print_error(f"cannot write to standard output: {error.strerror}")
            ctx.exit(WRITE_FAILED)
        except XformError as error:
            for detail in getattr(error, "details", ()):
                print_error(detail)
            print_error(f"{error.code}: {error.message}")
            ctx.exit(error.exit_status)


def _exit_now(status: int) -> None:
    # Without the interpreter's shutdown, which would wait for threads and exit handlers that a plugin left behind.
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):
        return  # the interpreter reports it in its own way
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


for _command in (serve, config, proxy, poem, list_transforms, ping, send, run, check):
    main.add_command(_command)
