"""Many poems, several at once and delivered in order: where they come from, and where results and complaints go.

One poem that fails never stops the rest, and a result is delivered whole or not at all.
"""

import errno
import itertools
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import attrs
from twisted.internet.defer import Deferred

from xformd.client.files import WRITE_FAILED, write_whole
from xformd.errors import ConfigError, XformError

STDIN = Path("-")

READ_FAILED = 66  # EX_NOINPUT


def explain(error: XformError) -> str:
    """Say what went wrong, for one line."""
    return f"{error.code}: {error.message}"


class Sink(Protocol):
    """Where results go, in the order of the poems."""

    def write(self, source: Path, result: bytes) -> None:
        """Deliver the result for one poem, whole or not at all. May raise ``OSError``."""
        ...


@attrs.frozen
class _Outcome:
    """What became of one poem: a result to deliver, something to complain of, or both."""

    source: Path
    result: bytes | None = None
    complaint: str = ""
    status: int = 0
    names_file: bool = False  # the complaint is about the file, and means nothing without its name


@attrs.frozen(kw_only=True)
class Batch:
    """What to do with each poem.

    Args:
        transform: gives the result for a poem, or raises an ``XformError``.
        complain: is told, on one line, of what fails.
        explain: says what went wrong.
        fallback: whether to deliver the original poem where the transform fails.
        jobs: how many poems to transform at once.
    """

    transform: Callable[[bytes], Coroutine[Deferred[Any], Any, bytes]]
    complain: Callable[[str], None]
    explain: Callable[[XformError], str] = explain
    fallback: bool = False
    jobs: int = 1

    async def run(self, sources: Sequence[Path], sink: Sink, progressed: Callable[[], None]) -> int:
        """Transform poems, and deliver their results in order.

        Args:
            sources: files, or ``-`` for standard input.
            sink: where results go.
            progressed: is called after each poem.

        Returns:
            0, or the exit status of the first failure.
        """
        status = 0
        started: deque[Deferred[_Outcome]] = deque()
        remaining = iter(sources)
        while True:
            for source in itertools.islice(remaining, self.jobs - len(started)):
                started.append(Deferred.fromCoroutine(self._transform_one(source)))
            if not started:
                return status
            failed = self._deliver(await started.popleft(), sink, name_it=len(sources) > 1)
            status = status or failed
            progressed()

    async def _transform_one(self, source: Path) -> _Outcome:
        try:
            poem = _read(source)
        except OSError as error:
            return _Outcome(source, None, error.strerror or str(error), READ_FAILED, names_file=True)
        try:
            return _Outcome(source, await self.transform(poem))
        except XformError as error:
            if self.fallback:
                return _Outcome(source, poem, f"{self.explain(error)}; original poem follows")
            return _Outcome(source, None, self.explain(error), error.exit_status)

    def _deliver(self, outcome: _Outcome, sink: Sink, *, name_it: bool) -> int:
        where = f"{outcome.source}: " if name_it or outcome.names_file else ""
        if outcome.complaint:
            self.complain(where + outcome.complaint)
        if outcome.result is None:
            return outcome.status
        try:
            sink.write(outcome.source, outcome.result)
        except BrokenPipeError:
            raise  # nobody reads any more: there is no rest to go on with
        except OSError as error:
            self.complain(f"{where}cannot write the result: {error.strerror}")
            return WRITE_FAILED
        return outcome.status


def _read(source: Path) -> bytes:
    if source != STDIN:
        return source.read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
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
            if _is_same(directory / name, source):
                raise ConfigError(f"--output-dir {directory}: the result would overwrite {source}")

    def write(self, source: Path, result: bytes) -> None:
        """Write a result. Nobody ever sees half of one: the file appears when it is whole."""
        write_whole(self._directory / self._name(source), result)

    @staticmethod
    def _name(source: Path) -> str:
        return "stdin" if source == STDIN else source.name


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there, or cannot be reached: reading or writing it will say so
        return False
