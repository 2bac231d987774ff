"""Many inputs at once: what is written and when, what is reported, and how it ends."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import xformd
from support.deferreds import error_of, result_of
from xformd.client.batch import (
    STDIN,
    Batch,
    Item,
    Summary,
    find_files,
    mirrored,
    to_files,
    to_stream,
    write_whole,
)


class Table:
    """Inputs and transforms that end when the test says so, and what came of them."""

    def __init__(self, *, transform: bool = False, write_error: OSError | None = None, **options: Any) -> None:
        self.fetched: dict[str, Deferred[bytes]] = {}
        self.transformed: dict[bytes, Deferred[bytes]] = {}
        self.events: list[Any] = []
        self.watched: list[Item[str]] = []
        self._write_error = write_error
        self.batch: Batch[str] = Batch(
            fetch=lambda source: self.fetched.setdefault(source, Deferred()),
            transform=(lambda poem: self.transformed.setdefault(poem, Deferred())) if transform else None,
            write=self._write,
            report=lambda item: self.events.append((item.source, type(item.error).__name__)),
            watch=self.watched.append,
            **options,
        )

    def _write(self, source: str, result: bytes) -> None:
        if self._write_error is not None:
            raise self._write_error
        self.events.append((source, result))

    def run(self, *sources: str) -> Deferred[Summary]:
        return Deferred.fromCoroutine(self.batch.run(sources))


@pytest.mark.parametrize("ordered", [True, False])
def test_results_are_written_in_order_or_as_they_arrive(ordered: bool) -> None:
    table = Table(ordered=ordered)
    done = table.run("owl", "cat")
    table.fetched["cat"].callback(b"Cat")
    assert table.events == ([] if ordered else [("cat", b"Cat")])
    table.fetched["owl"].callback(b"Owl")
    both = [("owl", b"Owl"), ("cat", b"Cat")]
    assert table.events == (both if ordered else both[::-1])
    assert result_of(done) == Summary(written=2)


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_than_the_jobs_run_at_once(ordered: bool) -> None:
    table = Table(jobs=2, ordered=ordered)
    done = table.run("a", "b", "c", "d")
    assert [*table.fetched] == ["a", "b"]
    table.fetched["a"].callback(b"A")
    assert [*table.fetched] == ["a", "b", "c"]
    for source in "bcd":
        table.fetched[source].callback(b"")
    assert result_of(done).written == 4


def test_there_may_be_any_number_of_jobs() -> None:
    table = Table(jobs=10**30)
    done = table.run("a")
    table.fetched["a"].callback(b"A")
    assert result_of(done).written == 1


def test_each_input_is_transformed_as_it_arrives() -> None:
    table = Table(transform=True, ordered=False)
    table.run("owl", "cat")
    table.fetched["cat"].callback(b"Cat")
    assert [*table.transformed] == [b"Cat"]
    table.fetched["owl"].callback(b"Owl")
    table.transformed[b"Owl"].callback(b"owl")
    assert table.events == [("owl", b"owl")]
    assert [(item.source, item.result, item.is_done) for item in table.watched] == [
        ("cat", None, False),
        ("owl", None, False),
        ("owl", b"owl", True),
    ]


@pytest.mark.parametrize(("fallback", "summary"), [(True, Summary(2, 1, 0)), (False, Summary(1, 1, 75))])
def test_where_a_transform_fails_the_original_follows_or_nothing(fallback: bool, summary: Summary) -> None:
    table = Table(transform=True, fallback=fallback)
    done = table.run("owl", "cat")
    for source in ("owl", "cat"):
        table.fetched[source].callback(source.encode())
    table.transformed[b"owl"].errback(xformd.Busy("later"))
    table.transformed[b"cat"].callback(b"CAT")
    original: list[Any] = [("owl", b"owl")] if fallback else []
    assert table.events == [("owl", "Busy"), *original, ("cat", b"CAT")]
    assert result_of(done) == summary


@pytest.mark.parametrize(("error", "status"), [(xformd.ConnectionFailed("no"), 69), (FileNotFoundError(), 66)])
def test_an_input_that_cannot_be_fetched_is_reported_and_the_rest_goes_on(error: Exception, status: int) -> None:
    table = Table()
    done = table.run("owl", "cat", "pig")
    table.fetched["owl"].errback(error)
    table.fetched["pig"].errback(xformd.TooLarge("no"))
    table.fetched["cat"].callback(b"Cat")
    assert table.events == [("owl", type(error).__name__), ("cat", b"Cat"), ("pig", "TooLarge")]
    assert result_of(done) == Summary(written=1, failed=2, exit_status=status)


def test_a_result_that_cannot_be_written_is_reported() -> None:
    table = Table(write_error=OSError(errno.ENOSPC, "No space left on device"))
    done = table.run("owl")
    table.fetched["owl"].callback(b"Owl")
    assert table.events == [("owl", "OSError")]
    assert result_of(done) == Summary(failed=1, exit_status=73)


def test_a_reader_that_leaves_ends_the_batch() -> None:
    table = Table(write_error=BrokenPipeError())
    done = table.run("owl", "cat")
    table.fetched["owl"].callback(b"Owl")
    error_of(done, BrokenPipeError)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("is_at_once", [False, True])
def test_a_defect_is_not_swallowed(ordered: bool, is_at_once: bool) -> None:
    table = Table(ordered=ordered)
    fetched = table.fetched["owl"] = Deferred()
    if is_at_once:
        fetched.errback(ZeroDivisionError())
    done = table.run("owl")
    if not is_at_once:
        fetched.errback(ZeroDivisionError())
    error_of(done, ZeroDivisionError)


def test_a_stream_gets_the_bytes_and_nothing_else() -> None:
    stream = io.BytesIO()
    for poem in (b"The Owl\r", b"\0"):
        to_stream(stream)("a", poem)
    assert stream.getvalue() == b"The Owl\r\0"


def test_each_result_has_its_own_file(tmp_path: Path) -> None:
    files = [(source, tmp_path / "new" / source.name) for source in (STDIN, Path("a/owl"))]
    write = to_files(files, "--output-dir")
    write(STDIN, b"Cat")
    write(Path("a/owl"), b"Owl")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {"stdin": b"Cat", "owl": b"Owl"}


def test_results_with_one_name_or_over_their_own_input_are_refused(tmp_path: Path) -> None:
    owl = tmp_path / "owl"
    owl.touch()
    with pytest.raises(xformd.ConfigError, match=r"would both become .*/new/owl; --recursive keeps their folders"):
        to_files([(Path(name), tmp_path / "new" / "owl") for name in ("a/owl", "b/owl")], "--output-dir")
    with pytest.raises(xformd.ConfigError, match=r"would both become .*/new/owl$"):
        to_files([(address, tmp_path / "new" / "owl") for address in ("a:1", "b:1")], "--output-dir")
    with pytest.raises(xformd.ConfigError, match="the result would overwrite"):
        to_files([(owl, owl)], "--output-dir")


def test_a_result_may_overwrite_its_own_poem_only_if_asked_and_no_other(tmp_path: Path) -> None:
    owl, link = tmp_path / "owl", tmp_path / "link"
    owl.touch()
    link.symlink_to(owl)
    to_files([(owl, owl)], "--in-place", overwrite=True)(owl, b"Owl")
    assert owl.read_bytes() == b"Owl"
    with pytest.raises(xformd.ConfigError, match=r"--in-place: .*/owl and .*/link would both become .*/link$"):
        to_files([(owl, owl), (link, link)], "--in-place", overwrite=True)
    with pytest.raises(xformd.ConfigError, match=r"--output-dir .*: the result would overwrite .*/owl"):
        to_files([(owl, tmp_path / "new"), (tmp_path / "cat", link)], "--output-dir here")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders with poems, and with what is none."""
    for name in ("a/owl", "b/owl", "b/deep/cat", ".git/config", "b/.hidden", "out/owl", "-"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(name.encode())
    (tmp_path / "tree" / "a" / "link").symlink_to("owl")
    (tmp_path / "tree" / "a" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "tree" / "a" / "pipe")
    return tmp_path / "tree"


def test_the_poems_of_a_folder_are_its_plain_files(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    names = ["-", "a/owl", "b/owl", "b/deep/cat"]
    assert find_files([tree], skip=tree / "out") == [tree / name for name in names]
    assert find_files([Path()], skip=Path("out")) == [Path(name) for name in names]
    assert find_files([STDIN, Path("b/owl"), Path("b/deep"), Path("gone")]) == [
        STDIN,
        Path("b/owl"),
        Path("b/deep/cat"),
        Path("gone"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder: run the tests as another user")
def test_a_folder_that_cannot_be_listed_is_a_poem_that_cannot_be_read(tree: Path) -> None:
    (tree / "b").chmod(0)
    assert tree / "b" in find_files([tree])
    (tree / "b").chmod(0o700)


def test_mirrored_files_keep_the_folders_that_tell_them_apart(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for arguments, names in [
        ([Path("a/owl"), Path("b/owl")], ["a/owl", "b/owl"]),
        ([Path("b")], ["owl", "deep/cat"]),
        ([Path("b"), STDIN, Path("a/owl")], ["b/owl", "b/deep/cat", "stdin", "a/owl"]),
        ([tree / "a", Path("../tree/b/deep")], ["a/owl", "b/deep/cat"]),
    ]:
        name_of = mirrored(arguments)
        assert [name_of(source) for source in find_files(arguments)] == names


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_whole(tmp_path / "owl", b"The Owl")
    (tmp_path / "plain").touch()
    assert (tmp_path / "owl").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_is_there_keeps_its_mode_and_a_link_is_followed(tmp_path: Path) -> None:
    owl, link = tmp_path / "owl", tmp_path / "link"
    owl.touch()
    owl.chmod(0o604)
    link.symlink_to("owl")
    write_whole(link, b"The Owl")
    assert link.is_symlink()
    assert (owl.read_bytes(), owl.stat().st_mode & 0o777) == (b"The Owl", 0o604)
    dangling = tmp_path / "dangling"
    dangling.symlink_to("new/cat")
    write_whole(dangling, b"Cat")
    assert (tmp_path / "new" / "cat").read_bytes() == b"Cat"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away: run the tests as root")
def test_a_file_that_is_there_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "owl").touch()
    os.chown(tmp_path / "owl", 1234, 2345)
    write_whole(tmp_path / "owl", b"The Owl")
    assert ((tmp_path / "owl").stat().st_uid, (tmp_path / "owl").stat().st_gid) == (1234, 2345)


def test_what_is_no_plain_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to(os.devnull)
    write_whole(tmp_path / "null", b"The Owl")
    assert not Path(os.devnull).is_file()


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owl").touch(mode=0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root it never says so
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "owl", b"The Owl")


@pytest.mark.parametrize("exists", [False, True])
def test_a_process_that_is_killed_while_it_writes_leaves_no_partial_file(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "owl").write_bytes(b"Owl")
    script = "import os, signal, sys, pathlib; from xformd.client.batch import write_whole; "
    script += "os.link = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL); "
    script += "write_whole(pathlib.Path(sys.argv[1]), bytes(1_000_000))"
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "owl")], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"Owl"] * exists


def test_a_file_is_written_whole_where_none_can_be_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    write_whole(tmp_path / "owl", b"The Owl")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"The Owl"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "owl.txt").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(tmp_path / "owl.txt", b"The Owl")
    assert [path.name for path in tmp_path.iterdir()] == ["owl.txt"]
