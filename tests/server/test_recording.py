"""What a server records: no more than it may, nothing that others can read, and the same poem once."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.python.failure import Failure

from support.logs import Log
from xformd.config import Settings
from xformd.server.recording import RecordingService
from xformd.spec import parse


class Threads:
    """A reactor whose threads run when the test says so."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def getThreadPool(self) -> "Threads":
        return self

    def callFromThread(self, function: Callable[..., object], *arguments: Any) -> None:
        function(*arguments)

    def callInThreadWithCallback(self, on_result: Any, function: Any, *arguments: Any, **more: Any) -> None:
        def work() -> None:
            try:
                result = function(*arguments, **more)
            except OSError:
                on_result(False, Failure())
            else:
                on_result(True, result)

        self._waiting.append(work)

    def run(self) -> None:
        while self._waiting:
            self._waiting.pop(0)()


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def record(tmp_path: Path, threads: Threads) -> Callable[..., RecordingService]:
    def make(max_bytes: int = 100_000) -> RecordingService:
        settings = Settings(record=tmp_path / "record", record_sample=1.0, record_max_bytes=max_bytes)
        service = Mock(registry=Mock(entries={"upper": None}))
        return RecordingService(service, settings, threads)

    return make


def kept(tmp_path: Path) -> list[bytes]:
    return sorted(file.read_bytes() for file in (tmp_path / "record").rglob("*") if file.is_file())


def test_a_poem_that_comes_twice_at_a_time_ends_nothing(
    tmp_path: Path, threads: Threads, record: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, replace = record(), os.replace

    def others_first(*arguments: Any) -> None:
        threads.run()
        replace(*arguments)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, others_first)
    for _ in range(2):
        service.xform(parse("upper"), b"owl")
    threads.run()
    service.xform(parse("upper"), b"cat")
    threads.run()
    assert kept(tmp_path) == [b"cat", b"owl"]
    assert not [line for line in log.lines if "records no more" in line]


def test_a_poem_that_comes_again_takes_no_room(tmp_path: Path, threads: Threads, record: Any) -> None:
    service = record()
    for poem in (*[b"owl"] * 200, b"cat"):
        service.xform(parse("upper"), poem)
        threads.run()
    assert kept(tmp_path) == [b"cat", b"owl"]


def test_short_poems_take_no_more_of_the_disk_than_they_may(tmp_path: Path, threads: Threads, record: Any) -> None:
    service = record()
    for number in range(200):
        service.xform(parse(f"upper:a={number}"), b"owl")
        threads.run()
    paths = [*(tmp_path / "record").rglob("*")]
    assert 10 <= len(paths) <= 2 * 100_000 // 8192
    assert sum(path.stat().st_blocks for path in paths) * 512 <= 100_000


def test_nobody_else_can_read_what_is_kept(tmp_path: Path, threads: Threads, record: Any) -> None:
    service, before = record(), os.umask(0)
    try:
        service.xform(parse("upper"), b"owl")
        threads.run()
    finally:
        os.umask(before)
    record_folder = tmp_path / "record"
    assert not [
        path for path in (record_folder, *record_folder.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
