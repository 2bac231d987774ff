"""Many poems, one after the other: where they come from, where results go, and what is said of those that fail.

One poem that fails never stops the rest, and a result is delivered whole or not at all.
"""

import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import attrs

from xformd.errors import ConfigError, XformError

STDIN = Path("-")

READ_FAILED = 66  # EX_NOINPUT
WRITE_FAILED = 73  # EX_CANTCREAT


def explain(error: XformError) -> str:
    """Say what went wrong, for one line."""
    return f"{error.code}: {error.message}"


class Sink(Protocol):
    """Where results go, in the order of the poems."""

    def write(self, source: Path, result: bytes) -> None:
        """Deliver the result for one poem, whole or not at all. May raise ``OSError``."""
        ...


@attrs.frozen(kw_only=True)
class Batch:
    """What to do with each poem.

    Args:
        transform: gives the result for a poem, or raises an ``XformError``.
        complain: is told, on one line, of what fails.
        explain: says what went wrong.
        fallback: whether to deliver the original poem where the transform fails.
    """

    transform: Callable[[bytes], Awaitable[bytes]]
    complain: Callable[[str], None]
    explain: Callable[[XformError], str] = explain
    fallback: bool = False

    async def run(self, sources: Iterable[Path], sink: Sink, *, name_them: bool) -> int:
        """Transform poems.

        Args:
            sources: files, or ``-`` for standard input.
            sink: where results go.
            name_them: whether complaints say which poem they are about.

        Returns:
            0, or the exit status of the first failure.
        """
        status = 0
        for source in sources:
            failed = await self._transform_one(source, sink, f"{source}: " if name_them else "")
            status = status or failed
        return status

    async def _transform_one(self, source: Path, sink: Sink, where: str) -> int:
        try:
            poem = _read(source)
        except OSError as error:
            self.complain(f"{source}: {error.strerror}")
            return READ_FAILED
        try:
            result = await self.transform(poem)
        except XformError as error:
            if not self.fallback:
                self.complain(where + self.explain(error))
                return error.exit_status
            self.complain(f"{where}{self.explain(error)}; original poem follows")
            result = poem
        try:
            sink.write(source, result)
        except BrokenPipeError:
            raise  # nobody reads any more: there is no rest to go on with
        except OSError as error:
            self.complain(f"{where}cannot write the result: {error.strerror}")
            return WRITE_FAILED
        return 0


def _read(source: Path) -> bytes:
    if source != STDIN:
        return source.read_bytes()
    if sys.stdin.isatty():
        print("type the poem; end it with Ctrl-D on a line of its own", file=sys.stderr)
    return sys.stdin.buffer.read()


class Stream:
    """Results one after the other.

    Args:
        stream: standard output.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, source: Path, result: bytes) -> None:  # noqa: ARG002 - one stream for all
        """Write a result."""
        self._stream.write(result)
        self._stream.flush()


class Folder:
    """Each result in a file of its own, with the name of its poem's file.

    Args:
        directory: where; it is made when the first result is there.
        sources: all poems, whose names must differ.

    Raises:
        ConfigError: two results would have one name, or a result would overwrite its poem.
    """

    def __init__(self, directory: Path, sources: Sequence[Path]) -> None:
        self._directory = directory
        seen: dict[str, Path] = {}
        for source in sources:
            name = self._name(source)
            if name in seen:
                raise ConfigError(f"--output-dir {directory}: {seen[name]} and {source} would both become {name}")
            seen[name] = source
            if (directory / name).resolve() == source.resolve():
                raise ConfigError(f"--output-dir {directory}: the result would overwrite {source}")

    def write(self, source: Path, result: bytes) -> None:
        """Write a result. Nobody ever sees half of one: the file appears when it is whole."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self._directory, prefix=".xformd-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(result)
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(self._directory / self._name(source))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @staticmethod
    def _name(source: Path) -> str:
        return "stdin" if source == STDIN else source.name


def _umask() -> int:
    umask = os.umask(0)  # the only way to read it is to set it
    os.umask(umask)
    return umask
