"""The reaper, as a real process: nothing that comes from a worker outlives it, and it ends as the worker did."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.live import DEADLINE_S, REAPER, Live, descriptors, is_running, live
from support.processes import wait_until
from xformd.runners import reaper as module
from xformd.runners.reaper import CHANNEL


@pytest.fixture
def reaper(hostile: Path) -> Iterator[Live]:
    with live(REAPER) as process:
        process.begin(hostile)
        yield process


def pids(reaper: Live, spec: str = "pids") -> list[int]:
    answer = reaper.xform(spec)
    assert isinstance(answer, bytes)
    return list(map(int, answer.split()))


def test_the_worker_is_its_child_in_a_session_of_its_own(reaper: Live) -> None:
    worker, parent, session = pids(reaper)
    assert parent == reaper.process.pid
    assert session == worker
    assert os.getsid(parent) == parent


def test_the_worker_reads_nothing_and_the_reaper_holds_nothing_open(reaper: Live) -> None:
    assert reaper.xform("gossip", b"poem") == b"poem"
    wait_until(lambda: not {1, 2, CHANNEL} & {*descriptors(reaper.process.pid)})
    worker, _, _ = pids(reaper)
    reaper.close_channel()
    printed, _ = reaper.end()
    assert printed.endswith(b"to descriptor 1\n")
    assert not is_running(worker)


def test_neither_leaves_a_core_file(hostile: Path) -> None:
    """A worker's may hold poems, and is as large as what it had in memory."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with live(REAPER) as reaper:
            reaper.begin(hostile)
            worker, parent, _ = pids(reaper)
            for pid in (worker, parent):
                assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_worker_whose_reaper_is_gone_already_does_not_begin() -> None:
    with live("from xformd.runners.reaper import _become_worker; _become_worker(0)") as orphan:
        orphan.close_channel()
        assert orphan.process.wait(DEADLINE_S) == 0


def test_a_signal_writes_into_no_file_of_a_transform(reaper: Live) -> None:
    assert reaper.xform("interrupted") == b""


def test_a_transform_finds_the_end_of_a_child_as_in_any_process(reaper: Live) -> None:
    assert reaper.xform("child-signal") == b"SIG_DFL"


def test_the_worker_dies_with_its_reaper(reaper: Live) -> None:
    worker, parent, _ = pids(reaper)
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not is_running(worker))
    with pytest.raises(EOFError):
        reaper.receive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_meant_for_the_server_ends_neither(reaper: Live, number: int) -> None:
    """A service manager signals every process of a service, and the server wants its workers until it has answered."""
    worker, parent, _ = pids(reaper)
    for pid in (worker, parent):
        os.kill(pid, number)
    assert reaper.xform("pids") == b"%d %d %d" % (worker, parent, worker)
    assert is_running(parent)


def test_who_closes_its_standard_input_ends_the_worker_and_all_that_came_from_it(reaper: Live) -> None:
    worker, _, _ = pids(reaper)
    children = pids(reaper, "detach")
    assert all(map(is_running, children))
    reaper.ask("block")
    reaper.close_input()
    assert reaper.process.wait(DEADLINE_S) == -signal.SIGKILL
    assert not any(map(is_running, [worker, *children]))


def test_what_a_worker_leaves_behind_ends_with_it(reaper: Live) -> None:
    children = pids(reaper, "detach")
    reaper.ask("die", b"0")
    assert reaper.process.wait(DEADLINE_S) == 0
    assert not any(map(is_running, children))


def test_a_child_that_ends_before_the_worker_is_no_end(reaper: Live) -> None:
    daemon = pids(reaper, "detach")[1]
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{daemon}").exists())
    assert reaper.xform("upper", b"a") == b"A"


@pytest.mark.parametrize(
    ("how", "status"),
    [
        (b"0", 0),
        (b"1", 1),
        (b"255", 255),
        (b"SIGKILL", -signal.SIGKILL),
        (b"SIGSEGV", -signal.SIGSEGV),
        (b"SIGUSR1", -signal.SIGUSR1),
        (b"SIGABRT", -signal.SIGABRT),
    ],
)
def test_it_ends_the_way_the_worker_did(reaper: Live, how: bytes, status: int) -> None:
    reaper.ask("die", how)
    assert reaper.process.wait(DEADLINE_S) == status


# In this process, for one that a signal ends leaves no record of what it has run.


class EndedError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """How this process would have ended."""
    noted: list[tuple[str, int]] = []

    def end(status: int) -> None:
        noted.append(("exit", status))
        raise EndedError

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr("os.kill", lambda _, number: noted.append(("kill", number)))
    monkeypatch.setattr("signal.signal", lambda number, _: noted.append(("default", number)))
    return noted


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (3 << 8, [("exit", 3)]),
        (signal.SIGKILL, [("kill", signal.SIGKILL), ("exit", 0xFF & -signal.SIGKILL)]),
        (signal.SIGTERM, [("default", 15), ("kill", 15), ("exit", 0xFF & -15)]),
    ],
)
def test_it_ends_by_the_same_signal_and_at_any_rate(
    ends: list[tuple[str, int]], status: int, expected: list[tuple[str, int]]
) -> None:
    with pytest.raises(EndedError):
        module._end_as(status)
    assert ends == expected


@pytest.fixture
def standard_input() -> Iterator[int]:
    """The other end of this process's standard input."""
    kept = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    yield writing
    os.dup2(kept, 0)
    os.close(kept)


def test_the_end_of_its_input_kills_the_worker_and_what_comes_before_does_not(standard_input: int) -> None:
    wakeups, waker = os.pipe()
    with subprocess.Popen(["sleep", "1000"]) as worker:
        os.write(standard_input, b"still here")
        os.write(waker, b"?")  # a signal, but no child has ended
        os.close(standard_input)
        assert os.WTERMSIG(module._watch(worker.pid, wakeups)) == signal.SIGKILL
        worker.returncode = -signal.SIGKILL
    os.close(wakeups)
    os.close(waker)


GROUP = """
import os, sys, time
from pathlib import Path
from xformd.runners import reaper
reading, writing = os.pipe()
worker = os.fork()
if worker == 0:
    os.setsid()
    child = os.fork()
    if child == 0:
        time.sleep(60)
    os.write(writing, b"%d" % child)
    os._exit(0)
child = os.read(reading, 100)
os.waitpid(worker, 0)
reaper.Path = lambda _: Path("/no/such/file")
reaper._sweep(worker)
print(child.decode())
"""


def test_where_the_system_does_not_list_children_those_of_the_workers_group_end() -> None:
    with subprocess.Popen([sys.executable, "-c", GROUP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    wait_until(lambda: not is_running(child))


def test_where_the_system_does_not_list_children_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert child.pid in module._children()
        monkeypatch.setattr(module, "Path", lambda _: Path("/no/such/file"))
        assert module._children() == []
        child.kill()
