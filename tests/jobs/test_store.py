"""What is kept of jobs on disk: it survives a crash, and a folder that cannot be used is told in a line."""

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from xformd.errors import ConfigError, GibberishError, InternalError, TransformDied, Unavailable
from xformd.jobs.store import FILE, Job, JobStore

LOST = TransformDied("lost")
KEEP_S = 100.0


def job(number: int = 1, **fields: Any) -> Job:
    given = {"id": f"{number:032x}", "owner": "ci", "share": "192.0.2.1", "spec": "wrap:width=7", "created_at": number}
    return Job(**{**given, **fields})


def opened(folder: Path) -> JobStore:
    store = JobStore(folder)
    store.open(10.0, KEEP_S, LOST)
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def load(folder: Path, now: float = 10.0) -> dict[str, Job]:
    """Return what the next server finds."""
    with closing(JobStore(folder)) as store:
        jobs = store.open(now, KEEP_S, LOST)
        return {each.id: each for each in jobs}


def test_a_job_is_read_as_it_was_kept(folder: Path) -> None:
    kept = job(is_repeatable=True, key="k", digest=b"\0\xff")
    with closing(opened(folder)) as store:
        store.add(kept, b"\xffpoem")
        assert store.read(kept.id) == b"\xffpoem"
    kept.size_bytes = 5
    (found,) = load(folder).values()
    assert {name: getattr(found, name) for name in Job.__slots__ if name[0] != "_"} == {
        name: getattr(kept, name) for name in Job.__slots__ if name[0] != "_"
    }


def test_a_result_takes_the_place_of_the_poem(folder: Path) -> None:
    with closing(opened(folder)) as store:
        store.add(job(), b"poem")
        store.end(job().id, 7.0, None, b"content-type: text/plain\r\n", b"")
    with closing(JobStore(folder)) as store:
        (found,) = store.open(10.0, KEEP_S, LOST)
        assert (found.ended_at, found.error, found.headers, found.size_bytes) == (
            *(7.0, None),
            *(b"content-type: text/plain\r\n", 0),
        )
        assert store.read(found.id) == b""


@pytest.mark.parametrize("error", [GibberishError("no sonnet"), Unavailable("away", retry_after=1.5), LOST])
def test_an_error_is_read_as_it_was_kept(folder: Path, error: Any) -> None:
    with closing(opened(folder)) as store:
        store.add(job(), None)
        store.end(job().id, 7.0, error, b"", b"")
    (found,) = load(folder).values()
    assert found.error is not None
    assert (type(found.error), found.error.message, found.error.retry_after_ms) == (
        type(error),
        error.message,
        error.retry_after_ms,
    )


def test_of_what_had_not_ended_only_what_has_its_poem_can_run_again(folder: Path) -> None:
    with closing(opened(folder)) as store:
        for number, poem in enumerate((b"poem", None, b"", b"poem"), 1):
            store.add(job(number), poem)
        store.keep_poem(job(4).id, None)
        store.keep_poem(job(2).id, b"late")
    found = load(folder)
    assert [(each.ended_at, each.error and each.error.message) for each in found.values()] == [
        *[(None, None)] * 3,
        (10.0, "lost"),
    ]
    assert load(folder, 20.0)[job(4).id].ended_at == 10.0


def test_what_ended_long_ago_is_forgotten(folder: Path) -> None:
    with closing(opened(folder)) as store:
        for number in (1, 2, 3):
            store.add(job(number), None)
            store.end(job(number).id, float(number), None, b"", b"result")
    assert [*load(folder, KEEP_S + 2)] == [job(3).id]
    assert [*load(folder, 3)] == [job(3).id]


def test_what_has_ended_in_the_future_is_kept_from_now_on(folder: Path) -> None:
    """The clock was set back: else it would be kept for years."""
    with closing(opened(folder)) as store:
        store.add(job(), None)
        store.end(job().id, 1e9, None, b"", b"result")
    assert load(folder, 50.0)[job().id].ended_at == 50.0
    assert load(folder, 50.0 + KEEP_S) == {}


def test_jobs_are_forgotten_for_good(folder: Path) -> None:
    with closing(opened(folder)) as store:
        for number in (1, 2, 3):
            store.add(job(number), b"poem")
        store.remove({job(1).id, job(3).id, "absent"})
        with pytest.raises(LookupError):
            store.read(job(1).id)
    assert [*load(folder)] == [job(2).id]


def test_what_was_written_survives_a_process_that_is_killed(folder: Path) -> None:
    if (child := os.fork()) == 0:
        store = opened(folder)
        store.add(job(1), b"poem")
        store.add(job(2), None)
        store.end(job(2).id, 2.0, None, b"", b"result" * 100_000)
        os._exit(9)
    os.waitpid(child, 0)
    assert [each.size_bytes for each in load(folder).values()] == [4, 600_000]


# Folders that cannot be used.


def test_the_folder_is_made_for_its_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        opened(folder).close()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_one_process_has_a_folder_at_a_time(folder: Path) -> None:
    with closing(opened(folder)):
        with pytest.raises(
            ConfigError, match=r"jobs_dir: .*/jobs: another server uses this folder: each needs its own"
        ):
            opened(folder)
    opened(folder).close()


def test_others_may_not_read_the_folder(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match=r"jobs_dir: .*/jobs: others may read it: .* chmod 700 it"):
        opened(folder)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert [*folder.iterdir()] == []


@pytest.mark.parametrize(("made", "reason"), [("file", "File exists"), ("nothing", "No such file or directory")])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, made: str, reason: str) -> None:
    folder = tmp_path / "above" / "jobs"
    if made == "file":
        folder.parent.mkdir()
        folder.touch()
    with pytest.raises(ConfigError, match=f"jobs_dir: .*/jobs: {reason}"):
        opened(folder)


@pytest.mark.parametrize("damage", ["all", "head", "middle", "end", "schema"])
def test_a_damaged_database_is_told_and_left_as_it_is(folder: Path, damage: str) -> None:
    with closing(opened(folder)) as store:
        for number in range(1, 50):
            store.add(job(number), b"poem" * 1_000)
    data = bytearray((folder / FILE).read_bytes())
    column = data.index(b"share TEXT")
    start, end = {
        "all": (0, None),
        "head": (0, 100),
        "middle": (4_096, 40_960),
        "end": (len(data) // 2, None),
        "schema": (column, column + 2),
    }[damage]
    data[start:end] = b"\xa5" * len(data[start:end])
    (folder / FILE).write_bytes(data)
    with pytest.raises(ConfigError, match=rf"jobs_dir: .*/jobs: {FILE} is damaged \(.+\): move it away"):
        opened(folder)
    assert (folder / FILE).read_bytes() == data


def test_an_error_that_makes_no_sense_is_an_error_all_the_same(folder: Path) -> None:
    with closing(opened(folder)) as store:
        store.add(job(), None)
        store.end(job().id, 1.0, LOST, b"", b"")
    with closing(sqlite3.connect(folder / FILE)) as connection, connection:
        connection.execute("""UPDATE jobs SET error = '["no-such-code", "a", null]'""")
    (found,) = load(folder).values()
    assert isinstance(found.error, InternalError)


def test_a_database_of_another_version_is_left_as_it_is(folder: Path) -> None:
    opened(folder).close()
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match=r"jobs_dir: .*jobs.sqlite3 was written by another version of xformd: move"):
        opened(folder)


@contextmanager
def longest_file(size_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size until the block ends."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_a_server_from_starting_only_where_it_has_something_to_write(folder: Path) -> None:
    opened(folder).close()
    with longest_file(0):
        assert load(folder) == {}
    with closing(opened(folder)) as store:
        store.add(job(1), None)
    with longest_file(0), pytest.raises(ConfigError, match=r"jobs_dir: .*/jobs: (disk|database)"):
        load(folder)
    assert [*load(folder)] == [job(1).id]


def test_a_full_disk_is_an_error_and_what_was_there_stays(folder: Path) -> None:
    with closing(opened(folder)) as store:
        store.add(job(1), b"poem")
        with longest_file(200_000), pytest.raises(sqlite3.Error):
            store.add(job(2), b"poem" * 1_000_000)
        store.add(job(3), b"poem")
        assert store.read(job(1).id) == b"poem"
    assert [*load(folder)] == [job(1).id, job(3).id]
