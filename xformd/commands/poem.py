"""``xformd poem``: serve a poem, and get poems from several servers at once."""

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xformd.commands.options import (
    SIZE,
    configuration_options,
    isolated_plugin_output,
    log_options,
    print_error,
    quantity_option,
    run_server,
    setting_options,
    timeout_option,
)
from xformd.commands.poem_options import address_option, output_dir_option
from xformd.net.defaults import DEFAULT_POEM_PORT, with_host

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.net.listener import ListeningService

max_bytes_option = quantity_option("--max-bytes", SIZE, "100MiB", "Reject a poem longer than this.")


@click.group()
def poem() -> None:
    """Serve a poem, get poems from several servers at once, or cache another server's poem."""


@poem.command()
@click.argument("poem_file", metavar="FILE", type=click.Path(path_type=Path))
@configuration_options(DEFAULT_POEM_PORT, reads_file=False)
@click.option("--slow", type=SIZE, metavar="BYTES_PER_SECOND", help="Send it to each client at this speed.")
@log_options
@setting_options("drain_delay_s")
def serve(poem_file: Path, configuration: "Configuration", slow: int | None) -> None:
    """Serve the poem in a file to every client that connects, until SIGTERM or Ctrl-C.

    A changed file is read again; while it cannot be read, the last good poem is served.

    \b
    Examples:
      xformd poem serve owl.txt
      xformd poem serve owl.txt --port 10001 --slow 50
      xformd poem serve owl.txt --listen tcp:10000 --listen unix:/run/owl.sock
    """
    settings = configuration.settings

    def make(reactor: Any) -> "ListeningService":
        from xformd.net.tls import server_tls
        from xformd.poems.server import PoemService, make_poem_server

        more: Any = {"tls": server_tls(settings, reactor), "drain_delay_s": settings.limits.drain_delay_s}
        return make_poem_server(PoemService(poem_file), settings.listen, reactor, bytes_per_s=slow, **more)

    speed = "" if slow is None else f", {slow} bytes a second"
    run_server(make, lambda _: [f"the poem of {poem_file}{speed}"], settings)


@poem.command()
@click.argument("addresses", type=with_host, nargs=-1, required=True, metavar="ADDRESS...")
@click.option("--transform", "spec", metavar="SPEC", help="Send each poem through this transform as it arrives.")
@address_option("--via", help="The transform server for --transform. Several share the work.")
@timeout_option("How long to wait for each whole poem, and then for its transform.")
@max_bytes_option
@click.option("--ordered", is_flag=True, help="Print the poems in the order of the addresses, not of arrival.")
@output_dir_option("Write each poem to a file in this folder, named after its address.")
def get(
    addresses: tuple[str, ...],
    spec: str | None,
    via: tuple[str, ...],
    timeout: float,
    max_bytes: int,
    ordered: bool,
    output_dir: Path | None,
) -> None:
    """Get poems from several servers, all at once, and print each as soon as it is complete.

    ADDRESS is HOST:PORT, PORT, or a Twisted client endpoint, such as unix:/run/owl.sock. The exit status is 0 if all
    arrived, 1 if only some did or some were not transformed, and that of the first failure if none did.

    \b
    Examples:
      xformd poem get 10000 10001
      xformd poem get --transform cummingsify --via 127.0.0.1:11000 127.0.0.1:10000 127.0.0.1:10001
      xformd poem get --ordered --timeout 5 --output-dir poems 127.0.0.1:10000 127.0.0.1:10001
    """
    from xformd.client.batch import to_files
    from xformd.net import run
    from xformd.poems import gather
    from xformd.telemetry import logs

    context = click.get_current_context()
    if spec is None and context.get_parameter_source("via") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--via needs --transform")
    logs.start()
    with isolated_plugin_output() as stdout:
        if output_dir is None:
            write = gather.to_stream(stdout.buffer)
        else:
            files = [(address, output_dir / gather.file_name(address)) for address in addresses]
            write = to_files(files, f"--output-dir {output_dir}")
        getting = gather.get_poems(
            addresses,
            write,
            functools.partial(print_error, prefix=""),
            spec=spec,
            via=via,
            timeout_s=timeout,
            max_bytes=max_bytes,
            ordered=ordered,
        )
        sys.exit(run.run_until_done(getting))
