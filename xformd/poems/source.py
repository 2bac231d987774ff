"""Poems as they lie in memory or on disk, cut off from what happens to their file.

The law: whoever began to read a poem reads that one to its end. A file is copied once for all its readers, a large one
to a file without a name, so that they share it and hold nothing of it in memory.
"""

import os
import shutil
import stat
import tempfile
import time
import weakref
from pathlib import Path
from typing import BinaryIO, Protocol

import attrs
from twisted.logger import Logger

MEMORY_MAX_BYTES = 1024 * 1024
"""Of a poem that is kept in memory: below this, a file descriptor is worth more."""

RACY_NS = 50_000_000
"""A file that changed less than this before it was read may change again without a sign: file times come in ticks."""


class Poem(Protocol):
    """A poem that never changes."""

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        ...

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Give a part of it."""
        ...


@attrs.frozen
class MemoryPoem:
    """A poem in memory.

    Args:
        content: the whole of it.
    """

    content: bytes

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return len(self.content)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Give a part of it."""
        return self.content[offset : offset + size_bytes]


@attrs.frozen
class DiskPoem:
    """A poem in a file that has no name, and that ends with the last who reads it.

    Args:
        descriptor: of the file; nobody writes to it.
        size_bytes: how long it is.
    """

    descriptor: int
    size_bytes: int

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Give a part of it."""
        return os.pread(self.descriptor, size_bytes, offset)


class Unreadable(Exception):
    """There is no whole poem in a file; it says why."""


@attrs.frozen
class Fingerprint:
    """What differs when a file has changed."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Fingerprint":
        """Take it."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_racy(self, now_ns: int) -> bool:
        """Whether the file may yet change without a difference."""
        return now_ns - max(self.mtime_ns, self.ctime_ns) < RACY_NS


def copy_poem(path: Path) -> tuple[Poem, Fingerprint]:
    """Copy a poem from its file.

    Args:
        path: the file.

    Returns:
        The poem, and the fingerprint of the file that it was copied from.

    Raises:
        Unreadable: the file is not there or cannot be read, is empty, or changed while it was read.
    """
    try:
        return _copy(path)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _copy(path: Path) -> tuple[Poem, Fingerprint]:
    # Not to wait for who might write to a pipe; on a regular file the flag does nothing.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise Unreadable("it is no regular file")
        poem = _spool(file) if before.st_size > MEMORY_MAX_BYTES else MemoryPoem(file.read())
        fingerprint = Fingerprint.of(os.fstat(file.fileno()))
    if fingerprint != Fingerprint.of(before) or poem.size_bytes != before.st_size:
        raise Unreadable("it changed while it was read")
    if not poem.size_bytes:
        raise Unreadable("it is empty")  # which a file is for a moment while it is written anew
    return poem, fingerprint


def _spool(file: BinaryIO) -> Poem:
    with tempfile.TemporaryFile(buffering=0) as copy:
        shutil.copyfileobj(file, copy, MEMORY_MAX_BYTES)
        poem = DiskPoem(os.dup(copy.fileno()), copy.tell())
    weakref.finalize(poem, os.close, poem.descriptor)
    return poem


class PoemFile:
    """The poem of a file: the last good one.

    Args:
        path: the file.

    Raises:
        Unreadable: there is no good one yet.
    """

    log = Logger()

    def __init__(self, path: Path) -> None:
        self._path = path
        self._complaint = ""
        self._seen: Fingerprint | None = None
        self._poem = self._read()

    def current(self) -> Poem:
        """Give the poem, from the file if it has changed; where it cannot be read, the last good one."""
        try:
            if self._seen != Fingerprint.of(self._path.stat()):
                self._poem = self._read()
        except (OSError, Unreadable) as error:
            self._print_error(getattr(error, "strerror", None) or str(error))
        else:
            if self._complaint:
                self.log.info("{path} can be read again", path=str(self._path))
            self._complaint = ""
        return self._poem

    def _read(self) -> Poem:
        poem, fingerprint = copy_poem(self._path)
        self._seen = None if fingerprint.is_racy(time.time_ns()) else fingerprint
        return poem

    def _print_error(self, reason: str) -> None:
        if reason != self._complaint:
            self.log.warn("cannot read {path}: {reason}; the last good poem stays", path=str(self._path), reason=reason)
        self._complaint = reason
