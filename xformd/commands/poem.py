"""The commands of the poetry systems: ``poem serve``, ``poem get``, ``poem proxy``."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import (
    address_option,
    isolated_plugin_output,
    listen_option,
    listening_lines,
    log_format_option,
    only_flags,
    print_error,
    read_duration,
    read_size,
    read_timeout,
)
from xformd.net.defaults import DEFAULT_POEM_PORT, DEFAULT_POEM_PROXY_PORT

if TYPE_CHECKING:
    from xformd.net.listener import ListeningService


_MAX_BYTES = click.option(
    "--max-bytes",
    callback=read_size,
    default="100MiB",
    show_default=True,
    metavar="N",
    help="Take no poem that is longer.",
)


@click.group()
def poem() -> None:
    """Serve a poem, get poems from several servers at once, or keep one in a proxy's cache."""


@poem.command()
@click.argument("file", type=click.Path(path_type=Path))
@listen_option(DEFAULT_POEM_PORT)
@click.option("--slow", callback=read_size, metavar="BYTES_PER_SECOND", help="Send it to each client at this speed.")
@log_format_option
def serve(file: Path, listen: tuple[str, ...], slow: int | None, log_format: str) -> None:
    """Serve the poem of a file to whoever connects, until SIGTERM or Ctrl-C.

    The file is read again when it has changed; while it cannot be read, the last good poem stays.

    \b
    Examples:
      xformd poem serve owl.txt
      xformd poem serve owl.txt --listen tcp:10000 --listen unix:/run/owl.sock
      xformd poem serve owl.txt --slow 50
    """
    from xformd.poems import app

    make = functools.partial(app.make_poem_server, file, listen, bytes_per_s=slow)
    speed = "" if slow is None else f", {slow} bytes a second"
    _run(make, f"the poem of {file}{speed}", log_format)


@poem.command()
@click.argument("upstream")
@listen_option(DEFAULT_POEM_PROXY_PORT)
@click.option("--ttl", callback=read_duration, metavar="S", help="A poem is fresh for so long. [for ever]")
@click.option(
    "--stale",
    callback=read_duration,
    default="0",
    show_default=True,
    metavar="S",
    help="For so long after that it is served while no fresh one can be had.",
)
@_MAX_BYTES
@click.option(
    "--connect-timeout",
    callback=read_timeout,
    default="10",
    show_default=True,
    metavar="S",
    help="How long to wait for the connection to the upstream.",
)
@click.option(
    "--timeout", callback=read_timeout, default="60", show_default=True, metavar="S", help="And for the whole poem."
)
@log_format_option
def proxy(upstream: str, listen: tuple[str, ...], ttl: float | None, connect_timeout: float, **given: Any) -> None:
    """Serve the poem of another server, fetched once and kept in memory.

    Whoever asks while it is fetched waits for the one download. Without a poem, a client's connection is reset.

    \b
    Examples:
      xformd poem proxy poems.example.org:10000
      xformd poem proxy 127.0.0.1:10000 --ttl 60 --stale 5min
    """
    from xformd.poems import app

    options = {"max_bytes": given["max_bytes"], "stale_s": given["stale"], "timeout_s": given["timeout"]}
    if ttl is not None:
        options["ttl_s"] = ttl
    make = functools.partial(app.make_poem_proxy, upstream, listen, connect_timeout_s=connect_timeout, **options)
    _run(make, f"the poem of {upstream}, from a cache", given["log_format"])


def _run(make: "Callable[[Any], ListeningService]", what: str, log_format: str) -> None:
    from xformd.net import run

    run.prepare_to_serve(log_format)
    with isolated_plugin_output() as stdout, only_flags():
        run.run_server(
            make,
            lambda _, addresses: [*listening_lines(addresses), what],
            functools.partial(click.echo, file=stdout),
        )


@poem.command()
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--transform", "spec", metavar="SPEC", help="Send each poem through this transform as it arrives.")
@address_option("--via", help="The xformd server that transforms. Several share the work.")
@click.option(
    "--timeout",
    "timeout_s",
    callback=read_timeout,
    default="60",
    show_default=True,
    metavar="S",
    help="How long to wait for each whole poem, and then for its transform.",
)
@_MAX_BYTES
@click.option("--ordered", is_flag=True, help="Print the poems in the order of the addresses, not of their arrival.")
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write each poem to a file of its address's name in this folder.",
)
def get(addresses: tuple[str, ...], spec: str | None, output_dir: Path | None, **options: Any) -> None:
    """Get poems from several servers, all at once, and print each as soon as it is whole.

    ADDRESS is HOST:PORT, or a Twisted client endpoint, such as unix:/run/owl.sock. The exit status is 0 if all came,
    1 if some did, or came without their transform, and that of the first failure if none did.

    \b
    Examples:
      xformd poem get 127.0.0.1:10000 127.0.0.1:10001
      xformd poem get --transform cummingsify --via 127.0.0.1:11000 127.0.0.1:10000 127.0.0.1:10001
      xformd poem get --ordered --timeout 5 --output-dir poems 127.0.0.1:10000 127.0.0.1:10001
    """
    from xformd.client.batch import to_folder
    from xformd.net import run
    from xformd.poems import gather
    from xformd.telemetry import logs

    context = click.get_current_context()
    if spec is None and context.get_parameter_source("via") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--via is where --transform is done: say which transform")
    logs.start()
    with isolated_plugin_output() as stdout:
        if output_dir is None:
            write = gather.to_stream(stdout.buffer)
        else:
            write = to_folder(output_dir, addresses, gather.file_name)
        print_line = functools.partial(print_error, prefix="")
        status = run.run_until_done(gather.get_poems(addresses, write, print_line, spec=spec, **options))
    if status:
        sys.exit(status)
