"""The fork server, as a real process: it imports the plugins once, says which, and forks workers that have them."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.live import LiveForkServer, children, descriptors, is_running, live
from support.processes import wait_until
from xformd.runners import fork_server as module
from xformd.runners import messages
from xformd.wire import netstring

PLUGIN = """
import os, sys
import xformd

{code}

def load():
    {load}

@xformd.transform(warm_up=load)
def {name}(poem: str) -> str:
    return {result}

@xformd.hookimpl
def xformd_transforms():
    return [{name}]
"""


@pytest.fixture
def forking() -> Iterator[LiveForkServer]:
    """A fork server that has no setup yet."""
    with live() as server:
        yield server


def write(folder: Path, name: str, code: str = "", result: str = "poem", load: str = "") -> tuple[str, str]:
    """Write a plugin with one transform of its name, which it warms up if there is something to ``load``."""
    source = PLUGIN.format(name=name, code=code, result=result, load=load or "pass")
    (folder / f"{name}.py").write_text(source if load else source.replace("(warm_up=load)", ""))
    return f"{name}.py", name


def states(forking: LiveForkServer) -> dict[str, tuple[str, str]]:
    """Return the state and the reason of each plugin that is no built-in, as a worker lists them."""
    plugins = forking.worker().hello.listing["plugins"]
    return {one["name"]: (one["state"], one["reason"]) for one in plugins if one["distribution"] != "xformd"}


# Loading.


def test_it_names_each_plugin_before_it_imports_it_and_all_workers_have_the_same(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    for name in ("owl", "cat"):
        write(tmp_path, name, code="PID = os.getpid()", result="str(PID)")
    *loading, loaded = forking.begin(tmp_path)
    assert sorted(news["loading"] for news in loading) == [["cat.py", "cat"], ["owl.py", "owl"]]
    assert loaded == {"loaded": True, "pid": forking.pid}
    workers = [forking.worker() for _ in range(2)]
    assert {worker.text("owl") for worker in workers} == {str(forking.pid)}
    assert len({worker.pid for worker in workers} | {forking.pid}) == 3


@pytest.mark.parametrize(
    ("code", "status"),
    [("os.abort()", -signal.SIGABRT), ("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_a_plugin_that_ends_it_is_the_last_one_that_it_has_named(
    forking: LiveForkServer, tmp_path: Path, code: str, status: int
) -> None:
    key = write(tmp_path, "owl", code=code)
    with pytest.raises(EOFError):
        forking.begin(tmp_path)
    assert forking.end()[0] == status
    with live() as again:
        again.begin(tmp_path, left_out={key: ("failed", "ends its process")})
        assert states(again) == {"owl": ("failed", "ends its process")}


def test_a_plugin_that_fails_fails_alone_and_prints_to_the_log(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "owl", code="print('hoo'); sys.exit('no')")
    write(tmp_path, "cat")
    forking.begin(tmp_path)
    assert states(forking) == {"owl": ("failed", "import of owl.py failed: SystemExit: no"), "cat": ("active", "")}
    forking.finish()
    assert forking.end() == (0, b"hoo\n")


def test_a_plugin_states_its_own_time(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "owl", code="xformd.set_load_timeout(300)")
    assert {"timeout_s": 300.0} in forking.begin(tmp_path)


THREAD = "import threading, time; threading.Thread(target=time.sleep, args=({seconds},), daemon=True).start()"


def test_plugins_that_leave_threads_are_named_when_all_are_loaded(forking: LiveForkServer, tmp_path: Path) -> None:
    key = write(tmp_path, "owl", code=THREAD.format(seconds=1000))
    write(tmp_path, "cat")
    *_, late = forking.begin(tmp_path)
    assert late == {"late": [list(key)]}
    assert forking.end()[0] == 0


def test_a_thread_that_is_about_to_end_is_waited_for(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "owl", code=THREAD.format(seconds=0.02))
    *_, loaded = forking.begin(tmp_path)
    assert "loaded" in loaded


def test_late_plugins_are_not_imported_here(forking: LiveForkServer, tmp_path: Path) -> None:
    key = write(tmp_path, "owl", code="PID = os.getpid()", result="str(PID)")
    assert [news.keys() for news in forking.begin(tmp_path, late=frozenset({key}))] == [{"loaded", "pid"}]
    worker = forking.worker()
    assert worker.text("owl") == str(worker.pid)


def test_what_a_plugin_does_to_its_process_does_not_last_and_what_lasts_is_a_warning(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    code = """
import signal, socket, subprocess
os.chdir("/")
os.umask(0o777)
os.environ["OWL"] = "1"
socket.setdefaulttimeout(3)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.stdout = None
child = subprocess.Popen(["sleep", "1000"])
"""
    write(tmp_path, "owl", code=code, result="f'{child.pid} {os.environ.get(chr(79))} {socket.getdefaulttimeout()}'")
    news = forking.begin(tmp_path)
    assert {"warning": "plugin owl.py (owl) left a process running"} in news
    child, owl, timeout = forking.worker().text("owl").split()
    assert (owl, timeout) == ("None", "None")
    assert is_running(int(child))  # it is the plugin's own, and all workers have it
    os.kill(forking.pid, signal.SIGTERM)
    assert forking.worker().text("upper", b"a") == "A"
    forking.finish()
    assert forking.end()[0] == 0
    assert not is_running(int(child))


def test_what_cannot_be_put_back_is_no_thread_whatever_its_name(forking: LiveForkServer, tmp_path: Path) -> None:
    code = """
import threading

class Incomparable:
    def __call__(self, *_): pass
    def __ne__(self, other): raise ValueError

threading.setprofile(Incomparable())
"""
    write(tmp_path, "owl", code=code)
    news = forking.begin(tmp_path)
    warning = "plugin owl.py (owl) changed what cannot be put back: profile function of threads"
    assert {"warning": warning} in news
    assert not [each for each in news if "late" in each]


@pytest.mark.parametrize("data", [b"rubbish", netstring.encode(b"rubbish")])
def test_a_malformed_setup_is_logged(forking: LiveForkServer, data: bytes) -> None:
    forking.control.sendall(data)
    status, printed = forking.end()
    assert status == 1
    assert b"Error" in printed


@pytest.mark.parametrize(
    ("folder", "error"),
    [("/no/such/folder", b"plugins_dir: no such folder"), ("/" + "x" * 5_000, b"OSError")],
    ids=["missing", "unreadable"],
)
def test_a_plugin_folder_that_cannot_be_read_is_logged(forking: LiveForkServer, folder: str, error: bytes) -> None:
    with pytest.raises(EOFError):
        forking.begin(Path(folder))
    status, printed = forking.end()
    assert status == 1
    assert error in printed


# Warm-ups.


def test_plugins_are_warmed_up_once_all_are_imported_and_workers_share_what_they_have_loaded(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    keys = [write(tmp_path, name, load="globals()['PID'] = os.getpid()", result="str(PID)") for name in ("cat", "owl")]
    *news, loaded = forking.begin(tmp_path)
    assert news == [{what: list(key)} for what in ("loading", "warming_up") for key in keys]
    assert "loaded" in loaded
    assert [forking.worker().text(name) for name in ("cat", "owl", "owl")] == [str(forking.pid)] * 3


def test_a_warm_up_that_fails_fails_its_plugin_alone_and_prints_to_the_log(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    write(tmp_path, "owl", load="print('hoo'); sys.exit('no')")
    write(tmp_path, "cat", load="os.chdir('/')")
    forking.begin(tmp_path)
    assert states(forking) == {"owl": ("failed", "warm-up of owl failed: SystemExit: no"), "cat": ("active", "")}
    forking.finish()
    assert forking.end() == (0, b"hoo\n")


def test_a_plugin_whose_warm_up_ends_the_process_is_the_last_one_that_it_has_named(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    key = write(tmp_path, "owl", load="os.abort()")
    forking.send_setup(tmp_path)
    news = {"warming_up": list(key)}
    assert any(messages.decode_news(forking.receive()) == news for _ in range(10))  # after the imports
    with pytest.raises(EOFError):
        forking.receive()
    assert forking.end()[0] == -signal.SIGABRT


def test_a_warm_up_that_leaves_threads_is_left_to_each_worker_and_the_import_is_not(
    forking: LiveForkServer, tmp_path: Path
) -> None:
    load = THREAD.format(seconds=1000) + "; globals()['PIDS'].append(os.getpid())"
    key = write(tmp_path, "owl", code="PIDS = [os.getpid()]", load=load, result="' '.join(map(str, PIDS))")
    write(tmp_path, "cat", load="pass")
    *_, warming_up, late = forking.begin(tmp_path)
    assert (warming_up, late) == ({"warming_up": list(key)}, {"late": [list(key)]})
    assert forking.end()[0] == 0
    with live() as again:
        news = again.begin(tmp_path, late_warm_up=frozenset({key}))
        assert {"warming_up": list(key)} not in news
        worker = again.worker()
        assert worker.news == [{"warming_up": list(key)}]
        assert worker.text("owl") == f"{again.pid} {worker.pid}"


def test_nothing_is_warmed_up_where_an_import_has_left_threads(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "cat", load="pass")
    write(tmp_path, "owl", code=THREAD.format(seconds=1000))
    assert not [news for news in forking.begin(tmp_path) if "warming_up" in news]


def test_only_the_transforms_that_somebody_wants_are_warmed_up(forking: LiveForkServer, tmp_path: Path) -> None:
    for name in ("cat", "owl"):
        write(tmp_path, name, load="pass")
    news = forking.begin(tmp_path, warm_ups=frozenset({"owl"}))
    assert [each for each in news if "warming_up" in each] == [{"warming_up": ["owl.py", "owl"]}]


def test_each_warm_up_may_take_as_much_memory_as_a_job(forking: LiveForkServer, tmp_path: Path) -> None:
    """Whatever others have loaded; the fork server itself has no limit afterwards."""
    for name, megabytes in (("ant", 150), ("bee", 150), ("cat", 250)):
        write(tmp_path, name, load=f"globals()['MODEL'] = bytearray({megabytes} << 20)", result="str(len(MODEL))")
    forking.begin(tmp_path, memory_bytes=200 << 20)
    failed = ("failed", "warm-up of cat failed: MemoryError; worker_memory_bytes is too low for it")
    assert states(forking) == {"ant": ("active", ""), "bee": ("active", ""), "cat": failed}
    assert forking.worker().text("ant") == str(150 << 20)


def test_a_warm_up_may_ask_for_time(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "owl", load="xformd.set_load_timeout(300)")
    assert {"timeout_s": 300.0} in forking.begin(tmp_path)


# Forking.


def test_workers_are_forked_one_after_the_other_and_end_alone(forking: LiveForkServer, hostile: Path) -> None:
    forking.begin(hostile)
    workers = [forking.fork() for _ in range(5)]
    for worker in workers:
        worker.begin()
    workers[0].ask("die", b"SIGSEGV")
    workers[1].kill()
    assert [worker.end() for worker in workers[:2]] == [-signal.SIGSEGV, -signal.SIGKILL]
    wait_until(lambda: len(children(forking.pid)) == 3)
    assert [worker.text("upper", b"a") for worker in workers[2:]] == ["A"] * 3


def test_it_keeps_no_descriptor_of_a_worker(forking: LiveForkServer, hostile: Path) -> None:
    forking.begin(hostile)
    forking.worker()
    before = descriptors(forking.pid)
    for _ in range(3):
        forking.worker()
    assert descriptors(forking.pid) == before


def test_a_killed_reaper_leaves_nothing_of_its_worker(forking: LiveForkServer, hostile: Path) -> None:
    forking.begin(hostile)
    worker, other = forking.worker(), forking.worker()
    pid, reaper, _ = map(int, worker.text("pids").split())
    detached = list(map(int, worker.text("detach").split()))
    os.kill(reaper, signal.SIGKILL)
    assert worker.end() is None
    wait_until(lambda: not any(map(is_running, [pid, *detached])))
    assert other.text("upper", b"a") == "A"
    wait_until(lambda: len(children(forking.pid)) == 1)


def test_a_system_that_cannot_fork_is_told(forking: LiveForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    del forking  # in this process: which user the tests run as decides whether a limit holds
    ours, control = socket.socketpair()
    lifeline, theirs = socket.socketpair()

    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("os.fork", fork)
    server = object.__new__(module._ForkServer)
    server._control = control
    with ours, control, lifeline, theirs:
        copies = [os.dup(theirs.fileno()) for _ in range(3)]
        socket.send_fds(ours, [b"."], copies)
        for copy in copies:
            os.close(copy)
        server._fork_worker(None, "")  # type: ignore[arg-type]
        assert lifeline.recv(100) == b"the system cannot fork: Resource temporarily unavailable"


# Its end.


def test_it_ends_when_the_server_closes_its_socket(forking: LiveForkServer, hostile: Path) -> None:
    forking.begin(hostile)
    worker = forking.worker()
    forking.control.close()
    assert forking.end() == (0, b"")
    assert not is_running(worker.pid)


def test_it_ends_when_the_server_is_gone_while_it_loads(forking: LiveForkServer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    write(tmp_path, "owl", code=f"open({str(gate)!r}).read()")
    forking.send_setup(tmp_path)
    with gate.open("w"):  # it waits for a reader: the import has begun
        forking.control.close()
    assert forking.end()[0] == 1


def test_an_orderly_end_runs_the_exit_handlers_of_its_plugins_once(forking: LiveForkServer, tmp_path: Path) -> None:
    """A folder that a plugin makes when it is imported belongs to all workers, and is not left behind."""
    code = "import atexit, tempfile; folder = tempfile.TemporaryDirectory(); atexit.register(print, 'so long')"
    write(tmp_path, "owl", code=code, result="folder.name")
    forking.begin(tmp_path)
    workers = [forking.worker() for _ in range(2)]
    folder = Path(workers[0].text("owl"))
    workers[0].retire()
    assert workers[0].end() == 1
    assert workers[0].printed() == b""
    assert folder.is_dir()
    assert workers[1].text("owl") == str(folder)
    forking.finish()
    assert forking.end() == (0, b"so long\n")
    assert not folder.exists()


def test_an_exit_handler_that_raises_does_not_keep_it(forking: LiveForkServer, tmp_path: Path) -> None:
    write(tmp_path, "owl", code="import atexit; atexit.register(lambda: 1 / 0)")
    forking.begin(tmp_path)
    forking.finish()
    status, printed = forking.end()
    assert status == 0
    assert b"ZeroDivisionError" in printed
