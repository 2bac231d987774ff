"""Many inputs, several at once: fetch each, transform it, and write the result.

Invariant: a failure never stops the rest, and a result is written whole or not at all.
"""

import contextlib
import errno
import itertools
import os
import secrets
import stat
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredQueue, maybeDeferred
from twisted.python.failure import Failure

from xformd.errors import ConfigError, XformError

STDIN = Path("/dev/stdin")  # standard input, ``-`` on a command line; a file may have that name too
READ_FAILED = 66  # the exit status of a command that cannot read its input: EX_NOINPUT
WRITE_FAILED = 73  # the exit status of a command that cannot write its output: EX_CANTCREAT

Source = TypeVar("Source")
Value = TypeVar("Value")


@attrs.frozen(kw_only=True)
class Item(Generic[Source]):
    """One input on its way."""

    source: Source
    poem: bytes | None = None  # None if nothing was fetched, or not yet
    result: bytes | None = None  # None if there is nothing to write, or not yet; beside an error, the original poem
    error: XformError | OSError | None = None

    @property
    def is_done(self) -> bool:
        """Whether all that is left is to write it."""
        return self.result is not None or self.error is not None

    @property
    def exit_status(self) -> int:
        """The exit status of a command that had only this input, and wrote no result."""
        if isinstance(self.error, XformError):
            return self.error.exit_status
        return READ_FAILED if self.poem is None else WRITE_FAILED


@attrs.define
class Summary:
    """What became of a batch."""

    written: int = 0  # results, original poems included
    failed: int = 0  # inputs with an error, including those whose original poem was written
    exit_status: int = 0  # of the first input without a result; 0 if all have one


@attrs.frozen(kw_only=True)
class Batch(Generic[Source]):
    """What to do with each input. The functions that take a source or a poem may be asynchronous.

    Args:
        fetch: returns the poem of a source, or raises ``XformError`` or ``OSError``.
        transform: returns the result for a poem, or raises ``XformError``; None to write poems as they are.
        write: writes a result, whole or not at all, or raises ``OSError``.
        report: is called with each item that has an error, before its original poem is written if that follows.
        watch: is called with each item when it has been fetched, and when it is done.
        fallback: whether to write the original poem if the transform fails.
        jobs: how many inputs to work on at once; all of them if None.
        ordered: whether results are written in the order of the sources, not as they arrive.
    """

    fetch: Callable[[Source], bytes | Awaitable[bytes]]
    transform: Callable[[bytes], bytes | Awaitable[bytes]] | None
    write: Callable[[Source, bytes], Awaitable[None] | None]
    report: Callable[[Item[Source]], None]
    watch: Callable[[Item[Source]], None]
    fallback: bool = False
    jobs: int | None = None
    ordered: bool = True

    async def run(self, sources: Sequence[Source]) -> Summary:
        """Process the inputs; raise ``BrokenPipeError`` if nobody reads the output any more."""
        summary = Summary()
        jobs = min(self.jobs or len(sources), len(sources))
        remaining = iter(sources)
        running: deque[Deferred[Item[Source]]] = deque()
        arrived: DeferredQueue[tuple[Item[Source] | Failure]] = DeferredQueue()  # a bare Failure would be its errback
        while True:
            for source in itertools.islice(remaining, jobs - len(running)):
                running.append(Deferred.fromCoroutine(self._process(source)))
                if not self.ordered:
                    running[-1].addBoth(lambda outcome: arrived.put((outcome,)))
            if not running:
                return summary
            item: Item[Source] | Failure
            if self.ordered:
                item = await running.popleft()
            else:
                running.pop()  # any will do: it is their number that counts
                (item,) = await arrived.get()
            if isinstance(item, Failure):
                item.raiseException()
            await self._deliver(item, summary)

    async def _process(self, source: Source) -> Item[Source]:
        item = await self._transform(await self._fetch(source))
        self.watch(item)
        return item

    async def _fetch(self, source: Source) -> Item[Source]:
        try:
            return Item(source=source, poem=await _call(self.fetch, source))
        except (XformError, OSError) as error:
            return Item(source=source, error=error)

    async def _transform(self, item: Item[Source]) -> Item[Source]:
        if item.poem is None or self.transform is None:
            return attrs.evolve(item, result=item.poem)
        self.watch(item)
        try:
            return attrs.evolve(item, result=await _call(self.transform, item.poem))
        except XformError as error:
            return attrs.evolve(item, result=item.poem if self.fallback else None, error=error)

    async def _deliver(self, item: Item[Source], summary: Summary) -> None:
        if item.error is not None:
            self.report(item)
        if item.result is not None:
            try:
                await _call(self.write, item.source, item.result)
                summary.written += 1
            except BrokenPipeError:
                raise  # nobody reads any more: there is no rest to go on with
            except OSError as error:
                item = attrs.evolve(item, result=None, error=error)
                self.report(item)
        summary.failed += item.error is not None
        if item.result is None:
            summary.exit_status = summary.exit_status or item.exit_status


def _call(function: Callable[..., Value | Awaitable[Value]], *arguments: Any) -> Deferred[Value]:
    either: Callable[..., Any] = function  # mypy finds no overload for what may be either
    return maybeDeferred(either, *arguments)


def read_file(source: Path) -> bytes:
    """Return the content of a file, or of standard input."""
    if source != STDIN:
        return source.read_bytes()
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    if sys.stdin.isatty():
        print("type the poem; end it with Ctrl-D on a line of its own", file=sys.stderr)
    return sys.stdin.buffer.read()


def find_files(arguments: Iterable[Path], skip: Path | None = None) -> list[Path]:
    """Return the files, and for each folder those below it, sorted, but nothing hidden, no links and nothing special.

    A folder that cannot be listed is returned itself, and reading it fails; the one to ``skip`` is that of the results.
    """
    found: list[Path] = []
    left_out = skip and skip.absolute()

    def note(error: OSError) -> None:
        found.append(Path(error.filename))

    for argument in arguments:
        if argument == STDIN or not argument.is_dir():
            found.append(argument)
            continue
        for folder, folders, files in os.walk(argument, onerror=note):
            visible = [Path(folder, name) for name in sorted([*folders, *files]) if not name.startswith(".")]
            folders[:] = [path.name for path in visible if path.is_dir() and path.absolute() != left_out]
            found += [path for path in visible if path.is_file() and not path.is_symlink()]
    return found


def mirrored(arguments: Iterable[Path]) -> Callable[[Path], str]:
    """Return what names the file for a source's result, in the folders below the one that all arguments share."""
    folders = [path.absolute() if path.is_dir() else path.absolute().parent for path in arguments if path != STDIN]
    common = os.path.commonpath(folders or [STDIN.parent])
    return lambda source: os.path.relpath(source.absolute(), STDIN.parent if source == STDIN else common)


def to_stream(stream: BinaryIO) -> Callable[[Any, bytes], None]:
    """Write results to a stream, one after the other."""

    def write(source: object, result: bytes) -> None:  # noqa: ARG001 - one stream for all
        stream.write(result)
        stream.flush()

    return write


def to_files(
    targets: Sequence[tuple[Source, Path]], flag: str, *, overwrite: bool = False
) -> Callable[[Source, bytes], None]:
    """Write each result to the file that goes with its source.

    Raises ``ConfigError``, naming the flag, if two results would go to one file, or one would overwrite an input
    unasked.
    """
    inputs = {_identity(source): source for source, _ in targets if isinstance(source, Path)}
    seen: dict[object, Source] = {}
    for source, target in targets:
        identity = _identity(target)
        if identity in seen:
            other = seen[identity]
            are_apart = isinstance(source, Path) and isinstance(other, Path) and source.parent != other.parent
            advice = "; --recursive keeps their folders" if are_apart and not overwrite else ""
            raise ConfigError(f"{flag}: {other} and {source} would both become {target}{advice}")
        if identity in inputs and not overwrite:
            raise ConfigError(f"{flag}: the result would overwrite {inputs[identity]}")
        seen[identity] = source
    files = dict(targets)
    return lambda source, result: write_whole(files[source], result)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears only when it is complete. Its folder is created if missing.

    A symbolic link is followed, and a file that was there keeps its mode and owner. A device or pipe is written to.
    After an ``OSError`` what was there before is unchanged.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before.st_mode):
        path.write_bytes(content)
        return
    if before is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    temporary = path.with_name(f".xformd-{secrets.token_hex(8)}")
    try:
        with _open_nameless(temporary) as file:  # the system applies the umask
            file.write(content)
            if before is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
            file.flush()
            if not temporary.exists():
                # With a descriptor for its folder, which is not needed, Python makes the call that follows the link.
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_nameless(path: Path) -> BinaryIO:
    """Open a file that is gone if the process is killed before it is given this name, where the system can do that."""
    try:
        return open(os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")  # noqa: PTH123 - it has no path
    except (AttributeError, OSError):
        return path.open("xb")


def _identity(path: Path) -> object:
    """Return what two names of one file have in common."""
    try:
        found = path.stat()
    except OSError:  # it is missing or cannot be reached: reading or writing it will report that
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
