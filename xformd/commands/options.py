"""Options and arguments that several commands share."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.shell_completion import CompletionItem

from xformd import __version__
from xformd.config import quantities
from xformd.errors import ConfigError, InternalError, TransformFailed, XformError, one_line
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, tcp_server

if TYPE_CHECKING:
    from xformd.config import Configuration
    from xformd.plugins.selection import Selection

Command = Callable[..., Any]
Selected = Callable[[], "contextlib.AbstractContextManager[Selection]"]
"""What reads which plugins to load, and names the place of what is wrong with that."""

PLUGIN_SETTINGS = ("plugins", "plugins_dir", "block", "prefer", "strict")


@contextlib.contextmanager
def isolated_plugin_output() -> Iterator[TextIO]:
    """Let the code of plugins run, without letting it get in the way of a command.

    What it prints, in Python or straight to file descriptor 1, goes to standard error: standard output carries
    results alone. Ctrl-C ends the process, and is not for a plugin to catch, or to pretend.

    Yields:
        The real standard output, for the results.
    """
    if sys.stdout is None:
        raise ConfigError("standard output is closed: redirect it to a file, or to /dev/null")
    descriptor = os.dup(1)
    os.dup2(2, 1)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    stdout = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")
    # A stream of its own: a plugin that closes its standard output must not close our standard error.
    noise = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    try:
        with contextlib.redirect_stdout(noise):
            yield stdout
    finally:
        signal.signal(signal.SIGINT, handler)
        os.dup2(descriptor, 1)
        for stream in (stdout, noise):
            with contextlib.suppress(OSError):  # what could not be written has been said, or nobody is there to read
                stream.close()


def print_error(message: str, prefix: str = "xformd: ") -> None:
    """Print one line on standard error."""
    click.echo(prefix + one_line(message), err=True)


def describe_locally(error: XformError) -> str:
    """Describe an error in full, for the person who runs the transform in this process.

    A client is not told what a transform raised: that may quote somebody else's poem. Here it is the reader's own.
    """
    line = f"{error.code}: {error.message}"
    if isinstance(error, InternalError):
        return f"{line}; --traceback shows what went wrong"
    if isinstance(error, TransformFailed) and error.detail:
        return one_line(f"{line}: {error.detail}")
    return line


def read_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read an option that is a number of bytes."""
    size = None if value is None else quantities.read_size(value)
    if value is not None and not size:
        raise click.BadParameter(f"{value!r} is no number of bytes above 0, such as 100000 or 10MiB", ctx, param)
    return size


def read_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read an option that is a number of seconds."""
    duration_s = None if value is None else quantities.read_duration(value)
    if value is not None and duration_s is None:
        raise click.BadParameter(f"{value!r} is no number of seconds, such as 0.5, 30 or 5min", ctx, param)
    return duration_s


def read_timeout(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read an option that is a number of seconds above 0."""
    duration_s = read_duration(ctx, param, value)
    if value is not None and not duration_s:
        raise click.BadParameter(f"{value!r} is no number of seconds above 0", ctx, param)
    return duration_s


def listen_option(default_port: int) -> Callable[[Command], Command]:
    """Add the option that says where to listen."""
    return click.option(
        "--listen",
        multiple=True,
        default=[tcp_server(port=default_port)],
        show_default=True,
        metavar="ENDPOINT",
        help="Where to listen: a Twisted server endpoint, such as unix:/run/poem.sock. May be repeated.",
    )


log_format_option = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to write the log: as text, or as JSON, an object on each line.",
)


class _SpecType(click.types.StringParamType):
    """A spec as a person writes it; its transform names complete."""

    name = "spec"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        from xformd.plugins import loader

        done, plus, start = incomplete.rpartition("+")
        with isolated_plugin_output():
            entries = loader.load().entries
        return [
            CompletionItem(f"{done}{plus}{name}", help=entry.transform.summary)
            for name, entry in sorted(entries.items())
            if name.startswith(start)
        ]


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not {param.metavar}", ctx, param)
        if key in pairs:
            raise click.BadParameter(f"{key} is given twice", ctx, param)
        pairs[key] = rest
    return pairs


def plugin_flags(command: Command) -> Command:
    """Add the options that select plugins, each under the name of its setting."""
    for add in (
        click.option(
            "--strict/--no-strict", default=None, help="Refuse to start when a plugin fails or a name is contested."
        ),
        click.option(
            "--prefer",
            multiple=True,
            callback=_pairs,
            metavar="NAME=DISTRIBUTION",
            help="Where several distributions provide a transform, take this one's.",
        ),
        click.option(
            "--block",
            multiple=True,
            metavar="NAME",
            help="Never import this plugin: a distribution, an entry point, or a loose file without .py.",
        ),
        click.option(
            "--plugins-dir",
            multiple=True,
            type=click.Path(),
            metavar="DIR",
            help="Load the *.py files of this folder as plugins too.",
        ),
        click.option(
            "--plugins",
            is_flag=False,
            flag_value="all",
            metavar="SELECTION",
            help="Which installed plugins to load: all (the default), none, or distributions with commas between them.",
        ),
    ):
        command = add(command)
    return command


def config_option(command: Command) -> Command:
    """Add the option that names a file of settings."""
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="XFORMD_CONFIG",
        show_envvar=True,
        metavar="FILE",
        help="Read settings from this TOML file; variables and flags go before it.",
    )(command)


def flags_of(given: Mapping[str, Any]) -> dict[str, tuple[str, object]]:
    """Give the flags that were given, for ``configure``.

    Args:
        given: name of a setting to what click made of its flag, which may be nothing.
    """
    from xformd.config import TABLE

    said = {name: value for name, value in given.items() if value is not None and value not in ((), {})}
    return {name: (TABLE[name].flag, value) for name, value in said.items()}


@contextlib.contextmanager
def configured(
    file: Path | None, flags: Mapping[str, tuple[str, object]], environment: Mapping[str, str] = os.environ
) -> "Iterator[Configuration]":
    """Read the settings, and say of what goes wrong with one of them where it was set.

    Args:
        file: a TOML file, if there is one.
        flags: as for ``configure``.
        environment: the variables that count.

    Yields:
        The settings.

    Raises:
        ConfigError: they cannot be read, or the block raised it.
    """
    from xformd.config import configure

    configuration = configure(file, environment, flags)
    try:
        yield configuration
    except ConfigError as error:
        located = configuration.locate(error)
        if located is error:
            raise
        raise located from error


@contextlib.contextmanager
def only_flags() -> Iterator[None]:
    """Say of what goes wrong with a setting which flag it is, for a command that has nothing else."""
    try:
        yield
    except ConfigError as error:
        if error.setting is None:
            raise
        from xformd.config import TABLE

        raise error.located_at(TABLE[error.setting].flag) from error


def plugin_options(command: Command) -> Command:
    """Add the options that select plugins, and hand the command what reads the ``Selection`` when it is needed.

    Of the environment only the variables of these options count: a command that is no server must not stop at a
    variable of somebody else's. A file is all ours, and checked from end to end.
    """

    @config_option
    @plugin_flags
    @functools.wraps(command)
    def with_selection(file: Path | None, **options: Any) -> Any:
        given = {name: options.pop(name) for name in PLUGIN_SETTINGS}

        @contextlib.contextmanager
        def selected() -> "Iterator[Selection]":
            from xformd.config import TABLE

            variables = {TABLE[name].variable for name in PLUGIN_SETTINGS} & set(os.environ)
            environment = {variable: os.environ[variable] for variable in variables}
            with configured(file, flags_of(given), environment) as configuration:
                yield configuration.settings.selection

        return command(selected=selected, **options)

    return with_selection


def poem_options(command: Command) -> Command:
    """Add what names a transform, its options, the poems and where results go."""

    @click.argument("spec", type=_SpecType())
    @click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
    @click.option(
        "-o",
        "--option",
        "options",
        multiple=True,
        callback=_pairs,
        metavar="KEY=VALUE",
        help="An option of the transform.",
    )
    @click.option(
        "--output-dir",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Write each result to a file of the poem's name in this folder.",
    )
    @functools.wraps(command)
    def with_poems(**options: Any) -> Any:
        return command(**options)

    return with_poems


def address_option(*names: str, help: str) -> Callable[[Command], Command]:  # noqa: A002 - click's word
    """Add the option that names the servers which transform."""
    return click.option(
        *names,
        multiple=True,
        envvar="XFORMD_SERVER",
        show_envvar=True,
        default=[f"{DEFAULT_HOST}:{DEFAULT_PORT}"],
        show_default=True,
        metavar="ADDRESS",
        help=help,
    )


def server_options(command: Command) -> Command:
    """Add what names the servers to ask, and how long to wait for them."""

    @address_option(
        "--server",
        "servers",
        help="HOST:PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock. Several share the work.",
    )
    @click.option(
        "--timeout",
        callback=read_timeout,
        default="60",
        show_default=True,
        metavar="S",
        help="How long to wait for each answer.",
    )
    @functools.wraps(command)
    def with_servers(**options: Any) -> Any:
        return command(**options)

    return with_servers


def listening_lines(addresses: tuple[str, ...]) -> Iterator[str]:
    """Say where a server listens."""
    for address in addresses:
        yield f"xformd {__version__} listening on {address}"
