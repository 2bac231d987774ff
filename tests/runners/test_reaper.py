"""The reaper, as a real process: nothing that comes from a worker outlives it, and it ends as the worker did."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.live import DEADLINE_S, REAPER, Live, descriptors, is_running, live
from support.processes import wait_until
from xformd.runners import reaper as module
from xformd.runners.reaper import CHANNEL


@pytest.fixture(scope="module")
def shared(hostile: Path) -> Iterator[Live]:
    """A reaper for tests that leave it and its worker alive."""
    with ExitStack() as stack:
        with core_files_allowed():
            process = stack.enter_context(live(REAPER))
            process.begin(hostile)
        yield process


@pytest.fixture
def reaper(hostile: Path) -> Iterator[Live]:
    """A reaper for a test that ends it."""
    with live(REAPER) as process:
        process.begin(hostile)
        yield process


@contextmanager
def core_files_allowed() -> Iterator[None]:
    """Allow core files of any size, so that a process which has none forbids them itself."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def pids(reaper: Live, spec: str = "pids") -> list[int]:
    answer = reaper.xform(spec)
    assert isinstance(answer, bytes)
    return list(map(int, answer.split()))


def test_the_worker_has_another_session_and_neither_leaves_a_core_file(shared: Live) -> None:
    """A worker's core file may hold poems, and is as large as its memory."""
    worker, parent, session = pids(shared)
    assert (parent, session, os.getsid(parent)) == (shared.process.pid, worker, parent)
    for pid in (worker, parent):
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize(("spec", "answer"), [("interrupted", b""), ("child-signal", b"SIG_DFL")])
def test_a_transform_meets_no_signal_handling_of_the_reaper(shared: Live, spec: str, answer: bytes) -> None:
    assert shared.xform(spec) == answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_neither(shared: Live, number: int) -> None:
    """A service manager signals every process of a service, and the server needs its workers until it has answered."""
    worker, parent, _ = pids(shared)
    for pid in (worker, parent):
        os.kill(pid, number)
    assert pids(shared) == [worker, parent, worker]
    assert is_running(parent)


def test_a_child_that_ends_before_the_worker_ends_nothing(shared: Live) -> None:
    daemon = pids(shared, "detach")[1]
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{daemon}").exists())
    assert shared.xform("upper", b"a") == b"A"


def test_the_worker_reads_nothing_and_the_reaper_holds_nothing_open(reaper: Live) -> None:
    assert reaper.xform("gossip", b"poem") == b"poem"
    wait_until(lambda: not {1, 2, CHANNEL} & {*descriptors(reaper.process.pid)})
    worker, _, _ = pids(reaper)
    reaper.channel.close()
    printed, _ = reaper.end()
    assert printed.endswith(b"to descriptor 1\n")
    assert not is_running(worker)


def test_a_worker_whose_reaper_is_gone_does_not_begin() -> None:
    with live("from xformd.runners.reaper import _become_worker; _become_worker(0)") as orphan:
        orphan.channel.close()
        assert orphan.process.wait(DEADLINE_S) == 0


def test_the_worker_dies_with_its_reaper(reaper: Live) -> None:
    worker, parent, _ = pids(reaper)
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not is_running(worker))
    with pytest.raises(EOFError):
        reaper.receive()


def test_closing_its_standard_input_kills_the_worker_and_its_children(reaper: Live) -> None:
    worker, _, _ = pids(reaper)
    children = pids(reaper, "detach")
    assert all(map(is_running, children))
    reaper.ask("block")
    reaper.close_input()
    assert reaper.process.wait(DEADLINE_S) == -signal.SIGKILL
    assert not any(map(is_running, [worker, *children]))


def test_what_a_worker_leaves_ends_and_the_reaper_as_the_worker_did(reaper: Live) -> None:
    children = pids(reaper, "detach")
    reaper.ask("die", b"SIGSEGV")
    assert reaper.process.wait(DEADLINE_S) == -signal.SIGSEGV
    assert not any(map(is_running, children))


# In this process: one that a signal ends leaves no coverage.


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
        (0, [("exit", 0)]),
        (1 << 8, [("exit", 1)]),
        (255 << 8, [("exit", 255)]),
        (signal.SIGKILL, [("kill", signal.SIGKILL), ("exit", 0xFF & -signal.SIGKILL)]),
        (signal.SIGTERM, [("default", 15), ("kill", 15), ("exit", 0xFF & -15)]),
        (signal.SIGABRT | 0x80, [("default", 6), ("kill", 6), ("exit", 0xFF & -6)]),  # with a core file
    ],
)
def test_it_ends_by_the_same_status_or_signal(
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


def test_only_the_end_of_its_input_kills_the_worker(standard_input: int) -> None:
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
import subprocess
from xformd.runners import reaper
worker = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], start_new_session=True)
worker.wait()
reaper._children = list
reaper._sweep(worker.pid)
"""


def test_without_proc_the_workers_group_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", GROUP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    wait_until(lambda: not is_running(child))


def test_without_proc_it_knows_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert child.pid in module._children()
        monkeypatch.setattr(module, "Path", lambda _: Path("/no/such/file"))
        assert module._children() == []
        child.kill()
