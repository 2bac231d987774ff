"""Many inputs at once: what is written and when, what is reported, and how it ends."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import xformd
from support.deferreds import error_of, result_of
from xformd.client.batch import Batch, Item, Summary, file_name, to_folder, to_stream, write_whole


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
    write = to_folder(tmp_path / "new", [Path("-"), Path("a/owl")], file_name)
    write(Path("-"), b"Cat")
    write(Path("a/owl"), b"Owl")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {"stdin": b"Cat", "owl": b"Owl"}


def test_results_with_one_name_or_over_their_own_input_are_refused(tmp_path: Path) -> None:
    (tmp_path / "owl").touch()
    with pytest.raises(xformd.ConfigError, match="would both become owl"):
        to_folder(tmp_path / "new", [Path("a/owl"), Path("b/owl")], file_name)
    with pytest.raises(xformd.ConfigError, match="the result would overwrite"):
        to_folder(tmp_path, [tmp_path / "owl"], file_name)


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_whole(tmp_path / "owl", b"The Owl")
    (tmp_path / "plain").touch()
    assert (tmp_path / "owl").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "owl.txt").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(tmp_path / "owl.txt", b"The Owl")
    assert [path.name for path in tmp_path.iterdir()] == ["owl.txt"]
