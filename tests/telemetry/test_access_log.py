"""The access log: what a line has, and a log that is slow, full, moved or read by nobody."""

import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.memory import MemoryAccessLog
from support.processes import DEADLINE_S, wait_until
from xformd.errors import ConfigError
from xformd.spec import parse
from xformd.telemetry import access_log
from xformd.telemetry.access_log import STDERR, AccessEntry, AccessLog, as_text
from xformd.telemetry.timing import utc_time

MakeLog = Callable[..., AccessLog]


@pytest.fixture
def reports() -> list[str]:
    """What the server's own log gets."""
    return []


@pytest.fixture
def make_log(reports: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLog]:
    """Make a log that is started, and stopped after the test."""
    monkeypatch.setattr(access_log, "REPORT_S", 0.05)
    monkeypatch.setattr(access_log, "STOP_S", 0.2)
    logs = []

    def make(file: Path, log_format: str = "json") -> AccessLog:
        logs.append(AccessLog(file, log_format, lambda message, **_: reports.append(message)))
        logs[-1].start()
        return logs[-1]

    yield make
    for log in logs:
        log.stop()
    assert not any(thread.name == "access log" for thread in threading.enumerate())


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def finish(log: AccessLog, *ids: object) -> None:
    """Finish a request with each of these ids."""
    for each in ids:
        AccessEntry(str(each), log=log, front="classic", peer="10.0.0.1").finish("ok")


def ids_in(file: Path) -> list[str]:
    """Return the ids in the lines that are complete: the writer may be in the middle of the next."""
    whole = file.read_text().rpartition("\n")[0] if file.exists() else ""
    return [json.loads(line)["request_id"] for line in whole.splitlines()]


def fill(log: AccessLog) -> None:
    """Finish requests until lines are dropped."""
    ends_s = time.monotonic() + DEADLINE_S
    while not log.dropped:
        assert time.monotonic() < ends_s
        finish(log, *range(1_000))


def entry(log: AccessLog, **fields: Any) -> AccessEntry:
    made = AccessEntry("owl-1", log=log, front="http", peer="10.0.0.1", **fields)
    made.queue_s, made.run_s = 0.25, 1e-6
    made.finish("ok")
    return made


# Lines.


def test_a_line_has_what_is_known_of_a_request() -> None:
    spec = parse("wrap:fill=S3CRET+upper")
    made = entry(MemoryAccessLog(), method="POST", endpoint="/transform/", spec=spec, poem_bytes=3, result_bytes=5)
    fields = dict(made.fields())
    assert fields.pop("time") == utc_time(made.ended_at)
    assert 0 <= fields.pop("total_s") < 1
    assert fields == {
        "namespace": "access",
        "peer": "10.0.0.1",
        "front": "http",
        "method": "POST",
        "endpoint": "/transform/",
        "transform": "wrap+upper",
        "code": "ok",
        "status": 200,
        "poem_bytes": 3,
        "result_bytes": 5,
        "queue_s": 0.25,
        "run_s": 0.000001,
        "request_id": "owl-1",
    }


def test_as_text_a_line_is_the_time_and_pairs() -> None:
    made = entry(MemoryAccessLog(), spec=parse("upper"), poem_bytes=3)
    made.total_s = 0.5
    assert as_text(made.fields()) == (
        f"{utc_time(made.ended_at)} [access] peer=10.0.0.1 front=http transform=upper code=ok status=200 poem_bytes=3 "
        "queue_s=0.250000 run_s=0.000001 total_s=0.500000 request_id=owl-1"
    )


def test_many_names_are_cut() -> None:
    made = entry(MemoryAccessLog(), spec=parse("+".join(["cummingsify"] * 32)))
    assert len(made.fields()["transform"]) == 200
    assert made.fields()["transform"].endswith("cummi...")


def test_the_longest_line_leaves_room_for_the_others_that_are_written_with_it() -> None:
    spec = parse("+".join(["a" * 64] * 32))
    big = 2**63
    made = AccessEntry("x" * 64, log=MemoryAccessLog(), front="session", peer="f" * 60, spec=spec, method="PROPPATCH")
    made.endpoint, made.session_id = "/openapi.json", big
    made.queue_s = made.run_s = 1e9 / 3
    made.poem_bytes = made.result_bytes = big
    made.finish("ambiguous-transform")
    longest = max(len(json.dumps(made.fields())), len(as_text(made.fields())))
    assert longest < select.PIPE_BUF - access_log.CHUNK_BYTES


@pytest.mark.parametrize(("code", "status"), [("ok", 200), ("busy", 429), ("cancelled", 499), ("refused", 500)])
def test_a_status_follows_from_the_code(code: str, status: int) -> None:
    log = MemoryAccessLog()
    AccessEntry(None, log=log, front="http", peer="unix").finish(code)
    assert log.take("code", "status", "request_id") == [(code, status, None)]


def test_a_request_has_one_line_of_its_first_outcome() -> None:
    log = MemoryAccessLog()
    made = entry(log)
    made.finish("cancelled")
    made.part().finish("busy")
    assert log.take("code", "request_id") == [("ok", "owl-1"), ("busy", "owl-1")]


# Files.


def test_lines_are_appended_to_a_file(make_log: MakeLog, tmp_path: Path, reports: list[str]) -> None:
    file = tmp_path / "access.log"
    file.write_text('{"request_id": "before"}\n')
    log = make_log(file)
    finish(log, *range(100))
    wait_until(lambda: ids_in(file) == ["before", *map(str, range(100))])
    assert (log.dropped, reports) == (0, [])


def test_what_is_left_is_written_at_the_end(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log(tmp_path / "access.log", "text")
    finish(log, *range(2_000))
    log.stop()
    assert (tmp_path / "access.log").read_text().count(" [access] peer=10.0.0.1 ") == 2_000


def test_standard_error_is_written_to_its_descriptor(make_log: MakeLog, capfd: pytest.CaptureFixture[str]) -> None:
    log = make_log(STDERR)
    finish(log, "one")
    log.reopen()
    finish(log, "two")
    log.stop()
    assert [json.loads(line)["request_id"] for line in capfd.readouterr().err.splitlines()] == ["one", "two"]


def test_a_file_that_was_renamed_is_left_on_request(make_log: MakeLog, tmp_path: Path) -> None:
    file, old = tmp_path / "access.log", tmp_path / "access.log.1"
    log = make_log(file)
    finish(log, "one")
    wait_until(lambda: ids_in(file) == ["one"])
    file.rename(old)
    finish(log, "two")
    wait_until(lambda: ids_in(old) == ["one", "two"])
    log.reopen()
    wait_until(file.exists)  # at once, not with the next line
    finish(log, "three")
    wait_until(lambda: ids_in(file) == ["three"])
    assert ids_in(old) == ["one", "two"]


def test_a_file_that_cannot_be_opened_anew_stays(make_log: MakeLog, tmp_path: Path, reports: list[str]) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = make_log(folder / "access.log")
    folder.rename(tmp_path / "old")
    log.reopen()
    finish(log, "one")
    wait_until(lambda: ids_in(tmp_path / "old" / "access.log") == ["one"])
    assert reports == [f"the access log is not opened anew: {folder / 'access.log'}: No such file or directory"]


def test_a_file_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"access_log: cannot open .*nowhere/a: No such file or directory"):
        AccessLog(tmp_path / "nowhere" / "a", "text", print)


def test_lines_that_cannot_be_written_are_dropped_with_the_reason(make_log: MakeLog, reports: list[str]) -> None:
    log = make_log(Path("/dev/full"))
    finish(log, "one")
    wait_until(lambda: len(reports) == 1)
    assert (log.dropped, reports) == (1, ["dropped 1 lines of the access log: No space left on device"])


# Pipes.


def test_a_fifo_needs_no_reader_to_begin_with(make_log: MakeLog, fifo: Path) -> None:
    log = make_log(fifo)
    finish(log, "one")
    with fifo.open() as reader:
        assert json.loads(reader.readline())["request_id"] == "one"
        finish(log, "two")
        assert json.loads(reader.readline())["request_id"] == "two"


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(make_log: MakeLog, fifo: Path, reports: list[str]) -> None:
    log = make_log(fifo)
    fill(log)
    started_s = time.perf_counter()
    finish(log, *range(10_000))
    assert time.perf_counter() - started_s < 30  # it takes 20 ms
    wait_until(lambda: len(reports) > 0)
    assert reports[0].endswith(" lines of the access log: it takes them more slowly than they come")
    log.stop()
    assert sum(int(report.split()[1]) for report in reports) == log.dropped > 10_000


def test_once_it_is_read_again_it_gets_whole_lines(make_log: MakeLog, fifo: Path) -> None:
    log = make_log(fifo)
    fill(log)
    with fifo.open() as reader:
        for _ in range(access_log.MAX_WAITING):
            json.loads(reader.readline())
        finish(log, "after")
        while json.loads(reader.readline())["request_id"] != "after":
            pass


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_file_that_was_moved_or_removed_is_opened_again(
    make_log: MakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    monkeypatch.setattr(access_log, "LOOK_S", 0)
    path, old = tmp_path / "log", tmp_path / "old"
    log = make_log(path)
    finish(log, "one")
    wait_until(lambda: ids_in(path) == ["one"])
    path.unlink() if is_removed else path.rename(old)
    finish(log, "two")
    wait_until(lambda: ids_in(path) == ["two"])
    assert ids_in(old) == ([] if is_removed else ["one"])


def test_a_log_whose_folder_is_gone_says_so_once_and_goes_on(
    make_log: MakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[str]
) -> None:
    monkeypatch.setattr(access_log, "LOOK_S", 0.01)
    path = tmp_path / "folder" / "log"
    path.parent.mkdir()
    log = make_log(path)
    path.unlink()
    path.parent.rmdir()
    finish(log, "one")
    wait_until(lambda: reports == [f"the access log is not opened anew: {path}: No such file or directory"])
    path.parent.mkdir()
    log.reopen()
    finish(log, "two")
    wait_until(lambda: "two" in ids_in(path))


def test_a_log_can_move_to_another_file(make_log: MakeLog, tmp_path: Path) -> None:
    log = make_log(tmp_path / "one")
    finish(log, "one")
    wait_until(lambda: ids_in(tmp_path / "one") == ["one"])
    with pytest.raises(FileNotFoundError):
        log.move(tmp_path / "no such folder" / "two")
    log.move(tmp_path / "two")
    finish(log, "two")
    wait_until(lambda: ids_in(tmp_path / "two") == ["two"])
    assert ids_in(tmp_path / "one") == ["one"]


def test_a_pipe_that_nobody_reads_can_be_replaced(make_log: MakeLog, fifo: Path) -> None:
    log = make_log(fifo)
    fill(log)
    fifo.unlink()
    log.reopen()
    wait_until(lambda: len(ids_in(fifo)) > access_log.MAX_WAITING // 2)


def test_an_entry_that_waits_holds_names_alone() -> None:
    made = entry(MemoryAccessLog(), spec=parse("wrap:fill=S3CRET"))
    assert (made.spec, made.names) == (None, "wrap")


def test_a_torn_line_spoils_no_other(make_log: MakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "log", os.write
    outcomes = iter([20, 0])  # a disk takes some bytes, and then is full

    def fill_up(descriptor: int, data: bytes) -> int:
        room = next(outcomes, None)
        if room == 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:room])

    log = make_log(path)
    monkeypatch.setattr(os, "write", fill_up)
    finish(log, "torn")
    wait_until(lambda: log.dropped == 1)
    finish(log, "whole")
    wait_until(lambda: path.read_text().endswith("}\n"))
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 20
    assert json.loads(whole)["request_id"] == "whole"
