"""The reaper, as a real process: nothing that comes from its child outlives it, and the server hears how it ended."""

import errno
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from support.live import LiveForkServer, LiveWorker, children, descriptors, is_running, live
from support.processes import wait_until
from xformd.plugins import process_state
from xformd.runners import reaper as module


@pytest.fixture(scope="module")
def forking(hostile: Path) -> Iterator[LiveForkServer]:
    """A fork server for tests that leave it alive, in a process that allows core files."""
    with ExitStack() as stack:
        with core_files_allowed():
            server = stack.enter_context(live())
            server.begin(hostile)
        yield server


@pytest.fixture
def worker(forking: LiveForkServer) -> LiveWorker:
    return forking.worker()


@contextmanager
def core_files_allowed() -> Iterator[None]:
    """Allow core files of any size, so that a process which has none forbids them itself."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def pids(worker: LiveWorker, spec: str = "pids") -> list[int]:
    return list(map(int, worker.text(spec).split()))


def test_the_worker_has_another_session_and_none_leaves_a_core_file(
    forking: LiveForkServer, worker: LiveWorker
) -> None:
    """A worker's core file may hold poems, and is as large as its memory."""
    pid, reaper, session = pids(worker)
    assert (pid, session, os.getsid(reaper)) == (worker.pid, pid, reaper)
    assert reaper in children(forking.pid)
    for one in (pid, reaper, forking.pid, forking.process.pid):
        assert resource.prlimit(one, resource.RLIMIT_CORE) == (0, 0)
        assert os.getsid(one) != os.getsid(0)


@pytest.mark.parametrize(("spec", "answer"), [("interrupted", b""), ("child-signal", b"SIG_DFL")])
def test_a_transform_meets_no_signal_handling_of_the_reaper(worker: LiveWorker, spec: str, answer: bytes) -> None:
    assert worker.xform(spec) == answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_ends_none(forking: LiveForkServer, worker: LiveWorker, number: int) -> None:
    """A service manager signals every process of a service, and the server needs its workers until it has answered."""
    pid, reaper, _ = pids(worker)
    for one in (pid, reaper, forking.pid, forking.process.pid):
        os.kill(one, number)
    assert pids(worker) == [pid, reaper, pid]
    assert is_running(reaper)
    assert forking.worker().text("upper", b"a") == "A"


def test_a_process_that_detaches_from_a_job_ends_with_it_and_the_worker_goes_on(worker: LiveWorker) -> None:
    daemon = pids(worker, "detach")[1]
    assert not is_running(daemon)
    assert worker.xform("upper", b"a") == b"A"


def test_the_worker_reads_nothing_and_the_reaper_holds_nothing_open(worker: LiveWorker) -> None:
    assert worker.xform("gossip", b"poem") == b"poem"
    pid, reaper, _ = pids(worker)
    wait_until(lambda: not {1, 2} & {*descriptors(reaper)})
    assert len(descriptors(reaper)) == 4  # nothing to read, the lifeline, and both ends of the pipe of signals
    worker.channel.close()
    assert worker.printed().endswith(b"to stderr\n")
    assert worker.end() == 1
    assert not is_running(pid)


def test_a_child_whose_reaper_is_gone_does_not_begin() -> None:
    moved = "import os; from xformd.runners import reaper; os.getpid = lambda: 2; reaper.main()"
    with live(moved) as orphan:
        assert orphan.end() == (0, b"")


def test_the_worker_dies_with_its_reaper_and_all_that_came_from_it(worker: LiveWorker) -> None:
    pid, reaper, _ = pids(worker)
    daemons = pids(worker, "detach")
    worker.ask("block")
    os.kill(reaper, signal.SIGKILL)
    with pytest.raises(EOFError):
        worker.receive()
    assert worker.end() is None
    wait_until(lambda: not any(map(is_running, [pid, *daemons])))


def test_cutting_its_lifeline_kills_the_worker_and_its_children(worker: LiveWorker) -> None:
    started = [worker.pid, *pids(worker, "detach")]
    worker.ask("block")
    worker.kill()
    assert worker.end() == -signal.SIGKILL
    assert not any(map(is_running, started))


def test_what_a_worker_leaves_ends_before_its_end_is_reported(worker: LiveWorker) -> None:
    started = pids(worker, "detach")
    worker.ask("die", b"SIGSEGV")
    assert worker.end() == -signal.SIGSEGV
    assert not any(map(is_running, started))


# Above the fork server.


@pytest.fixture
def own(hostile: Path) -> Iterator[LiveForkServer]:
    """A fork server for a test that ends it."""
    with live() as server:
        server.begin(hostile)
        yield server


def test_cutting_the_lifeline_of_the_fork_server_kills_all_workers_too(own: LiveForkServer) -> None:
    workers = [own.worker() for _ in range(2)]
    started = [own.pid, *(worker.pid for worker in workers), *pids(workers[0], "detach")]
    own.cut_lifeline()
    assert own.end() == (-signal.SIGKILL, b"")
    assert not any(map(is_running, started))
    assert [worker.end() for worker in workers] == [None, None]


def test_a_fork_server_that_is_killed_takes_all_workers_along(own: LiveForkServer) -> None:
    worker = own.worker()
    started = [worker.pid, *pids(worker, "detach")]
    os.kill(own.pid, signal.SIGKILL)
    assert own.end() == (-signal.SIGKILL, b"")
    assert not any(map(is_running, started))


def test_a_fork_server_dies_with_its_reaper_and_workers_can_still_be_ended(own: LiveForkServer) -> None:
    worker, pid = own.worker(), own.pid
    os.kill(own.process.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert worker.text("upper", b"a") == "A"
    worker.kill()
    assert worker.end() == -signal.SIGKILL


def test_when_the_reaper_of_the_fork_server_is_gone_the_last_worker_removes_its_folder(own: LiveForkServer) -> None:
    workers = [own.worker() for _ in range(2)]
    folder = Path(workers[0].text("folder")).parents[1]
    os.kill(own.process.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(own.process.pid))
    for worker in workers:
        assert folder.is_dir()
        worker.kill()
        worker.end()
    wait_until(lambda: not folder.exists())


def test_its_folder_is_gone_with_it(own: LiveForkServer) -> None:
    folder = Path(own.worker().text("folder")).parents[1]
    assert folder.is_dir()
    own.cut_lifeline()
    own.end()
    assert not folder.exists()


def test_where_the_system_cannot_fork_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with live(
        "import os; from xformd.runners import reaper; os.fork = lambda: os.open('/no', 0); reaper.main()"
    ) as own:
        status, printed = own.end()
    assert (status, [*tmp_path.iterdir()]) == (1, [])
    assert b"FileNotFoundError" in printed


def test_without_a_folder_for_temporary_files_jobs_have_theirs_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    folder = module._make_folder()
    assert folder.parent == Path("/dev/shm")
    folder.rmdir()


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


def test_a_worker_that_the_system_cannot_fork_is_reported(
    ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "keep", Mock(side_effect=OSError(errno.EAGAIN, "no more processes")))
    folder = tmp_path / "1"
    folder.mkdir()
    server, lifeline = os.pipe()
    with pytest.raises(EndedError):
        module.keep_worker(lifeline, Mock(), (), folder)
    gc.enable()
    os.close(lifeline)
    assert os.read(server, 100) == b"the system cannot fork: no more processes"
    os.close(server)
    assert ends == [("exit", 0)]
    assert not folder.exists()


def test_only_the_end_of_its_lifeline_kills_the_worker() -> None:
    (wakeups, waker), (lifeline, server) = os.pipe(), os.pipe()
    with subprocess.Popen(["sleep", "1000"]) as worker:
        os.write(server, b"still here")
        os.write(waker, b"?")  # a signal, but no child has ended
        os.close(server)
        assert os.WTERMSIG(module._watch(worker.pid, lifeline, wakeups)) == signal.SIGKILL
        worker.returncode = -signal.SIGKILL
    for descriptor in (wakeups, waker, lifeline):
        os.close(descriptor)


GROUP = """
import subprocess
from xformd.runners import reaper
worker = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], start_new_session=True)
worker.wait()
reaper.child_pids = set
reaper._sweep(worker.pid)
"""


def test_without_proc_the_workers_group_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", GROUP], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    wait_until(lambda: not is_running(child))


def test_without_proc_it_knows_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert child.pid in process_state.child_pids()
        monkeypatch.setattr(process_state, "Path", lambda _: Path("/no/such/file"))
        assert process_state.child_pids() == set()
        child.kill()
