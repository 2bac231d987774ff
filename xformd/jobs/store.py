"""What is kept of jobs on disk: a SQLite database in a folder of its own, which nobody else may enter. No Twisted.

Invariant: one process has the folder at a time; each method is one transaction, and what it has written survives a
crash. Methods are called one at a time.
"""

import json
import os
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs

from xformd.errors import ERRORS, ConfigError, InternalError, XformError

FILE = "jobs.sqlite3"
VERSION = 1

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # or a column has another name
_PRAGMAS = ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 0")
_FIELDS = "id, owner, share, spec, is_repeatable, key, digest, created_at, ended_at, error, headers"
_SETUP = f"""
    PRAGMA user_version = {VERSION};
    CREATE TABLE IF NOT EXISTS jobs (
        id TEXT PRIMARY KEY, owner TEXT, share TEXT, spec TEXT, is_repeatable INTEGER, key TEXT, digest BLOB,
        created_at REAL, ended_at REAL, error TEXT, headers BLOB,
        data BLOB  -- the result; before, the poem of one that may run, or run again
    );
"""


@attrs.define(eq=False, kw_only=True)
class Job:
    """A job, without its poem or its result. Its times are in seconds since 1970."""

    id: str  # 128 random bits
    owner: str = ""  # the identity that has started it
    share: str = ""  # whose part of the server it takes
    spec: str
    is_repeatable: bool = False  # its transforms are deterministic: to run it again does no harm
    key: str = ""  # its Idempotency-Key, if it has one
    digest: bytes = b""  # of the request, if it has a key
    created_at: float
    ended_at: float | None = None
    error: XformError | None = None  # as what it has failed
    headers: bytes = b""  # of its result, as lines
    size_bytes: int = 0  # of what is on disk for it


class JobStore:
    """The jobs in a folder, once it is open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connection: Any = None

    def open(self, now: float, keep_s: float, lost: XformError) -> list[Job]:
        """Open the folder; return all jobs, the oldest first.

        Jobs that have not ended, and cannot be run again, have failed as ``lost``. What ended before ``keep_s`` is
        forgotten; what ended in the future, as the clock was set back, has ended now.

        Raises:
            ConfigError: the folder cannot be used, another process has it, or the database is damaged.
        """
        try:
            _make_private(self._folder)
            self._connection = _open(self._folder / FILE)
            return self._load(now, keep_s, lost)
        except OSError as error:
            reason = error.strerror
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            reason = f"{FILE} is damaged ({error}): move it away" if code in _DAMAGED else str(error)
            reason = "another server uses this folder: each needs its own" if code == sqlite3.SQLITE_BUSY else reason
        raise ConfigError(f"{self._folder}: {reason}", setting="jobs_dir")

    def _load(self, now: float, keep_s: float, lost: XformError) -> list[Job]:
        with self._connection as connection:
            connection.execute("BEGIN")
            connection.execute("DELETE FROM jobs WHERE ended_at <= ?", (now - keep_s,))
            connection.execute("UPDATE jobs SET ended_at = ?1 WHERE ended_at > ?1", (now,))
            query = "UPDATE jobs SET ended_at = ?, error = ? WHERE ended_at IS NULL AND data IS NULL"
            connection.execute(query, (now, _encode(lost)))
            rows = connection.execute(f"SELECT {_FIELDS}, ifnull(length(data), 0) FROM jobs ORDER BY created_at")
            names = attrs.fields_dict(Job)
            jobs = [Job(**dict(zip(names, row, strict=True))) for row in rows]
        for job in jobs:
            job.is_repeatable, job.error = bool(job.is_repeatable), _decode(job.error)
        return jobs

    def add(self, job: Job, poem: bytes | None) -> None:
        """Keep a job that is about to begin; with its poem if it may be run again."""
        *fields, _ = attrs.astuple(job, recurse=False)
        marks = ", ".join("?" * (len(fields) + 1))
        self._connection.execute(f"INSERT INTO jobs ({_FIELDS}, data) VALUES ({marks})", (*fields, poem))

    def keep_poem(self, job_id: str, poem: bytes | None) -> None:
        """Keep the poem of a job that has not begun, or keep it no more."""
        self._connection.execute("UPDATE jobs SET data = ? WHERE id = ?", (poem, job_id))

    def end(self, job_id: str, ended_at: float, error: XformError | None, headers: bytes, result: bytes) -> None:
        """Keep the outcome of a job in place of its poem."""
        values = (ended_at, _encode(error), headers, result, job_id)
        query = "UPDATE jobs SET ended_at = ?, error = ?, headers = ?, data = ? WHERE id = ?"
        self._connection.execute(query, values)

    def read(self, job_id: str) -> bytes:
        """Return the poem or the result of a job; raise ``LookupError`` if it has none."""
        row = self._connection.execute("SELECT data FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or row[0] is None:
            raise LookupError(job_id)
        return bytes(row[0])

    def remove(self, job_ids: Iterable[str]) -> None:
        """Forget jobs."""
        with self._connection as connection:
            connection.execute("BEGIN")
            connection.executemany("DELETE FROM jobs WHERE id = ?", [(each,) for each in job_ids])

    def close(self) -> None:
        """Let another process have the folder."""
        if self._connection is not None:
            self._connection.close()


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        reason = "others may read it: choose a folder that is not there yet, or chown and chmod 700 it"
        raise ConfigError(f"{folder}: {reason}", setting="jobs_dir")


def _open(file: Path) -> sqlite3.Connection:
    # Whichever thread of the pool calls; and it never waits for the lock, as whoever has it keeps it.
    connection = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            reason = f"{FILE} was written by another version of xformd: move it away"
            raise ConfigError(f"{file.parent}: {reason}", setting="jobs_dir")
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("parts of it do not fit together")
        if not version:
            connection.executescript(_SETUP)
    except BaseException:
        with closing(connection):
            raise
    return connection


def _encode(error: XformError | None) -> str | None:
    return None if error is None else json.dumps([error.code, error.message, error.retry_after_ms])


def _decode(text: object) -> XformError | None:
    if text is None:
        return None
    try:
        code, message, retry_after_ms = json.loads(str(text))
        return ERRORS[code](message, retry_after_ms=retry_after_ms)
    except (ValueError, LookupError, TypeError):
        return InternalError("what it failed with cannot be read any more")
