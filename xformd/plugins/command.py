"""Commands as transforms: the tables ``[transform.name]`` of a configuration.

No shell takes part: an option is one argument or a part of one. Invariant: what a caller sends becomes no option of the
program, unless the table allows it.
"""

import contextlib
import os
import resource
import select
import shutil
import signal
import string
import subprocess
import tempfile
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs

from xformd.errors import BadOptions, ConfigError, DefinitionError, GibberishError, TransformFailed
from xformd.limits import Limits, parse_size, parse_timeout
from xformd.plugins import job
from xformd.plugins.definition import Example, Transform
from xformd.plugins.media_type import PLAIN_BYTES, is_utf8, suffix
from xformd.plugins.options import Option
from xformd.plugins.settings import VARIABLE, Table, did_you_mean, make_settings, read_class
from xformd.spec import OptionValue, is_valid_name

FILES = ("poem", "result")  # what stands for a file in an argument, and so is no option
POLL_MS = 50  # until it is noticed that a command has ended, if something that it left holds its output open
MAX_RESULT_BYTES = Limits().max_result_bytes  # in a server without workers, where a job is told of no limit
Argument = tuple[tuple[str, str | None], ...]  # its parts: text, and the name of the value that follows it


def _parse_arguments(value: Any) -> tuple[Argument, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and "\0" not in each for each in value):
        raise ValueError("it takes a list of strings, such as ['pandoc', '--to=docx']")
    try:
        parsed = [[*string.Formatter().parse(each)] for each in value]
    except ValueError as error:
        raise ValueError(f"{error}; {{{{ and }}}} stand for the characters") from None
    names = [name for parts in parsed for _, name, *_ in parts if name is not None]
    if any(rest for parts in parsed for _, _, *rest in parts if any(rest)) or not all(map(is_valid_name, names)):
        raise ValueError("in braces stands the name of an option; for the characters write {{ and }}")
    if not any(value[:1]) or any(name is not None for _, name, *_ in parsed[0]):
        raise ValueError("it begins with the name of a program, which no option can set")
    return tuple(tuple((text, name) for text, name, *_ in parts) for parts in parsed)


def _read_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it takes a table with the default of each option, such as { width = 40 }")
    if taken := {*FILES} & value.keys():
        raise ValueError(f"{min(taken)} stands for a file: call the option something else")
    return {name: each if isinstance(each, dict) else {"default": each} for name, each in value.items()}


def _read_raw(value: Any) -> Any:
    return value


@attrs.frozen
class _Option:
    type: Literal["int", "float", "bool", "str"] | None = None
    default: Annotated[Any, _read_raw] = None
    choices: list[str] = attrs.field(factory=list)
    min: Annotated[Any, _read_raw] = None
    max: Annotated[Any, _read_raw] = None
    help: str = ""
    allow_dash: bool = False

    def make(self, name: str) -> Option:
        bounds = {name: limit for name, limit in (("minimum", self.min), ("maximum", self.max)) if limit is not None}
        default = str(self.default) if self.choices and self.default is not None else self.default
        kind: Any = self.type or ("str" if default is None else type(default).__name__)
        return Option(name, "choice" if self.choices else kind, default, (*self.choices,), self.help, bounds=bounds)


@attrs.frozen
class _Definition:
    """The keys of a table."""

    command: Annotated[tuple[Argument, ...], _parse_arguments]
    options: Annotated[dict[str, Any], _read_options] = attrs.field(factory=dict)
    summary: str = ""
    accepts: list[str] = attrs.field(factory=lambda: [PLAIN_BYTES])
    produces: str = PLAIN_BYTES
    timeout: Annotated[float | None, parse_timeout] = None
    memory: Annotated[int | None, parse_size] = None
    deterministic: bool = False
    gibberish_statuses: list[int] = attrs.field(factory=list)
    examples: Annotated[list[dict[str, Any]], _read_raw] = attrs.field(factory=list)


@attrs.frozen
class Command:
    """Runs a program on a poem: the function of a transform."""

    name: str  # of the transform
    program: str  # its path
    table: _Definition  # what the table says
    options: Mapping[str, Option]  # by their names
    dashes: frozenset[str]  # those whose values may begin with ``-`` where an option of the program could stand

    def __call__(self, poem: str | bytes, **options: OptionValue) -> str | bytes:
        """Run the program in the job's folder; in a server without workers, in one of its own."""
        data = poem.encode() if isinstance(poem, str) else poem
        values = {**{name: option.default for name, option in self.options.items()}, **options}
        if job.in_worker is not None:
            max_result_bytes, max_file_bytes = job.in_worker
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]  # the worker puts the other back after the job
            limits = [each for each in (max_file_bytes, hard) if each != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_FSIZE, (min(limits), hard))
            result = self._run(data, values, Path.cwd(), max_result_bytes)
        else:
            with tempfile.TemporaryDirectory() as folder:
                result = self._run(data, values, Path(folder), MAX_RESULT_BYTES)
        try:
            return result.decode() if is_utf8(self.table.produces) else result
        except UnicodeDecodeError:
            raise TransformFailed(f"the result of {self.name} is not UTF-8") from None

    def _run(self, data: bytes, values: Mapping[str, Any], folder: Path, max_result_bytes: int) -> bytes:
        used = {name for argument in self.table.command for _, name in argument}
        takes_file, makes_file = (name in used for name in FILES)
        poem = job.free_path(folder, "poem", suffix(self.table.accepts[0]))
        result = job.free_path(folder, "result", suffix(self.table.produces))
        arguments = self._fill({**values, "poem": poem, "result": result})
        with poem.open("w+b") if takes_file else tempfile.TemporaryFile(dir=folder) as source:
            source.write(data)
            source.seek(0)
            stdin = subprocess.DEVNULL if takes_file else source.fileno()
            output = self._execute(arguments, stdin, folder, 0 if makes_file else max_result_bytes)
        if makes_file and not os.path.lexists(result):
            raise TransformFailed(f"the command of {self.name} has not written {{result}}")
        return job.read_file(self.name, result, folder, max_result_bytes) if makes_file else output

    def _fill(self, values: Mapping[str, Any]) -> list[bytes]:
        """Return the arguments with these values; raise ``BadOptions`` for one that could be taken for an option."""
        filled = []
        for parts in self.table.command:
            argument = "".join(text + ("" if name is None else _show(values[name])) for text, name in parts)
            for name in self.options.keys() & {name for _, name in takewhile(lambda part: not part[0], parts)}:
                if argument.startswith("-") and name not in self.dashes and values[name] != self.options[name].default:
                    raise BadOptions(f"{self.name}: the value of option {name!r} must not begin with '-'")
            if "\0" in argument:
                raise BadOptions(f"{self.name}: the value of an option must not contain a null character")
            filled.append(argument.encode())
        return filled

    def _execute(self, arguments: list[bytes], stdin: int, folder: Path, max_output_bytes: int) -> bytes:
        """Run the program to its end; return its standard output, or, if it may have none, leave that to the log."""
        try:
            process = subprocess.Popen(
                arguments,
                executable=self.program,
                stdin=stdin,
                stdout=subprocess.PIPE if max_output_bytes else 2,
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not VARIABLE.match(name)},
                start_new_session=True,  # without a terminal to ask at
            )
        except OSError as error:
            raise TransformFailed(f"the command of {self.name} cannot be started: {error.strerror}") from None
        with process:
            try:
                output = self._read(process, max_output_bytes) if max_output_bytes else b""
                status = process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status in self.table.gibberish_statuses:
            raise GibberishError(f"{self.name} rejects this poem: its command ended with exit status {status}")
        if status:
            names = {number.value: number.name for number in signal.Signals}
            how = f"ended with exit status {status}" if status > 0 else f"was killed by {names.get(-status, -status)}"
            raise TransformFailed(f"the command of {self.name} {how}")
        return output

    def _read(self, process: "subprocess.Popen[bytes]", max_bytes: int) -> bytes:
        assert process.stdout is not None
        output, poll = bytearray(), select.poll()
        poll.register(process.stdout, select.POLLIN)
        while len(output) <= max_bytes:
            if poll.poll(POLL_MS):
                if not (data := os.read(process.stdout.fileno(), 65_536)):
                    return bytes(output)
                output += data
            elif process.poll() is not None:
                return bytes(output)
        raise job.too_large(self.name, f"has more than {max_bytes}", max_bytes)


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def make_transform(name: str, table: Table) -> Transform:
    """Make the transform of a table; raise ``ConfigError`` with a line for each mistake in it."""
    definition, _ = make_settings(_Definition, read_class(_Definition), table)
    options: dict[str, Option] = {}
    dashes, mistakes = set(), []
    for option, described in definition.options.items():
        try:
            read, _ = make_settings(_Option, read_class(_Option), Table(described))
            options[option] = read.make(option)
            dashes |= {option} if read.allow_dash or read.choices else set()
        except (ConfigError, DefinitionError) as error:
            lines = getattr(error, "details", ()) or [str(error)]
            mistakes += [table.locate(f"options.{option}", f"option {option!r}: {line}") for line in lines]
    used = {part for argument in definition.command for _, part in argument if part is not None}
    for part in sorted(used - definition.options.keys() - {*FILES}):
        mistakes.append(
            table.locate("command", f"command: no option is called {{{part}}}{did_you_mean(part, options)}")
        )
    for part in options.keys() - used:
        mistakes.append(table.locate(f"options.{part}", f"option {part!r}: no argument of command has {{{part}}}"))
    try:
        if not mistakes:
            return _make_transform(Command(name, _find(definition, table), definition, options, frozenset(dashes)))
    except TypeError:
        mistakes = [
            table.locate("examples", "examples: each has a poem and a result: { poem = 'Owl', result = 'OWL' }")
        ]
    except DefinitionError as error:
        reason = str(error).removeprefix(f"transform {name!r}: ")
        mistakes = [table.locate(reason.partition(" ")[0].rstrip(":"), reason)]
    raise ConfigError("a command is wrong", details=mistakes)


def _find(definition: _Definition, table: Table) -> str:
    """Return the path of a program; a relative one is relative to the configuration."""
    program, path = definition.command[0][0][0], os.environ.get("PATH", os.defpath)
    found = shutil.which(table.path(program) if "/" in program else program, path=path)
    if found is None and "/" in program:
        raise DefinitionError(f"command: there is no program {table.path(program)}")
    if found is None:
        advice = "; there is no shell: write each argument as a string of its own" if " " in program else ""
        raise DefinitionError(f"command: program {program!r} is not installed, or not in PATH{advice}")
    return str(Path(found).absolute())


def _make_transform(command: Command) -> Transform:
    table = command.table
    texts = {"poem": all(map(is_utf8, table.accepts)), "result": is_utf8(table.produces)}

    def encode(name: str, value: Any) -> Any:
        return value.encode() if isinstance(value, str) and not texts.get(name, True) else value

    return Transform(
        command.name,
        command,
        "text" if texts["poem"] else "bytes",
        "text" if texts["result"] else "bytes",
        options=tuple(command.options.values()),
        summary=table.summary,
        examples=tuple(Example(**{name: encode(name, each[name]) for name in each}) for each in table.examples),
        accepts=tuple(table.accepts),
        produces=table.produces,
        timeout_s=table.timeout,
        memory_bytes=table.memory,
        deterministic=table.deterministic,
    )
