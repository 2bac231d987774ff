"""A poem's file: copied whole, read again when it changes, and the last good copy where it cannot be."""

import os
import time
from pathlib import Path

import pytest

from support.logs import Log
from xformd.poems import source
from xformd.poems.source import MEMORY_MAX_BYTES, DiskPoem, Fingerprint, MemoryPoem, Poem, PoemFile, Unreadable

LARGE = bytes(range(256)) * (MEMORY_MAX_BYTES // 256) + b"and more"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "owl.txt"
    path.write_bytes(b"The Owl")
    return path


def text_of(poem: Poem) -> bytes:
    return poem.read(0, poem.size_bytes)


def test_a_small_poem_lies_in_memory_and_a_large_one_on_disk(path: Path) -> None:
    assert isinstance(PoemFile(path).current(), MemoryPoem)
    path.write_bytes(LARGE)
    poem = PoemFile(path).current()
    assert isinstance(poem, DiskPoem)
    assert text_of(poem) == LARGE
    assert poem.read(len(LARGE) - 4, 100) == b"more"


def test_a_large_poem_gives_its_file_back_when_nobody_reads_it(path: Path) -> None:
    path.write_bytes(LARGE)
    poem = PoemFile(path).current()
    assert isinstance(poem, DiskPoem)
    descriptor = poem.descriptor
    os.fstat(descriptor)
    del poem
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_who_reads_a_poem_reads_that_one_to_the_end_whatever_happens_to_its_file(path: Path, size: int) -> None:
    path.write_bytes(LARGE[:size])
    file = PoemFile(path)
    poem = file.current()
    path.write_bytes(b"x" * size)
    assert text_of(file.current()) == b"x" * size
    path.unlink()
    assert text_of(poem) == LARGE[:size]


def test_a_file_that_has_not_changed_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PoemFile(path)
    monkeypatch.setattr(source, "RACY_NS", 0)
    first = file.current()
    assert file.current() is first


def test_a_file_of_old_that_changes_is_read_again(path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(source, "RACY_NS", 0)
    file = PoemFile(path)
    path.write_bytes(b"The Pussy-cat")
    assert text_of(file.current()) == b"The Pussy-cat"
    path.unlink()
    assert text_of(file.current()) == b"The Pussy-cat"
    assert log.lines == [f"cannot read {path}: No such file or directory; the last good poem stays"]


@pytest.mark.parametrize(("age_ns", "expected"), [(0, b"The Cat"), (10**10, b"The Owl")])
def test_a_file_whose_change_cannot_be_seen_is_read_again_if_it_was_young(
    path: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int, expected: bytes
) -> None:
    then_ns = time.time_ns() - age_ns
    same = Fingerprint(device=1, inode=1, size_bytes=7, mtime_ns=then_ns, ctime_ns=then_ns)
    monkeypatch.setattr(Fingerprint, "of", lambda status: same)
    file = PoemFile(path)
    path.write_bytes(b"The Cat")
    assert text_of(file.current()) == expected


def test_what_has_just_changed_is_racy() -> None:
    print_ = Fingerprint(device=1, inode=1, size_bytes=1, mtime_ns=10**18, ctime_ns=10**18)
    assert print_.is_racy(10**18 + 1)
    assert not print_.is_racy(10**18 + 10**9)
    moved = Fingerprint(device=1, inode=1, size_bytes=1, mtime_ns=1, ctime_ns=10**18)
    assert moved.is_racy(10**18 + 1)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: path.unlink(), "No such file or directory"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it is no regular file"),
    ],
)
def test_a_file_that_cannot_be_read_leaves_the_last_good_poem_and_one_line_in_the_log(
    path: Path, log: Log, break_it: object, reason: str
) -> None:
    file = PoemFile(path)
    break_it(path)  # type: ignore[operator]
    for _ in range(3):
        assert text_of(file.current()) == b"The Owl"
    assert log.lines == [f"cannot read {path}: {reason}; the last good poem stays"]
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(b"The Cat")
    assert text_of(file.current()) == b"The Cat"
    assert text_of(file.current()) == b"The Cat"
    assert log.lines[1:] == [f"{path} can be read again"]


def test_each_time_that_a_file_cannot_be_read_is_said(path: Path, log: Log) -> None:
    file = PoemFile(path)
    for _ in range(2):
        path.unlink()
        file.current()
        path.write_bytes(b"The Owl")
        file.current()
    assert [line.partition(f"{path}")[0] for line in log.lines] == ["cannot read ", ""] * 2


def test_at_the_start_there_must_be_a_poem(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(Unreadable, match="it is empty"):
        PoemFile(path)
    with pytest.raises(Unreadable, match="it changed while it was read"):
        PoemFile(Path("/proc/version"))  # which says that it has no bytes, and has


@pytest.mark.parametrize("size", [100, len(LARGE)])
def test_a_file_that_changes_while_it_is_read_gives_nobody_half_of_each(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    file = PoemFile(path)
    path.write_bytes(b"a" * size)
    os.utime(path, ns=(0, 0))  # so that it differs from what comes, however coarse the file system's clock is
    take = os.fstat
    changes = iter([lambda: None, lambda: path.write_bytes(b"b" * size)])

    def changed_between(descriptor: int) -> os.stat_result:
        next(changes, lambda: None)()
        return take(descriptor)

    monkeypatch.setattr(source.os, "fstat", changed_between)
    assert text_of(file.current()) == b"The Owl"
    monkeypatch.undo()
    assert text_of(file.current()) == b"b" * size
