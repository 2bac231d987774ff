"""What commands share: flags of settings and how values are read, plugin output, error lines, and running a server.

Invariant: an option that two commands have is declared and read here, once.
"""

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click

from xformd import __version__
from xformd.config import TABLE, Configuration, Settings, configure
from xformd.config.types import BOOLEAN, FOLDERS
from xformd.errors import ConfigError, InternalError, NoSuchTransform, XformError, one_line, printable
from xformd.limits import Limits, parse_duration, parse_size, parse_timeout
from xformd.net.defaults import DEFAULT_HOST, tcp_server
from xformd.plugins.settings import VARIABLE

if TYPE_CHECKING:
    from xformd.config.settings import Setting
    from xformd.net.listener import ListeningService
    from xformd.plugins.registry import Plugin

Command = Callable[..., Any]

PLUGIN_SETTINGS = ("plugins", "plugins_dir", "insecure_plugins_dir", "block", "prefer", "strict", "require")
TLS_SETTINGS = ("tls_certificate", "tls_key", "tls_client_ca", "tls")
LOCATE = "xformd.locate"  # of a command's context: finds the place of a setting with an error
LIMIT_SETTINGS = tuple(field.name for field in attrs.fields(Limits))


@contextlib.contextmanager
def isolated_plugin_output() -> Iterator[TextIO]:
    """Keep the code of plugins from interfering with a command.

    What it prints goes to standard error, also after the block: what was left in a buffer, and threads, come later.
    Ctrl-C ends the process; a plugin can neither catch nor fake it.

    Yields:
        The real standard output, for results.
    """
    descriptor = os.dup(1)
    os.dup2(2, 1)
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    stdout = os.fdopen(descriptor, "w", encoding="utf-8", errors="replace")
    # A separate stream: a plugin that closes its standard output must not close our standard error.
    noise = _error_stream(os.dup(2))
    try:
        with contextlib.redirect_stdout(noise):
            yield stdout
    finally:
        signal.signal(signal.SIGINT, handler)
        for stream in (stdout, noise):
            with contextlib.suppress(OSError):  # a failed write has been reported, or nobody is left to read it
                stream.close()


class _BestEffort(io.FileIO):
    """A file that drops what it cannot take."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _error_stream(descriptor: int) -> TextIO:
    buffer = io.BufferedWriter(_BestEffort(descriptor, "w", closefd=descriptor != 2))
    return io.TextIOWrapper(buffer, errors="backslashreplace", line_buffering=True)


def open_standard_streams() -> None:
    """Let a closed or full standard error fail nothing, and let no other file get the number of a closed stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stderr = sys.__stderr__ = _error_stream(2)  # type: ignore[misc, assignment]  # plugins use either


def print_line(line: str, file: TextIO | None = None) -> None:
    """Print a line for a person. Names in it come from files, plugins and servers: no terminal may heed them."""
    click.echo(printable(line), file=file)


def print_error(message: str, prefix: str = "xformd: ") -> None:
    """Print one line on standard error."""
    print_line(prefix + one_line(message), sys.stderr)


def describe_locally(error: XformError) -> str:
    """Describe an error in full: unlike a server's client, the person who runs the transform may see what it raised."""
    # A server's clients are not told why a plugin has failed, and its log is.
    line = f"{error.code}: {error.log_message if isinstance(error, NoSuchTransform) else error.message}"
    return f"{line}; --traceback shows what went wrong" if isinstance(error, InternalError) else line


def report_slow(plugin: "Plugin") -> None:
    """Tell the person who waits which plugin takes long to be loaded, or to warm up."""
    print_error(f"still {plugin.progress} plugin {plugin.label}")


# Values.


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # a generic class only in newer versions of click
    """A number with a unit; the help of an option shows its name in capitals."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Quantity("size", parse_size)
DURATION = _Quantity("duration", parse_duration)
TIMEOUT = _Quantity("duration", parse_timeout)


# Settings: flags that are settings of a server too.


def config_option(text: str, **more: Any) -> Callable[[Command], Command]:
    """Add ``--config``."""
    return click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help=text, **more)


_add_config = config_option(
    "Read settings from this TOML file; environment variables and flags override it.",
    envvar="XFORMD_CONFIG",
    show_envvar=True,
)


def setting_options(*names: str) -> Callable[[Command], Command]:
    """Return what adds the flags of settings, each with its purpose as help."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _add_flag(TABLE[name], command)
        return command

    return decorate


def _add_flag(setting: "Setting", command: Command) -> Command:
    name, flag, type_ = setting.name, setting.flag, setting.type
    text = f"{setting.purpose[0].upper()}{setting.purpose[1:]}."
    if type_ is BOOLEAN:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)(command)
    default = type_.to_toml(setting.default).strip('[]{}"')
    text += " May be repeated." * type_.is_repeated + (f" [{default}]" if default else "")
    more: dict[str, Any] = {"multiple": type_.is_repeated, "metavar": type_.metavar, "help": text}
    if name == "plugins":
        more |= {"is_flag": False, "flag_value": "all"}
    elif type_ is FOLDERS:
        more["type"] = click.Path()
    # click makes another name of a flag that ends with _s.
    return click.option(name, flag, *(["--drain-delay"] if name == "drain_delay_s" else []), **more)(command)


log_options = setting_options("log_format", "log_level", "log_file")


def configuration_options(default_port: int, *, reads_file: bool = True) -> Callable[[Command], Command]:
    """Add ``--host``, ``--port``, ``--listen`` and those of TLS, and pass the command its flags as a ``configuration``.

    Every parameter of the command with the name of a setting is one: the flags below this decorator. A file
    (``--config``) and the environment count too if it ``reads_file``.
    """

    def decorate(command: Command) -> Command:
        @click.option("--host", help=f"Address of the interface to listen on. [{DEFAULT_HOST}]")
        @click.option(
            "--port",
            type=click.IntRange(0, 65535),
            metavar="PORT",
            help=f"TCP port to listen on; 0 takes a free one. [{default_port}]",
        )
        @click.option(
            "--listen",
            multiple=True,
            metavar="ENDPOINT",
            help="Where to listen: a Twisted server endpoint, such as unix:/run/xformd.sock, or a port on 127.0.0.1. "
            "May be repeated.",
        )
        @setting_options(*TLS_SETTINGS)
        @functools.wraps(command)
        def with_configuration(host: str | None, port: int | None, file: Path | None = None, **given: Any) -> Any:
            flags = _given_flags({name: given.pop(name) for name in set(given) & set(TABLE)})
            endpoint = tcp_server(host or DEFAULT_HOST, default_port if port is None else port)
            if host is not None or port is not None:
                flag = "--host" if port is None else "--port"
                _, listen = flags.get("listen", ("", ()))
                flags["listen"] = (f"{flag} and --listen" if listen else flag, (endpoint, *listen))
            elif not reads_file:
                flags.setdefault("listen", ("--listen", (endpoint,)))
            with configured(file, flags, os.environ if reads_file else {}) as configuration:
                click.get_current_context().meta[LOCATE] = configuration.locate
                return command(configuration=configuration, **given)

        return _add_config(with_configuration) if reads_file else with_configuration

    return decorate


def plugin_options(command: Command) -> Command:
    """Add the options that select plugins, and pass the command the ``settings`` with them.

    Every parameter of the command with the name of a setting is one of them.
    """

    @_add_config
    @setting_options(*PLUGIN_SETTINGS, "plugin_load_timeout_s")
    @functools.wraps(command)
    def with_selection(file: Path | None, **options: Any) -> Any:
        given = {name: options.pop(name) for name in set(options) & set(TABLE)}
        if options.get("server") is not None:  # which has settings of its own
            return command(settings=Settings(), **options)
        with read_settings(file, given, given) as settings:
            return command(settings=settings, **options)

    return with_selection


@contextlib.contextmanager
def read_settings(file: Path | None, given: Mapping[str, Any], names: Iterable[str]) -> Iterator[Settings]:
    """Read settings for a command that is no server.

    Of the environment only the variables of these names count, and those of plugins: it must not fail because of
    another. A file is read and checked as a whole.
    """
    variables = {TABLE[name].variable for name in names} & set(os.environ) | {*filter(VARIABLE.match, os.environ)}
    environment = {variable: os.environ[variable] for variable in variables}
    with configured(file, _given_flags(given), environment) as configuration:
        yield configuration.settings


def _given_flags(values: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Return, for each setting whose flag was given, the flag and its value."""
    given = {name: value for name, value in values.items() if value is not None and value not in ((), {})}
    return {name: (TABLE[name].flag, value) for name, value in given.items()}


@contextlib.contextmanager
def configured(
    file: Path | None, flags: Mapping[str, tuple[str, object]], environment: Mapping[str, str]
) -> Iterator[Configuration]:
    """Read the settings; a ``ConfigError`` of the block about one of them names where it was set."""
    configuration = configure(file, environment, flags)
    try:
        yield configuration
    except ConfigError as error:
        located = configuration.locate(error)
        if located is error:
            raise
        raise located from error


def quantity_option(name: str, kind: _Quantity, default: str, text: str) -> Callable[[Command], Command]:
    """Add an option that takes a quantity, with a default that its help shows."""
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def timeout_option(text: str) -> Callable[[Command], Command]:
    """Add ``--timeout``, 60 seconds unless given."""
    return quantity_option("--timeout", TIMEOUT, "60", text)


def run_server(
    make: "Callable[[Any], ListeningService]", describe: Callable[[Any], Iterable[str]], settings: Settings
) -> None:
    """Run a server until it is stopped. Its greeting has its addresses, and the lines that ``describe`` has for it."""
    from xformd.net import run
    from xformd.telemetry import logs

    context = click.get_current_context()
    if context.obj is not None:  # twistd's: it runs the server itself
        logs.join_twistd(settings.log_format, settings.log_file, settings.log_level)
        context.obj(make)
        return

    def greet(server: Any, addresses: tuple[str, ...]) -> list[str]:
        return [*(f"xformd {__version__} listening on {address}" for address in addresses), *describe(server)]

    with isolated_plugin_output() as stdout:
        terminal = sys.stderr
        # Here, as the log has what plugins print from now on.
        run.prepare_to_serve(settings.log_format, settings.log_file, settings.log_level)
        context.find_root().call_on_close(logs.stop)  # which writes what is left of it
        try:
            run.run_server(make, greet, functools.partial(print_line, file=stdout))
        except XformError as error:
            if settings.log_file != TABLE["log_file"].default:  # who starts it looks here, and not into a file
                for line in (*getattr(error, "details", ()), f"{error.code}: {error.message}"):
                    print_line(f"xformd: {one_line(line)}", terminal)
            elif settings.log_format == "text":
                logs.stop()  # so that this comes last
                sys.stderr = terminal  # why it does not start is for who starts it, and no line of the log
            raise
