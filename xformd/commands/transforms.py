"""``xformd send``, ``run`` and ``ping``: poems through transforms, on a server or in this process."""

import codecs
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

import click

from xformd.commands.options import (
    DURATION,
    describe_locally,
    isolated_plugin_output,
    plugin_options,
    print_error,
    print_line,
    report_slow,
    setting_options,
)
from xformd.commands.poem_options import PoemOptions, poem_options, server_options
from xformd.errors import BadOptions, ConfigError, GibberishError, RequestRefused, XformError

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from xformd.client import batch as batches
    from xformd.config import Settings
    from xformd.spec import Spec

Transform = Callable[[bytes], "bytes | Deferred[bytes]"]
Prepared = contextlib.AbstractAsyncContextManager[tuple[Transform, str]]
"""What transforms the poems, and the media type of the results; empty if it is not known."""

RETRY_S = 0.1  # how long ``ping --wait`` waits between two tries


@click.command()
@server_options
@click.option(
    "--wait",
    type=DURATION,
    is_flag=False,
    flag_value="0",
    metavar="[DURATION]",
    help="Try again until the server is up, for this long, or else for --timeout.",
)
@click.option("--all", "compares", is_flag=True, help="Ask at each address of a name, and compare what servers offer.")
def ping(
    servers: tuple[str, ...],
    timeout: float,
    wait: float | None,
    client: dict[str, Any],
    compares: bool,
) -> None:
    """Check that servers answer, one after the other.

    With --all, the exit status is 78 if they answer and do not offer the same transforms in the same versions.

    \b
    Examples:
      xformd ping
      xformd serve & xformd ping --wait
      xformd ping --wait 2min --timeout 5
      xformd ping --server 127.0.0.1:11000 --server unix:/run/xformd.sock
      xformd ping --server transforms.internal --tls-ca ca.pem
      xformd ping --all --server 10.0.0.1:11000 --server 10.0.0.2:11000
    """
    if compares and wait is not None:
        raise click.UsageError("--all asks once: leave --wait out")
    from twisted.internet.defer import Deferred, gatherResults

    from xformd.net import run
    from xformd.telemetry import logs

    wait_s = 0.0 if wait is None else wait or timeout

    async def ping_all(stdout: TextIO) -> int:
        if compares:
            looks = [Deferred.fromCoroutine(_look(server, timeout, client)) for server in servers]
            return _report([*chain(*await gatherResults(looks))], stdout)
        status = 0
        for server in servers:
            try:
                answer = await _ping(server, timeout, wait_s, client)
            except XformError as error:
                print_error(f"{error.code}: {error.message}")
                status = status or error.exit_status
            else:
                print_line(f"{server}: {answer}", stdout)
        return status

    logs.start()
    with isolated_plugin_output() as stdout:
        sys.exit(run.run_until_done(ping_all(stdout)))


async def _ping(server: str, timeout_s: float, wait_s: float, client: dict[str, Any]) -> str:
    """Return which server answers and how fast, or raise why it cannot be reached; try again for ``wait_s``."""
    from twisted.internet import reactor as installed
    from twisted.internet.task import deferLater

    from xformd.client import TransformProxy

    reactor: Any = installed
    ends_s = reactor.seconds() + wait_s
    while True:
        tried_s = reactor.seconds()
        # A new one, which has not learnt to wait from the last try, or that the server is an old one.
        proxy = TransformProxy(server, **client)
        try:
            left_s = max(RETRY_S, ends_s - tried_s)  # this process may have waked up too late
            name = await proxy.ping(timeout=min(timeout_s, left_s) if wait_s else timeout_s)
            return f"{name}, {1000 * (reactor.seconds() - tried_s):.1f} ms"
        except XformError as error:
            proxy.close()
            # A proxy without a server that is up closes as one of the classic dialect does.
            may_pass = error.retryable or isinstance(error, RequestRefused)
            if not may_pass or reactor.seconds() + RETRY_S >= ends_s:
                raise
        await deferLater(reactor, RETRY_S)


Look = tuple[str, str, "Mapping[str, Any] | XformError"]
"""The address of a server; what to print of it; and what it lists, or why it does not answer."""


async def _look(server: str, timeout_s: float, client: Mapping[str, Any]) -> list[Look]:
    """Ask a server who it is and what it has, at each address of its name."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred, gatherResults

    from xformd.client import TransformProxy
    from xformd.net.endpoints import ClientEndpoint, client_endpoint
    from xformd.plugins.listing import fingerprint

    async def ask(endpoint: ClientEndpoint) -> Look:
        name = f"{server} at {endpoint.only}" if endpoint.only else server
        proxy = TransformProxy(endpoint, address=name, token=client["token"])
        try:
            who, _, state = (await proxy.ping(timeout=timeout_s)).partition(", ")
            listed = await proxy.list_transforms(timeout=timeout_s)
        except XformError as error:
            return name, f"{error.code}: {error.message}", error
        finally:
            proxy.close()
        found = listed["transforms"]
        shown = f"{name}: {who}, {state or 'ready'}, {len(found)} transforms, fingerprint {fingerprint(found)}"
        return name, shown, listed

    def endpoint_at(only: str = "") -> ClientEndpoint:
        endpoint = client_endpoint(reactor, server, tls=client["tls"] or None)
        endpoint.only = only
        return endpoint

    first = await ask(endpoint := endpoint_at())
    hosts = sorted({each.host for each in endpoint.addresses})
    if len(hosts) < 2:
        return [first]
    return await gatherResults([Deferred.fromCoroutine(ask(endpoint_at(host))) for host in hosts])


def _report(looks: Sequence[Look], stdout: TextIO) -> int:
    """Print what servers have answered, and how they differ; return the exit status."""
    from xformd.plugins.listing import differences

    for _, shown, found in looks:
        if isinstance(found, XformError):
            print_error(shown)
        else:
            print_line(shown, stdout)
    different = differences({name: found for name, _, found in looks if not isinstance(found, XformError)})
    for line in different:
        print_line(line, stdout)
    failed = [found.exit_status for *_, found in looks if isinstance(found, XformError)]
    return failed[0] if failed else ConfigError.exit_status if different else 0


@click.command()
@poem_options
@server_options
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="How many poems to send at once."
)
@click.option("--fallback", is_flag=True, help="Print the original poem if the transform fails.")
def send(
    spec: str,
    poems: PoemOptions,
    options: Mapping[str, object],
    servers: tuple[str, ...],
    timeout: float,
    client: dict[str, Any],
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
      xformd send upper poem.txt --server transforms.internal --tls
      xformd send trim --in-place --recursive poems --encoding latin-1
    """
    from xformd import spec as specs
    from xformd.client import TransformProxy
    from xformd.telemetry import logs

    logs.start()
    built = specs.build(spec, options)
    with isolated_plugin_output() as stdout:
        proxy = TransformProxy(servers, **client)

        def transform(poem: bytes) -> "Deferred[bytes]":
            return proxy.xform(str(built), poem, timeout=timeout)

        @contextlib.asynccontextmanager
        async def there() -> AsyncIterator[tuple[Transform, str]]:
            listed: Mapping[str, Any] = {"transforms": []}
            if poems.output_dir is not None or any(isinstance(value, list) for value in options.values()):
                with contextlib.suppress(XformError):  # an old server has no list; whatever is wrong, poems will tell
                    listed = await proxy.list_transforms(timeout=timeout)
            yield transform, produced(listed, built, options)

        _run_batch(there(), poems, stdout, fallback=fallback, jobs=jobs)


@click.command()
@poem_options
@plugin_options
@setting_options("max_result_bytes", "transform_timeout_s", "worker_memory_bytes")
@click.option("--traceback", is_flag=True, help="Show the traceback of a transform that raises.")
def run(spec: str, poems: PoemOptions, options: Mapping[str, object], settings: "Settings", traceback: bool) -> None:
    """Transform poems without a server.

    \b
    Examples:
      xformd run cummingsify poem.txt
      xformd run --plugins-dir . shout:marks=3 < poem.txt
      xformd run --config /etc/xformd.toml shout poem.txt
      xformd run upper --recursive poems --output-dir out --encoding latin-1
    """
    from xformd import spec as specs
    from xformd.telemetry import logs

    logs.start(*([logs.observer()] if traceback else []))
    parsed = specs.build(spec, options)
    with isolated_plugin_output() as stdout:
        _run_batch(transform_here(settings, parsed, options), poems, stdout, describe=describe_locally)


@contextlib.asynccontextmanager
async def transform_here(
    settings: "Settings", spec: "Spec", options: Mapping[str, object] = MappingProxyType({}), **more: Any
) -> AsyncIterator[tuple[Transform, str]]:
    """Yield what runs a spec in this environment, and the media type of its results."""
    from xformd.plugins import listing
    from xformd.server.reload import local_service

    names = frozenset(step.name for step in spec.steps)
    async with local_service(settings, report_slow, warm_ups=names) as service:
        listed = listing.to_json(service.registry)
        yield functools.partial(service.xform, spec, **more), produced(listed, spec, options)


def produced(listed: Mapping[str, Any], spec: "Spec", options: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return the media type of the last step's results, as far as a listing tells.

    Raises ``BadOptions`` if it tells that an option that is given twice takes no list.
    """
    last: Mapping[str, Any] = next((each for each in listed["transforms"] if each["name"] == spec.last), {})
    for option in last.get("options", ()):
        if isinstance(options.get(option["name"]), list) and not option.get("list"):
            raise BadOptions(f"the option {option['name']!r} is given twice, and takes no list")
    return str(last.get("produces", ""))


def _run_batch(
    prepared: Prepared,
    poems: PoemOptions,
    stdout: TextIO,
    *,
    describe: Callable[[XformError], str] = lambda error: f"{error.code}: {error.message}",
    fallback: bool = False,
    jobs: int = 1,
) -> None:
    """Transform the poems, and exit with the status of the first that failed."""
    from xformd.client import batch
    from xformd.net import run
    from xformd.plugins import media_type

    files = [batch.STDIN if name == "-" else Path(name) for name in poems.files or ("-",)]
    sources = batch.find_files(files, skip=poems.output_dir) if poems.recursive else files
    writes_files = poems.in_place or poems.output_dir is not None
    name_of = batch.mirrored(files) if poems.recursive else attrgetter("name")

    def writer(produces: str) -> Callable[[Path, bytes], None]:
        if poems.in_place:
            return batch.to_files([(source, source) for source in sources], "--in-place", overwrite=True)
        if poems.output_dir is None:
            return batch.to_stream(stdout.buffer)
        targets = [(source, poems.output_dir / media_type.rename(name_of(source), produces)) for source in sources]
        return batch.to_files(targets, f"--output-dir {poems.output_dir}")

    def report(item: "batches.Item[Path]") -> None:
        error = item.error
        where = f"{item.source}: " if len(sources) > 1 or item.poem is None else ""
        if isinstance(error, XformError):
            follows = "; original poem follows" if item.result is not None else ""
            print_error(where + describe(error) + follows)
        elif error is not None:
            target = item.source if poems.in_place else poems.output_dir or "standard output"
            what = "" if item.poem is None else f"cannot write the result to {target}: "
            hint = "; --recursive takes its files" if isinstance(error, IsADirectoryError) and not what else ""
            print_error(f"{where}{what}{error.strerror or error}{hint}")

    # Show a bar where a person waits for it, but never amid results on the same terminal.
    shows_bar = len(sources) > 1 and sys.stderr.isatty() and (writes_files or not stdout.isatty())
    with click.progressbar(length=len(sources), label="poems", file=sys.stderr, hidden=not shows_bar) as bar:

        async def transform_all() -> "batches.Summary":
            async with prepared as (transform, produces):
                return await batch.Batch(
                    fetch=batch.read_file,
                    transform=_recoded(transform, poems),
                    write=writer(produces),
                    report=report,
                    watch=lambda item: bar.update(1) if item.is_done else None,
                    fallback=fallback,
                    jobs=jobs,
                ).run(sources)

        summary = run.run_until_done(transform_all())
    sys.exit(summary.exit_status)


def _recoded(transform: Transform, poems: PoemOptions) -> "Callable[[bytes], Awaitable[bytes]]":
    """Return a transform that takes and returns what is in the files: a server knows UTF-8 alone."""
    from twisted.internet.defer import Deferred

    charset = poems.encoding

    async def convert(poem: bytes) -> bytes:
        text = poem if charset is None else _convert(poem, charset, "utf-8", "this poem")
        result = transform(text.removeprefix(codecs.BOM_UTF8) if poems.strip_bom else text)
        if isinstance(result, Deferred):
            result = await result
        return result if charset is None else _convert(result, "utf-8", charset, "the result")

    return convert


def _convert(data: bytes, from_charset: str, to_charset: str, what: str) -> bytes:
    try:
        return data.decode(from_charset).encode(to_charset)
    except UnicodeError as error:
        raise GibberishError(f"{what}: {error}") from None
