"""What commands share: options and how their values are read, plugin output, error lines, and running a server.

Invariant: an option that two commands have is declared and read here, once.
"""

import contextlib
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import attrs
import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from xformd import __version__
from xformd.config import TABLE
from xformd.errors import ConfigError, InternalError, NoSuchTransform, XformError, one_line, printable
from xformd.limits import Limits, parse_duration, parse_size, parse_timeout
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, tcp_server, with_host
from xformd.plugins.settings import VARIABLE

if TYPE_CHECKING:
    from xformd.config import Configuration, Settings
    from xformd.net.listener import ListeningService
    from xformd.plugins.registry import Plugin

Command = Callable[..., Any]
Selected = Callable[[], "contextlib.AbstractContextManager[Settings]"]
"""Reads which plugins to load; an error in the block names the file, variable or flag that chose them."""

PLUGIN_SETTINGS = ("plugins", "plugins_dir", "insecure_plugins_dir", "block", "prefer", "strict", "require")
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


class _SpecType(click.types.StringParamType):
    """A spec as a person writes it; the shell can complete its transform names."""

    name = "spec"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        from xformd.commands.plugins import list_here

        done, plus, start = incomplete.rpartition("+")
        given = {name: value for name, value in ctx.params.items() if name in TABLE}
        named = ctx.params.get("file") or os.environ.get("XFORMD_CONFIG")
        file = Path(named) if named else None
        streams = os.dup(1), os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what plugins print would stand on the line that is being typed
        try:
            with (
                isolated_plugin_output(),
                _read_settings(file, given, (*PLUGIN_SETTINGS, "plugin_load_timeout_s")) as settings,
            ):
                selection = attrs.evolve(settings.selection, strict=False, ignore_unknown=True)
                listed = list_here(attrs.evolve(settings, selection=selection))["transforms"]
        except XformError:  # the command itself tells what is wrong
            return []
        finally:
            for number, stream in enumerate(streams, 1):
                os.dup2(stream, number)
        return [
            CompletionItem(f"{done}{plus}{each['name']}", help=each["summary"])
            for each in listed
            if each["name"].startswith(start)
        ]


class _Bash(BashComplete):
    """Completes words with ``:`` and ``=``, which bash breaks into several: it is told only what it replaces."""

    source_template = BashComplete.source_template.replace(
        "COMP_CWORD=$COMP_CWORD", 'COMP_CWORD=$COMP_CWORD COMP_LINE="${COMP_LINE:0:COMP_POINT}"'
    )
    _kept = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ.get("COMP_LINE", "")
        if not line:
            return super().get_completion_args()
        words = split_arg_string(line)
        incomplete = "" if line[-1].isspace() and not line.endswith("\\ ") else words.pop()
        replaced = os.environ["COMP_WORDS"].split("\n")[int(os.environ["COMP_CWORD"])].lstrip(":=")
        if incomplete.endswith(replaced):
            self._kept = incomplete.removesuffix(replaced)
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.type},{item.value.removeprefix(self._kept)}"


add_completion_class(_Bash)


def _values_of(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, list[str]]:
    pairs: dict[str, list[str]] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not {param.metavar}", ctx, param)
        pairs.setdefault(key, []).append(rest)
    return pairs


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = _values_of(ctx, param, values)
    if repeated := [key for key, given in pairs.items() if len(given) > 1]:
        raise click.BadParameter(f"{repeated[0]} is given twice", ctx, param)
    return {key: value for key, (value,) in pairs.items()}


def _options(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str | list[str]]:
    return {key: given if len(given) > 1 else given[0] for key, given in _values_of(ctx, param, values).items()}


def _charset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        " ".encode(value or "utf-8")
    except (LookupError, ValueError):
        raise click.BadParameter(f"no charset {value!r} for text: try latin-1 or utf-16", ctx, param) from None
    return value


# Settings: flags that are settings of a server too.


def config_option(command: Command) -> Command:
    """Add ``--config``."""
    return click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path),
        envvar="XFORMD_CONFIG",
        show_envvar=True,
        metavar="FILE",
        help="Read settings from this TOML file; environment variables and flags override it.",
    )(command)


def setting_option(name: str, metavar: str, **more: Any) -> Callable[[Command], Command]:
    """Return the flag of a setting, which has its purpose as help."""
    setting = TABLE[name]
    default = setting.type.to_toml(setting.default).strip('[]{}"')
    end = (" May be repeated." if more.get("multiple") else "") + (f" [{default}]" if default else "")
    text = setting.purpose if name in LIMIT_SETTINGS else f"{setting.purpose[0].upper()}{setting.purpose[1:]}."
    flags = [name, setting.flag, *(["--drain-delay"] if name == "drain_delay_s" else [])]
    return click.option(*flags, metavar=metavar, help=text + end, **more)


traces_option = setting_option("traces", "[none|otlp]")


def log_options(command: Command) -> Command:
    """Add ``--log-format``, ``--log-level`` and ``--log-file``."""
    add_level = setting_option("log_level", "[debug|info|warn|error]")
    return setting_option("log_format", "[text|json]")(add_level(setting_option("log_file", "[stderr|FILE]")(command)))


reuse_port_option = click.option(
    "--reuse-port/--no-reuse-port", default=None, help="Let several servers of one user listen on the same TCP ports."
)


def plugin_flags(command: Command) -> Command:
    """Add the options that select plugins, each named after its setting."""
    for add in (
        setting_option("require", "REQUIREMENT", multiple=True),
        click.option("--strict/--no-strict", default=None, help="Fail if a plugin is broken or a name is ambiguous."),
        setting_option("prefer", "NAME=DISTRIBUTION", multiple=True, callback=_pairs),
        setting_option("block", "NAME", multiple=True),
        setting_option("insecure_plugins_dir", "DIR", multiple=True, type=click.Path()),
        setting_option("plugins_dir", "DIR", multiple=True, type=click.Path()),
        setting_option("plugins", "SELECTION", is_flag=False, flag_value="all"),
    ):
        command = add(command)
    return command


def limit_options(names: Sequence[str] = LIMIT_SETTINGS) -> Callable[[Command], Command]:
    """Add a flag for each of these limits."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            metavar = {"bytes": "SIZE", "seconds": "DURATION"}.get(TABLE[name].type.unit, "N")
            command = setting_option(name, metavar)(command)
        return command

    return decorate


class LimitsCommand(click.Command):
    """A command whose help shows the limits in a group of their own, after the other options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two groups."""
        limits: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                (limits if param.name in LIMIT_SETTINGS else others).append(record)
        with formatter.section("Options"):
            formatter.write_dl(others)
        with formatter.section("Limits (sizes as 64KiB or 10MiB, durations as 500ms, 30s or 5min)"):
            formatter.write_dl(limits)


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
        @setting_option("tls_certificate", "FILE")
        @setting_option("tls_key", "FILE")
        @setting_option("tls_client_ca", "FILE")
        @setting_option("tls", "[external|all]")
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
                return command(configuration=configuration, **given)

        return config_option(with_configuration) if reads_file else with_configuration

    return decorate


def plugin_options(command: Command) -> Command:
    """Add the options that select plugins, and pass the command ``selected``, which reads them when it is called.

    Every parameter of the command with the name of a setting is read with them.
    """

    @config_option
    @plugin_flags
    @limit_options(("plugin_load_timeout_s",))
    @functools.wraps(command)
    def with_selection(file: Path | None, **options: Any) -> Any:
        given = {name: options.pop(name) for name in set(options) & set(TABLE)}
        return command(selected=functools.partial(_read_settings, file, given, given), **options)

    return with_selection


@contextlib.contextmanager
def _read_settings(file: Path | None, given: Mapping[str, Any], names: Iterable[str]) -> "Iterator[Settings]":
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
) -> "Iterator[Configuration]":
    """Read the settings; a ``ConfigError`` of the block about one of them names where it was set."""
    from xformd.config import configure

    configuration = configure(file, environment, flags)
    try:
        yield configuration
    except ConfigError as error:
        located = configuration.locate(error)
        if located is error:
            raise
        raise located from error


# Poems and servers.


@attrs.frozen
class PoemOptions:
    """Where poems come from, where their results go, and how both are encoded."""

    files: tuple[str, ...]
    output_dir: Path | None
    in_place: bool
    recursive: bool
    encoding: str | None
    strip_bom: bool


def poem_options(command: Command) -> Command:
    """Add the arguments SPEC and FILE..., ``--option``, and what is passed as ``poems``, a ``PoemOptions``."""
    names = [field.name for field in attrs.fields(PoemOptions)]

    @functools.wraps(command)
    def with_poems(**given: Any) -> Any:
        poems = PoemOptions(**{name: given.pop(name) for name in names})
        if poems.in_place and (poems.output_dir or not poems.files or "-" in poems.files):
            raise click.UsageError("--in-place rewrites files: name some, and no --output-dir")
        return command(poems=poems, **given)

    decorated: Command = with_poems
    for add in (
        click.option("--strip-bom", is_flag=True, help="Remove the byte order mark at the start of each poem."),
        click.option(
            "--encoding", callback=_charset, metavar="CHARSET", help="Read and write text in this charset, not UTF-8."
        ),
        click.option("--recursive", is_flag=True, help="Take the files of folders too; mirror them in --output-dir."),
        click.option("--in-place", is_flag=True, help="Write each result over its poem."),
        output_dir_option("Write each result to a file in this folder, named like its poem."),
        click.option(
            "-o",
            "--option",
            "options",
            multiple=True,
            callback=_options,
            metavar="KEY=VALUE",
            help="An option of the transform; may be repeated for the items of a list.",
        ),
        click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path()),
        click.argument("spec", type=_SpecType()),
    ):
        decorated = add(decorated)
    return decorated


def address_option(*names: str, help: str) -> Callable[[Command], Command]:  # noqa: A002 - click's word
    """Add the option that names transform servers."""
    return click.option(
        *names,
        type=with_host,
        multiple=True,
        envvar="XFORMD_SERVER",
        show_envvar=True,
        default=[f"{DEFAULT_HOST}:{DEFAULT_PORT}"],
        show_default=True,
        metavar="ADDRESS",
        help=help,
    )


def quantity_option(name: str, kind: _Quantity, default: str, text: str) -> Callable[[Command], Command]:
    """Add an option that takes a quantity, with a default that its help shows."""
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def timeout_option(text: str) -> Callable[[Command], Command]:
    """Add ``--timeout``, 60 seconds unless given."""
    return quantity_option("--timeout", TIMEOUT, "60", text)


def output_dir_option(text: str) -> Callable[[Command], Command]:
    """Add ``--output-dir``."""
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--output-dir", type=folder, metavar="DIR", help=text)


def _client_options(prefix: str = "") -> Callable[[Command], Command]:
    """Return what adds the options of a client, and passes the command ``client``: keywords for ``TransformProxy``.

    Without a prefix to their names, those of TLS can stand in the environment too.
    """

    def option(flags: str, name: str, variable: str, text: str, **more: Any) -> Callable[[Command], Command]:
        more |= {} if prefix else {"envvar": variable, "show_envvar": True}
        return click.option(flags, name, help=text, **more)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_client(token_file: Path | None, has_tls: bool | None, **given: Any) -> Any:
            from xformd.net.tls import ClientTls

            files = [given.pop(name) for name in ("ca", "own", "key")]
            has_tls = any(files) if has_tls is None else has_tls
            client = {"token": _read_token(token_file), "tls": has_tls and ClientTls(*files)}
            return command(client=client, **given)

        decorated: Command = with_client
        for name, flag, text in (
            ("key", "tls-client-key", "The key of that certificate, if it is in another file."),
            ("own", "tls-client-certificate", "Certificate to show to servers, with its chain and key."),
            ("ca", "tls-ca", "Certificates of those who may issue the servers'. [those that the system trusts]"),
        ):
            variable = "XFORMD_" + flag.upper().replace("-", "_")
            decorated = option(f"--{prefix}{flag}", name, variable, text, metavar="FILE")(decorated)
        text = "Use TLS, and verify the servers' names. The default with one of these files."
        for add in (
            option(f"--{prefix}tls/--no-{prefix}tls", "has_tls", "XFORMD_CLIENT_TLS", text, default=None),
            click.option(
                "--token-file",
                type=click.Path(path_type=Path),
                metavar="FILE",
                help="File with the token that the server knows. [the variable XFORMD_TOKEN]",
            ),
        ):
            decorated = add(decorated)
        return decorated

    return decorate


client_options, upstream_options = _client_options(), _client_options("upstream-")


def _read_token(file: Path | None) -> str | None:
    """Return the token of a file, or else of the environment: all users of a machine can read its command lines."""
    if file is None:
        return os.environ.get("XFORMD_TOKEN") or None
    try:
        return file.read_text().strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: cannot read {file}: {getattr(error, 'strerror', 'it is not text')}") from None


def server_options(command: Command) -> Command:
    """Add ``--server``, ``--timeout`` and the options of a client."""
    add_address = address_option(
        "--server",
        "servers",
        help="HOST:PORT, PORT, or a Twisted client endpoint, such as unix:/run/xformd.sock. Several share the work.",
    )
    return add_address(timeout_option("How long to wait for each answer.")(client_options(command)))


def run_server(
    make: "Callable[[Any], ListeningService]", describe: Callable[[Any], Iterable[str]], settings: "Settings"
) -> None:
    """Run a server until it is stopped. Its greeting has its addresses, and the lines that ``describe`` has for it."""
    from xformd.net import run
    from xformd.telemetry import logs

    context = click.get_current_context()
    if context.obj is not None:  # twistd's: it runs the server itself
        logs.change_server_log(settings.log_format, settings.log_file, settings.log_level)
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
            raise
