"""The options of commands that send poems: what is sent, to which servers, and who the sender is."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

from xformd.commands.options import (
    PLUGIN_SETTINGS,
    Command,
    isolated_plugin_output,
    read_settings,
    timeout_option,
)
from xformd.config import TABLE
from xformd.errors import ConfigError, XformError
from xformd.net.defaults import DEFAULT_HOST, DEFAULT_PORT, with_host


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
                read_settings(file, given, (*PLUGIN_SETTINGS, "plugin_load_timeout_s")) as settings,
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


def _options(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str | list[str]]:
    pairs: dict[str, list[str]] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not {param.metavar}", ctx, param)
        pairs.setdefault(key, []).append(rest)
    return {key: given if len(given) > 1 else given[0] for key, given in pairs.items()}


def _charset(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        " ".encode(value or "utf-8")
    except (LookupError, ValueError):
        raise click.BadParameter(f"no charset {value!r} for text: try latin-1 or utf-16", ctx, param) from None
    return value


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

    @click.argument("spec", type=_SpecType())
    @click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path())
    @click.option(
        "-o",
        "--option",
        "options",
        multiple=True,
        callback=_options,
        metavar="KEY=VALUE",
        help="An option of the transform; may be repeated for the items of a list.",
    )
    @output_dir_option("Write each result to a file in this folder, named like its poem.")
    @click.option("--in-place", is_flag=True, help="Write each result over its poem.")
    @click.option("--recursive", is_flag=True, help="Take the files of folders too; mirror them in --output-dir.")
    @click.option(
        "--encoding", callback=_charset, metavar="CHARSET", help="Read and write text in this charset, not UTF-8."
    )
    @click.option("--strip-bom", is_flag=True, help="Remove the byte order mark at the start of each poem.")
    @functools.wraps(command)
    def with_poems(**given: Any) -> Any:
        poems = PoemOptions(**{name: given.pop(name) for name in names})
        if poems.in_place and (poems.output_dir or not poems.files or "-" in poems.files):
            raise click.UsageError("--in-place rewrites files: name some, and no --output-dir")
        return command(poems=poems, **given)

    return with_poems


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


def output_dir_option(text: str) -> Callable[[Command], Command]:
    """Add ``--output-dir``."""
    folder = click.Path(file_okay=False, path_type=Path)
    return click.option("--output-dir", type=folder, metavar="DIR", help=text)


def _client_options(prefix: str = "") -> Callable[[Command], Command]:
    """Return what adds the options of a client, and passes the command ``client``: keywords for ``TransformProxy``.

    Without a prefix to their names, those of TLS can stand in the environment too.
    """

    def option(
        flags: str, name: str, variable: str, text: str, metavar: str | None = "FILE"
    ) -> Callable[[Command], Command]:
        environment: dict[str, Any] = {} if prefix else {"envvar": variable, "show_envvar": True}
        return click.option(flags, name, default=None, metavar=metavar, help=text, **environment)

    use = "Use TLS, and verify the servers' names. The default with one of these files."
    ca = "Certificates of those who may issue the servers'. [those that the system trusts]"
    own, key = f"--{prefix}tls-client-certificate", f"--{prefix}tls-client-key"

    def decorate(command: Command) -> Command:
        @click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File with the token that the server knows. [the variable XFORMD_TOKEN]",
        )
        @option(f"--{prefix}tls/--no-{prefix}tls", "has_tls", "XFORMD_CLIENT_TLS", use, None)
        @option(f"--{prefix}tls-ca", "ca", "XFORMD_TLS_CA", ca)
        @option(own, "own", "XFORMD_TLS_CLIENT_CERTIFICATE", "Certificate to show to servers, with its chain and key.")
        @option(key, "key", "XFORMD_TLS_CLIENT_KEY", "The key of that certificate, if it is in another file.")
        @functools.wraps(command)
        def with_client(token_file: Path | None, has_tls: bool | None, **given: Any) -> Any:
            from xformd.net.tls import ClientTls

            files = [given.pop(name) for name in ("ca", "own", "key")]
            has_tls = any(files) if has_tls is None else has_tls
            client = {"token": _read_token(token_file), "tls": has_tls and ClientTls(*files)}
            return command(client=client, **given)

        return with_client

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
