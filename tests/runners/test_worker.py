"""A worker, as a real process: it says hello, answers one job after the other, and leaves no trace of any."""

import json
import re
import resource
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from support.live import LiveForkServer, LiveWorker, is_running, live
from xformd import BadOptions, GibberishError, NoSuchTransform, TooLarge, TransformDied, TransformFailed, Unavailable
from xformd.runners import messages
from xformd.runners import worker as module


@pytest.fixture(scope="module")
def forking(hostile: Path) -> Iterator[LiveForkServer]:
    """A fork server that has loaded the plugin of transforms that misbehave."""
    with live() as server:
        server.begin(hostile)
        yield server


@pytest.fixture(scope="module")
def shared(forking: LiveForkServer) -> LiveWorker:
    """A worker for tests that leave it alive."""
    return forking.worker()


@pytest.fixture
def worker(forking: LiveForkServer) -> LiveWorker:
    """A worker for a test that ends it."""
    return forking.worker()


@pytest.fixture
def own() -> Iterator[LiveForkServer]:
    """A fork server that has no setup yet."""
    with live() as server:
        yield server


def test_its_hello_has_its_pid_and_its_transforms(shared: LiveWorker) -> None:
    assert shared.text("pids").split()[0] == str(shared.hello.pid)
    names = {described["name"] for described in shared.hello.listing["transforms"]}
    assert {"shout", "upper"} <= names


def test_it_answers_one_job_after_the_other(shared: LiveWorker) -> None:
    assert shared.xform("shout:marks=2", "é".encode()) == "É!!".encode()
    assert shared.xform("upper", b"x" * 900_000) == b"X" * 900_000
    assert shared.xform("upper") == b""


@pytest.mark.parametrize("poem", [b"return", b"raise"])
def test_a_forked_child_does_not_answer_too(shared: LiveWorker, poem: bytes) -> None:
    for _ in range(3):
        assert shared.xform("twofold", poem) == poem
        assert shared.xform("shout", b"a") == b"A!"


def test_it_names_each_step_but_the_first(shared: LiveWorker) -> None:
    asked = shared.ask("shout+shout+shout", b"a")
    assert [messages.decode_note(shared.receive()) for _ in range(2)] == [("step", asked, 1), ("step", asked, 2)]
    assert shared.answer() == b"A!!!"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("refuse", GibberishError, "not in my house"),
        ("nope", NoSuchTransform, "no transform 'nope' here"),
        ("shout:loud=1", BadOptions, "shout has no option 'loud'"),
        ("shout:marks=x", BadOptions, "shout: option 'marks' takes a whole number"),
        ("grow", TooLarge, "the result of grow has 1000001 bytes; the limit is 1000000 bytes"),
        ("grow-text", TooLarge, "the result of grow-text has at least 1000001 bytes; the limit is 1000000 bytes"),
        ("broken", TransformFailed, "broken raised ValueError"),
        ("leave", TransformFailed, "leave raised SystemExit"),
        ("wrong", TransformFailed, "wrong returned int where it must return str"),
    ],
)
def test_an_error_is_answered_and_the_next_job_runs(shared: LiveWorker, spec: str, kind: type, message: str) -> None:
    error = shared.xform(spec, b"poem")
    assert isinstance(error, kind)
    assert message in str(error)
    assert shared.xform("upper", b"a") == b"A"


def test_a_result_between_two_steps_is_held_to_the_limit_too(shared: LiveWorker) -> None:
    assert isinstance(shared.xform("grow+upper"), TooLarge)  # with no second step's name before it


def test_what_cannot_fit_is_refused_before_its_first_step(shared: LiveWorker) -> None:
    assert shared.xform("double", b"x" * 500_000) == b"x" * 1_000_000
    shared.ask("double+double+broken", b"x" * 250_001)
    error = shared.answer()  # at once, with no step's name before it
    assert isinstance(error, TooLarge)
    assert error.message == "the result of double would have at least 1000004 bytes; the limit is 1000000 bytes"


def test_a_traceback_comes_before_the_refusal_and_without_its_message(worker: LiveWorker) -> None:
    for spec, error in (("broken", "ValueError"), ("leave", "SystemExit")):
        asked = worker.ask(spec, b"poem")
        raised = messages.decode_news(worker.receive()) or {}
        assert (raised["raised"], raised["error"], raised["detail"]) == (asked, error, "")
        assert f", in {spec}\n{error}" in raised["traceback"]
        assert "no poem" not in raised["traceback"]
        assert isinstance(worker.answer(), TransformFailed)
    worker.channel.close()
    assert worker.printed() == b""


def test_who_runs_it_at_home_is_told_in_full_what_a_transform_raised(own: LiveForkServer, hostile: Path) -> None:
    own.begin(hostile, shows_errors=True)
    worker = own.worker()
    worker.ask("broken", b"poem")
    raised = messages.decode_news(worker.receive()) or {}
    assert re.fullmatch(r"no \\x00 poem \(.*/hostile\.py, line \d+: raise ValueError\(.*\)\)", raised["detail"])


def test_an_expected_refusal_has_no_traceback(shared: LiveWorker) -> None:
    shared.ask("refuse")
    assert messages.decode_news(shared.receive()) is None


def test_its_output_goes_to_the_log_and_never_to_the_channel(worker: LiveWorker) -> None:
    assert worker.xform("gossip", b"poem") == b"poem"
    worker.channel.close()
    assert worker.printed() == b"to print poem\nto descriptor 1\nto stderr\n"


# Memory.


def test_a_worker_without_memory_says_so_and_ends(worker: LiveWorker) -> None:
    error = worker.xform("hoard")
    assert isinstance(error, TransformDied)
    assert str(error) == f"hoard ran out of memory; worker_memory_bytes is {2**30} bytes"
    assert worker.end() == 0


def test_a_transforms_own_memory_limit_is_named(worker: LiveWorker) -> None:
    assert worker.xform("modest", b"50000000") == b"50000000"
    assert worker.xform("upper", b"a") == b"A"
    error = worker.xform("modest", b"200000000")
    assert str(error) == "modest ran out of memory; its own limit is 100000000 bytes"
    assert worker.end() == 0


HOARDERS = '''
import threading
import xformd

kept = []


def transform(function):
    return xformd.transform(memory=60_000_000)(function)


@transform
def crumbs(poem: str) -> str:
    """Keep small objects, so that nothing is freed when they are too many."""
    while True:
        kept.append([None])


@transform
def clumsy(poem: str) -> str:
    """Run out of memory again while handling that."""
    try:
        while True:
            kept.append(bytes(100_000))
    except MemoryError:
        return str([b"x" * 1_000_000 for _ in range(200)])


@transform
def rewording(poem: str) -> str:
    """Raise something else because of it."""
    try:
        return "x" * 100_000_000
    except MemoryError as error:
        raise ValueError("no room") from error


@transform
def strings(poem: str) -> str:
    """Return what does not fit beside its encoded form."""
    return "x" * 45_000_000


@transform
def in_a_finally(poem: str) -> str:
    """Hold memory in a frame that cleans up with more of it."""
    held = []
    try:
        while True:
            held.append(bytes(1_000))
    finally:
        held.append(repr(held))


@xformd.hookimpl
def xformd_transforms():
    return [crumbs, clumsy, rewording, strings, in_a_finally]
'''


@pytest.mark.parametrize("name", ["crumbs", "clumsy", "rewording", "strings", "in-a-finally"])
def test_out_of_memory_is_told_as_that_also_when_handling_it_runs_out(
    own: LiveForkServer, tmp_path: Path, name: str
) -> None:
    (tmp_path / "hoarders.py").write_text(HOARDERS)
    own.begin(tmp_path, max_result_bytes=50_000_000)
    worker = own.worker()
    assert str(worker.xform(name)) == f"{name} ran out of memory; its own limit is 60000000 bytes"
    assert worker.end() == 0


def test_the_operators_memory_limit_holds_from_the_import_on(
    own: LiveForkServer, hostile: Path, tmp_path: Path
) -> None:
    (tmp_path / "glutton.py").write_text("hoard = bytes(600_000_000)")
    (tmp_path / "hostile.py").write_text((hostile / "hostile.py").read_text())
    own.begin(tmp_path, memory_bytes=2**29)
    worker = own.worker()
    (reason,) = [plugin["reason"] for plugin in worker.hello.listing["plugins"] if plugin["name"] == "glutton"]
    assert "MemoryError" in reason
    assert worker.xform("upper", b"a") == b"A"
    error = worker.xform("greedy", b"600000000")
    assert str(error) == f"greedy ran out of memory; worker_memory_bytes is {2**29} bytes"


def test_one_transforms_memory_limit_does_not_bind_the_next(worker: LiveWorker) -> None:
    asked = worker.ask("modest+hoard", b"1")
    assert messages.decode_note(worker.receive()) == ("step", asked, 1)
    assert f"worker_memory_bytes is {2**30} bytes" in str(worker.answer())


def test_one_transforms_memory_limit_does_not_bind_the_next_poem(own: LiveForkServer, hostile: Path) -> None:
    own.begin(hostile, max_request_bytes=60_000_000, max_result_bytes=60_000_000)
    worker = own.worker()
    assert worker.xform("tiny", b"a") == b"a"
    poem = b"x" * 30_000_000
    assert worker.xform("upper", poem) == poem.upper()


def test_address_space_and_threads_are_no_memory(worker: LiveWorker) -> None:
    """JVMs and the heaps of threads reserve much and use little, and the next job must not pay for them."""
    assert worker.xform("reserve") == b"%d" % 2**36
    assert worker.xform("crowd", b"a") == b"a"
    assert worker.xform("modest", b"50000000") == b"50000000"


# What a job finds, and leaves.


def look(worker: LiveWorker) -> dict[str, Any]:
    seen: dict[str, Any] = json.loads(worker.text("look"))
    return seen


def test_a_job_finds_the_process_as_the_first_one_did(worker: LiveWorker) -> None:
    first = look(worker)
    assert (first["files"], first["children"], first["descriptors"]) == ([], "", [True] * 3)
    for _ in range(2):
        child = int(worker.text("meddle"))
        assert not is_running(child)
        assert look(worker) == first


def test_why_a_job_cannot_have_a_folder_is_for_the_log_alone(own: LiveForkServer, hostile: Path) -> None:
    own.begin(hostile)
    worker = own.worker()
    folder = Path(worker.text("folder")).parent
    shutil.rmtree(folder)
    folder.touch()  # no disk is full here
    error = worker.xform("folder")
    assert (type(error), str(error)) == (Unavailable, "the job cannot have a folder; the server's log says why")
    worker.kill()
    assert b"a job cannot have a folder: Not a directory" in worker.printed()
    folder.unlink()


def test_each_job_has_an_empty_folder_of_its_own_that_is_gone_afterwards(worker: LiveWorker) -> None:
    folders = [Path(worker.text("folder", b"the owl")) for _ in range(2)]
    assert folders[0] != folders[1]
    assert not any(folder.exists() for folder in folders)
    asked = worker.ask("folder+block", b"the owl")
    assert messages.decode_note(worker.receive()) == ("step", asked, 1)
    (folder,) = folders[0].parent.iterdir()
    assert (folder / "kept").read_text() == "the owl"
    assert folder.stat().st_mode & 0o777 == 0o700
    worker.kill()
    worker.end()
    assert not folder.parent.exists()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_child_that_a_transform_forks_can_be_terminated(shared: LiveWorker, number: str) -> None:
    assert shared.text("terminate", number.encode()) == str(-getattr(signal, number))


def test_workers_do_not_draw_the_same_random_numbers(forking: LiveForkServer) -> None:
    assert len({forking.worker().text("luck") for _ in range(3)}) == 3


NUMPY = """
import random, sys, types
import xformd
numpy = sys.modules["numpy.random"] = types.ModuleType("numpy.random")
generator = random.Random(1)
numpy.seed, numpy.random = generator.seed, generator.random

@xformd.transform
def draw(poem: str) -> str:
    drawn = numpy.random()
    numpy.seed(1)
    return str(drawn)

@xformd.hookimpl
def xformd_transforms():
    return [draw]
"""


def test_workers_and_jobs_do_not_draw_the_same_numbers_from_numpy_either(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(NUMPY)
    with live() as server:
        server.begin(tmp_path)
        workers = [server.worker() for _ in range(2)]
        assert len({worker.text("draw") for worker in workers * 2}) == 4


def test_the_kernel_ends_a_worker_before_the_server(shared: LiveWorker) -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(shared.text("badness")) == min(1_000, own + 500)


# Its end.


def test_a_worker_that_ends_in_order_runs_its_exit_handlers(worker: LiveWorker) -> None:
    worker.text("farewell", b"so long")
    worker.retire()
    assert worker.end() == 1
    assert worker.printed() == b"so long\n"


def test_a_worker_whose_exit_handlers_hang_can_be_killed(worker: LiveWorker) -> None:
    worker.text("linger")
    worker.retire()
    worker.kill()
    assert worker.end() == -signal.SIGKILL


def test_it_ends_when_the_server_is_gone_even_in_the_middle_of_an_answer(worker: LiveWorker) -> None:
    worker.ask("upper", b"x" * 900_000)
    worker.channel.close()
    assert worker.end() == 1
    assert worker.printed() == b""


@pytest.mark.parametrize(
    ("spec", "poem", "status"),
    [("close-all", b"", 1), ("die", b"SIGSEGV", -signal.SIGSEGV), ("die", b"7", 7)],
    ids=["channel", "signal", "exit"],
)
def test_it_ends_by_what_a_transform_does(worker: LiveWorker, spec: str, poem: bytes, status: int) -> None:
    worker.ask(spec, poem)
    with pytest.raises(EOFError):
        worker.receive()
    assert worker.end() == status


def test_what_it_cannot_take_is_logged(worker: LiveWorker) -> None:
    worker.channel.sendall(b"rubbish")
    assert worker.end() == 1
    assert b"NetstringError" in worker.printed()


# Plugins that each worker imports.

LATE = """
import threading, time
import xformd
thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
thread.start()
xformd.set_load_timeout(300)

@xformd.transform
def threads(poem: str) -> str:
    return str(thread.is_alive())

@xformd.hookimpl
def xformd_transforms():
    return [threads]
"""


def test_a_worker_imports_what_leaves_threads_and_says_so(own: LiveForkServer, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    assert [news.keys() for news in own.begin(tmp_path, late=frozenset({("late.py", "late")}))] == [{"loaded", "pid"}]
    for _ in range(2):
        worker = own.worker()
        assert worker.news == [{"loading": ["late.py", "late"]}, {"timeout_s": 300.0}]
        assert worker.text("threads") == "True"


def test_a_late_plugin_that_fails_fails_alone(own: LiveForkServer, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("raise ValueError('no')")
    own.begin(tmp_path, late=frozenset({("late.py", "late")}))
    worker = own.worker()
    states = {plugin["name"]: plugin["state"] for plugin in worker.hello.listing["plugins"]}
    assert (states["late"], worker.text("upper", b"a")) == ("failed", "A")


def test_a_late_plugin_that_crashes_ends_its_worker_after_it_was_named(own: LiveForkServer, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import os; os.abort()")
    own.begin(tmp_path, late=frozenset({("late.py", "late")}))
    worker = own.fork()
    with pytest.raises(EOFError):
        worker.begin()
    assert worker.news == [{"loading": ["late.py", "late"]}]
    assert worker.end() == -signal.SIGABRT


WARM = """
import os
import xformd

MODELS = []

def load():
    {load}

@xformd.transform(warm_up=load, warm_up_in="worker", memory=100 << 20)
def warm(poem: str) -> str:
    return f"{{len(MODELS)}} {{len(bytearray(int(poem or 0)))}}"

@xformd.hookimpl
def xformd_transforms():
    return [warm]
"""


def warm(own: LiveForkServer, folder: Path, load: str, **setup: Any) -> LiveWorker:
    """Ask for a worker that has a transform to warm up."""
    (folder / "warm.py").write_text(WARM.format(load=load))
    news = own.begin(folder, **setup)
    assert not [each for each in news if "warming_up" in each]  # not in the fork server
    return own.fork()


def test_a_worker_warms_up_what_is_for_workers_before_it_says_hello(own: LiveForkServer, tmp_path: Path) -> None:
    for worker in (warm(own, tmp_path, "MODELS.append(os.getpid())"), own.fork()):
        assert worker.begin().news == [{"warming_up": ["warm.py", "warm"]}]
        assert worker.text("warm") == worker.text("warm") == "1 0"


def test_a_warm_up_that_fails_in_a_worker_is_in_its_listing(own: LiveForkServer, tmp_path: Path) -> None:
    worker = warm(own, tmp_path, "raise SystemExit('no')").begin()
    (failed,) = (each for each in worker.hello.listing["plugins"] if each["state"] == "failed")
    assert failed["reason"] == "warm-up of warm failed: SystemExit: no"
    assert isinstance(worker.xform("warm"), NoSuchTransform)
    assert worker.text("upper", b"a") == "A"


def test_a_warm_up_that_crashes_ends_its_worker_after_it_was_named(own: LiveForkServer, tmp_path: Path) -> None:
    worker = warm(own, tmp_path, "os.abort()")
    with pytest.raises(EOFError):
        worker.begin()
    assert worker.news == [{"warming_up": ["warm.py", "warm"]}]
    assert worker.end() == -signal.SIGABRT


def test_what_a_worker_loads_to_warm_up_is_no_memory_of_its_jobs(own: LiveForkServer, tmp_path: Path) -> None:
    """Each may have as much; a transform here no more than 100 MiB."""
    worker = warm(own, tmp_path, "MODELS.append(bytearray(150 << 20))", memory_bytes=200 << 20).begin()
    assert worker.text("warm", b"%d" % (90 << 20)) == f"1 {90 << 20}"
    assert isinstance(worker.xform("warm", b"%d" % (110 << 20)), TransformDied)


def test_a_warm_up_in_a_worker_that_needs_too_much_memory_names_the_setting(
    own: LiveForkServer, tmp_path: Path
) -> None:
    worker = warm(own, tmp_path, "MODELS.append(bytearray(250 << 20))", memory_bytes=200 << 20).begin()
    (failed,) = (each for each in worker.hello.listing["plugins"] if each["state"] == "failed")
    assert failed["reason"] == "warm-up of warm failed: MemoryError; worker_memory_bytes is too low for it"


def test_a_plugin_that_each_worker_imports_is_warmed_up_there(own: LiveForkServer, tmp_path: Path) -> None:
    source = LATE.replace("@xformd.transform", "def load():\n    pass\n\n@xformd.transform(warm_up=load)")
    (tmp_path / "late.py").write_text(source)
    own.begin(tmp_path, late=frozenset({("late.py", "late")}))
    worker = own.worker()
    key = ["late.py", "late"]
    assert worker.news == [{"loading": key}, {"timeout_s": 300.0}, {"warming_up": key}]
    assert worker.text("threads") == "True"


# In this process, for what would need a machine set up for it.


def test_a_broken_channel_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"unread")
        ours.close()
        with pytest.raises(module._Gone):
            module._Channel(theirs, 1_000).receive()


@pytest.mark.parametrize(
    ("hard", "wanted", "expected"),
    [
        (resource.RLIM_INFINITY, 5, 5),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        (10, 5, 5),
        (10, 11, 10),
        (10, resource.RLIM_INFINITY, 10),
    ],
)
def test_the_system_may_allow_less_memory(
    monkeypatch: pytest.MonkeyPatch, hard: int, wanted: int, expected: int
) -> None:
    setrlimit = Mock()
    monkeypatch.setattr("resource.getrlimit", lambda _: (1, hard))
    monkeypatch.setattr("resource.setrlimit", setrlimit)
    module.limit_memory(wanted)
    setrlimit.assert_called_once_with(resource.RLIMIT_DATA, (expected, hard))


def test_what_counts_as_memory_is_known_without_proc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = module.data_bytes()
    kept = bytearray(50_000_000)
    assert module.data_bytes() - before >= len(kept)
    monkeypatch.setattr("os.open", Mock(side_effect=FileNotFoundError))
    assert module.data_bytes() == 0
