"""``xformd send``, ``run`` and ``ping``: poems through transforms, on a server or in this process."""

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from xformd.commands.options import (
    Selected,
    describe_locally,
    isolated_plugin_output,
    plugin_options,
    poem_options,
    print_error,
    report_slow,
    server_options,
)
from xformd.errors import ConnectionFailed, TransformTimeout, XformError

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from xformd.client import TransformProxy
    from xformd.client import batch as batches

_Transform = Callable[[bytes], "bytes | Deferred[bytes]"]

RETRY_S = 0.1
"""How long ``ping --wait`` waits between two tries."""


@click.command()
@server_options
@click.option("--wait", is_flag=True, help="Try again until the server is up, or --timeout has passed.")
def ping(servers: tuple[str, ...], timeout: float, wait: bool) -> None:
    """Check that servers answer, one after the other.

    \b
    Examples:
      xformd ping
      xformd serve & xformd ping --wait
      xformd ping --server 127.0.0.1:11000 --server unix:/run/xformd.sock
    """
    from xformd.client import TransformProxy
    from xformd.net import run
    from xformd.telemetry import logs

    async def ping_all(stdout: TextIO) -> int:
        status = 0
        for server in servers:
            try:
                answer = await _ping(TransformProxy(server), timeout, wait=wait)
            except XformError as error:
                print_error(f"{error.code}: {error.message}")
                status = status or error.exit_status
            else:
                click.echo(f"{server}: {answer}", file=stdout)
        return status

    logs.start()
    with isolated_plugin_output() as stdout:
        status = run.run_until_done(ping_all(stdout))
    if status:
        sys.exit(status)


async def _ping(proxy: "TransformProxy", timeout_s: float, *, wait: bool) -> str:
    """Return which server answers and how fast; if it is to ``wait``, try again while there is time."""
    from twisted.internet import reactor as installed
    from twisted.internet.task import deferLater

    reactor: Any = installed
    left_s, start_s = timeout_s, reactor.seconds()
    refused: ConnectionFailed | None = None
    while True:
        try:
            tried_s = reactor.seconds()
            name = await proxy.ping(timeout=left_s)
            return f"{name}, {1000 * (reactor.seconds() - tried_s):.1f} ms"
        except ConnectionFailed as error:
            refused = error
            left_s = start_s + timeout_s - reactor.seconds() - RETRY_S
            if not wait or left_s <= 0:
                raise
        except TransformTimeout:
            if refused is None:
                raise
            raise refused from None
        await deferLater(reactor, RETRY_S)


@click.command()
@poem_options
@server_options
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="How many poems to send at once."
)
@click.option("--fallback", is_flag=True, help="Print the original poem if the transform fails.")
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

    SPEC names a transform with its options, or several joined by +.

    \b
    Examples:
      xformd send cummingsify poem.txt
      xformd send wrap -o width=40 < poem.txt
      xformd send wrap:width=40+number-lines --output-dir out *.txt
    """
    from xformd import spec as specs
    from xformd.client import TransformProxy
    from xformd.telemetry import logs

    logs.start()
    built = str(specs.build(spec, options))
    with isolated_plugin_output() as stdout:
        proxy = TransformProxy(servers)

        def transform(poem: bytes) -> "Deferred[bytes]":
            return proxy.xform(built, poem, timeout=timeout)

        _run_batch(contextlib.nullcontext(transform), files, output_dir, stdout, fallback=fallback, jobs=jobs)


@click.command()
@poem_options
@plugin_options
@click.option("--traceback", is_flag=True, help="Show the traceback of a transform that raises.")
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

    from xformd import spec as specs
    from xformd.limits import Limits
    from xformd.server.local import local_service
    from xformd.telemetry import logs

    logs.start(*([logs.observer()] if traceback else []))
    parsed = specs.build(spec, options)
    with isolated_plugin_output() as stdout, selected() as selection:

        @contextlib.asynccontextmanager
        async def here() -> "AsyncIterator[_Transform]":
            async with local_service(selection, Limits(), report_slow, reactor) as service:
                yield functools.partial(service.xform, parsed)

        _run_batch(here(), files, output_dir, stdout, describe=describe_locally)


def _run_batch(
    prepared: "contextlib.AbstractAsyncContextManager[_Transform]",
    files: Sequence[Path],
    output_dir: Path | None,
    stdout: TextIO,
    *,
    describe: Callable[[XformError], str] = lambda error: f"{error.code}: {error.message}",
    fallback: bool = False,
    jobs: int = 1,
) -> None:
    """Transform the poems, and exit with the status of the first that failed."""
    from xformd.client import batch
    from xformd.net import run

    sources = files or (batch.STDIN,)
    write = batch.to_folder(output_dir, sources, batch.file_name) if output_dir else batch.to_stream(stdout.buffer)

    def report(item: "batches.Item[Path]") -> None:
        error = item.error
        where = f"{item.source}: " if len(sources) > 1 or item.poem is None else ""
        if isinstance(error, XformError):
            follows = "; original poem follows" if item.result is not None else ""
            print_error(where + describe(error) + follows)
        elif error is not None:
            what = "" if item.poem is None else f"cannot write the result to {output_dir or 'standard output'}: "
            print_error(f"{where}{what}{error.strerror or error}")

    # Show a bar where a person waits for it, but never amid results on the same terminal.
    shows_bar = len(sources) > 1 and sys.stderr.isatty() and (output_dir is not None or not stdout.isatty())
    with click.progressbar(length=len(sources), label="poems", file=sys.stderr, hidden=not shows_bar) as bar:

        async def transform_all() -> "batches.Summary":
            async with prepared as transform:
                return await batch.Batch(
                    fetch=batch.read_file,
                    transform=transform,
                    write=write,
                    report=report,
                    watch=lambda item: bar.update(1) if item.is_done else None,
                    fallback=fallback,
                    jobs=jobs,
                ).run(sources)

        summary = run.run_until_done(transform_all())
    if summary.exit_status:
        sys.exit(summary.exit_status)
