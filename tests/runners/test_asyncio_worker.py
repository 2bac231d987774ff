"""Batches and jobs on asyncio in a worker, as a real process."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.live import LiveForkServer, LiveWorker, is_running, live
from xformd import GibberishError, TooLarge
from xformd.errors import Cancelled

SOURCE = '''
import asyncio, contextvars, json, os, signal, subprocess, threading, time
from pathlib import Path
import xformd
from twisted.internet.defer import Deferred

own = contextvars.ContextVar("own", default="nobody")


@xformd.transform(batch=8)
def together(poems: list[str], *, repeat: int = 1) -> list[str]:
    """Say with whom."""
    if "crash" in poems:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "raise" in poems:
        raise ValueError("the poem")
    if "no" in poems:
        raise xformd.GibberishError("no poem")
    if "hoard" in poems:
        [bytearray(100_000_000) for _ in range(100)]
    results = [f"{poem} of {len(poems)}" * repeat for poem in poems if poem != "lost"]
    return [3 if poem.startswith("wrong") else "x" * 1_000_001 if poem.startswith("long") else poem for poem in results]


@xformd.transform(batch=8, accepts="text/markdown")
def files_of_batch(poems: list[Path]) -> list[Path]:
    results = [Path(f"{poem.stem}.out") for poem in poems]
    for poem, result in zip(poems, results):
        result.write_text(f"{poem.name}: {poem.read_text()}")
    results[-1].unlink()
    return results


@xformd.transform(batch=8, timeout=20)
def left_of_batch(poems: list[bytes]) -> list[bytes]:
    return [b"%d" % round(xformd.deadline())] * len(poems)


@xformd.transform
def left(poem: str) -> str:
    return str(round(xformd.deadline()))


@xformd.transform
def unlike(poem: str) -> str:
    return "nothing on asyncio"


@xformd.transform
async def act(poem: str) -> str:
    what, _, rest = poem.partition(" ")
    return str(await ACTS[what](rest))


async def sleep(rest):
    await asyncio.sleep(float(rest))
    return "slept"


async def who(rest):
    before = own.get()
    own.set(rest)
    await asyncio.sleep(0.02)
    return json.dumps([before, own.get()])


async def broken(rest):
    raise ValueError(rest)


async def refuse(rest):
    raise xformd.GibberishError("not in my house")


async def leave(rest):
    raise SystemExit(3)


async def deaf(rest):
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass


async def twisted(rest):
    await Deferred()


async def block(rest):
    os.write(1, b"blocks")
    time.sleep(float(rest))
    return "blocked"


async def in_task(rest):
    return await asyncio.create_task(block(rest))


async def crash(rest):
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGSEGV)


async def hoard(rest):
    return len([bytearray(100_000_000) for _ in range(100)])


async def meddle(rest):
    started = subprocess.Popen(["sleep", "1000"])
    await asyncio.sleep(float(rest))
    os.environ["OWL"] = "1"
    open("litter", "w").close()
    return started.pid


async def look(rest):
    return json.dumps([os.listdir(), os.environ.get("OWL"), os.getcwd()])


async def fork(rest):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return "forked"


async def in_thread(rest):
    return await asyncio.to_thread(lambda: (time.sleep(0.05), threading.current_thread() is threading.main_thread())[1])


async def remaining(rest):
    return round(xformd.deadline())


async def unawaited(rest):
    asyncio.get_running_loop().create_task(broken("the poem"))
    await asyncio.sleep(0.01)
    return "left it"


async def child(rest):
    process = await asyncio.create_subprocess_exec("echo", "owl", stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode().strip()


ACTS = {name: value for name, value in globals().items() if asyncio.iscoroutinefunction(value)}


@xformd.transform(accepts="text/plain")
async def files(poem: Path) -> Path:
    await asyncio.sleep(0.01)
    result = poem.with_name("result")
    result.write_text(f"{poem.name} {poem.read_text()} {sorted(os.listdir(poem.parent))}")
    return result


@xformd.hookimpl
def xformd_transforms():
    return [t for t in globals().values() if isinstance(t, xformd.Transform)]
'''


@pytest.fixture(scope="module")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveForkServer]:
    """A fork server that has loaded the plugin."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "acts.py").write_text(SOURCE)
    with live() as server:
        server.begin(folder, memory_bytes=2**29)
        yield server


@pytest.fixture(scope="module")
def batching(forking: LiveForkServer) -> LiveWorker:
    """A worker that runs batches."""
    return forking.worker()


@pytest.fixture(scope="module")
def shared(forking: LiveForkServer) -> LiveWorker:
    """A worker on asyncio, for tests that leave it alive."""
    return forking.worker()


@pytest.fixture
def worker(forking: LiveForkServer) -> LiveWorker:
    """A worker for a test that ends it."""
    return forking.worker()


def act(worker: LiveWorker, *poems: str, timeout_ms: int | None = None) -> list[str]:
    """Have a worker run several jobs at a time on asyncio; return their answers in order."""
    ids = [worker.ask("act", poem.encode(), timeout_ms=timeout_ms) for poem in poems]
    answers = worker.answers(len(poems))
    results = [answers[number] for number in ids]
    return [each.decode() if isinstance(each, bytes) else f"{type(each).__name__}: {each}" for each in results]


# Batches.


def test_a_batch_is_one_call_and_each_poem_has_its_own_answer(batching: LiveWorker) -> None:
    last = batching.ask("together:repeat=2", b"a", b"b", b"c")
    assert batching.answers(3) == {last - 2: b"a of 3a of 3", last - 1: b"b of 3b of 3", last: b"c of 3c of 3"}
    assert batching.xform("together", b"a") == b"a of 1"
    assert batching.xform("upper", b"a") == b"A"


def test_a_batch_of_files_has_one_for_each_poem_and_each_result_is_its_own(batching: LiveWorker) -> None:
    batching.ask("files-of-batch", b"a", b"\xc3\xa9", b"c")
    a, e, gone = batching.answers(3).values()
    assert (a, e) == (b"poem.md: a", "poem2.md: é".encode())
    assert str(gone) == "files-of-batch returned a file that cannot be read: No such file or directory"


def test_what_is_wrong_with_one_poem_or_result_is_its_own_alone(batching: LiveWorker) -> None:
    batching.ask("together", b"a", b"\xff", b"wrong", b"long", b"b")
    a, not_text, wrong, long, b = batching.answers(5).values()
    assert (a, b) == (b"a of 4", b"b of 4")
    assert "together takes text, but this poem is not UTF-8" in str(not_text)
    assert str(wrong) == "together returned int where it must return str"
    assert isinstance(long, TooLarge)


@pytest.mark.parametrize(
    ("poem", "raised"), [(b"raise", ["ValueError"]), (b"no", []), (b"lost", ["WrongNumberOfResults"])]
)
def test_a_batch_that_fails_has_its_poems_run_again_alone(batching: LiveWorker, poem: bytes, raised: list[str]) -> None:
    batching.raised.clear()
    batching.ask("together", b"a", poem, b"\xff")
    again, also, not_text = batching.answers(3).values()
    assert (again, also) == (None, None)
    assert isinstance(not_text, GibberishError)
    assert batching.raised == raised
    alone = batching.xform("together", poem)
    expected = {b"raise": "together raised ValueError", b"no": "no poem"}
    assert str(alone) == expected.get(poem, "together returned 0 results for 1 poem")


def test_a_batch_without_memory_asks_for_another_worker(worker: LiveWorker) -> None:
    worker.ask("together", b"a", b"hoard")
    assert [*worker.answers(2).values()] == [None, None]
    assert worker.news[-1] == {"warning": "has run out of memory"}


def test_the_time_that_is_left_is_that_of_who_waits_longest_within_the_transforms_own(batching: LiveWorker) -> None:
    batching.ask("left", b"a", timeout_ms=5_000)
    assert batching.answer() == b"5"
    batching.ask("left-of-batch", b"a", b"b", timeout_ms=9_000)
    assert [*batching.answers(2).values()] == [b"9", b"9"]
    batching.ask("left-of-batch", b"a", b"b", timeout_ms=90_000)
    assert [*batching.answers(2).values()] == [b"20", b"20"]


# Jobs on asyncio.


def test_jobs_run_at_the_same_time_and_each_is_answered_when_it_ends(shared: LiveWorker) -> None:
    ids = [shared.ask("act", poem) for poem in [b"sleep 0.3", b"sleep 0.1", *[b"sleep 0.2"] * 50]]
    answers = shared.answers(len(ids))
    assert set(answers.values()) == {b"slept"}
    order = [*answers]
    assert (order[0], order[-1]) == (ids[1], ids[0])


def test_each_has_its_own_context(shared: LiveWorker) -> None:
    assert [json.loads(each) for each in act(shared, "who a", "who b")] == [
        ["nobody", "a"],
        ["nobody", "b"],
    ]


def test_what_a_job_raises_is_its_own_answer(shared: LiveWorker) -> None:
    shared.raised.clear()
    broken, refused, left, twisted, good = act(shared, "broken the poem", "refuse", "leave", "twisted", "sleep 0")
    assert broken == "TransformFailed: act raised ValueError"
    assert refused == "GibberishError: not in my house"
    assert left == "TransformFailed: act raised SystemExit"
    advice = "an async def runs on asyncio; to await Deferreds, write inline=True"
    assert twisted == f"TransformFailed: act awaits what is not asyncio's: {advice}"
    assert good == "slept"
    assert shared.raised == ["ValueError", "SystemExit", "RuntimeError"]


def test_what_is_cancelled_ends_and_others_go_on(shared: LiveWorker) -> None:
    shared.raised.clear()
    slow, other = shared.ask("act", b"sleep 1000"), shared.ask("act", b"sleep 0.05")
    shared.cancel(slow)
    answers = shared.answers(2)
    assert {*answers} == {slow, other}
    assert isinstance(answers[slow], Cancelled)
    shared.cancel(slow)  # it has ended
    assert act(shared, "sleep 0") == ["slept"]
    assert shared.raised == []


def test_a_job_knows_how_long_it_has(shared: LiveWorker) -> None:
    assert act(shared, "remaining", timeout_ms=7_000) == ["7"]


def test_threads_and_processes_work_as_on_any_loop(shared: LiveWorker) -> None:
    assert act(shared, "in_thread", "child") == ["False", "owl"]


def test_a_forked_child_does_not_answer_too(shared: LiveWorker) -> None:
    assert act(shared, "fork", "sleep 0.1") == ["forked", "slept"]
    assert act(shared, "sleep 0") == ["slept"]


def test_what_jobs_leave_behind_is_gone_when_none_runs(worker: LiveWorker) -> None:
    first = json.loads(*act(worker, "look"))
    pid, _ = act(worker, "meddle 0", "sleep 0.2")
    assert not is_running(int(pid))
    files, owl, _ = json.loads(*act(worker, "look"))
    assert ([files, owl]) == first[:2] == [[], None]


def test_jobs_that_come_at_once_are_in_the_workers_folder(worker: LiveWorker) -> None:
    folders = {json.loads(answer)[2] for _ in range(5) for answer in act(worker, *["look"] * 20)}
    assert str(Path.cwd()) not in folders


def test_files_are_in_a_folder_of_the_jobs_own(worker: LiveWorker) -> None:
    ids = [worker.ask("files", poem) for poem in (b"a", b"b")]
    answers = worker.answers(2)
    assert [answers[number] for number in ids] == [f"poem.txt {poem} ['poem.txt']".encode() for poem in "ab"]


def test_what_nobody_awaits_is_printed_without_its_message(worker: LiveWorker) -> None:
    assert act(worker, "unawaited") == ["left it"]
    worker.retire()
    assert worker.end() == 1
    printed = worker.printed().decode()
    assert "ValueError" in printed
    assert "the poem" not in printed


def test_it_ends_in_order_when_the_server_wants_no_more(worker: LiveWorker) -> None:
    act(worker, "sleep 0")
    worker.ask("act", b"sleep 1000")
    worker.retire()
    assert worker.end() == 1
    assert worker.last_step == [0, 0]
    assert worker.printed() == b""


# Whose code ran when a worker ends.


def test_a_crash_is_that_of_the_job_whose_code_ran(worker: LiveWorker) -> None:
    worker.ask("act", b"sleep 1000")
    crash = worker.ask("act", b"crash")
    assert worker.end() == -signal.SIGSEGV
    assert worker.last_step[0] == crash


@pytest.mark.parametrize("how", ["block", "in_task"])
def test_a_job_that_holds_the_loop_is_known_and_so_is_for_how_long(worker: LiveWorker, how: str) -> None:
    worker.ask("act", b"sleep 1000")
    act(worker, "sleep 0")
    blocks = worker.ask("act", f"{how} 1000".encode())
    worker.wait_for_output(b"blocks")
    time.sleep(0.2)  # while it holds it
    worker.kill()
    assert worker.end() == -signal.SIGKILL
    assert worker.last_step[0] == blocks
    assert worker.last_step[1] >= 100


def test_a_loop_that_waits_runs_nobodys_code(worker: LiveWorker) -> None:
    act(worker, "sleep 0")
    worker.ask("act", b"deaf")
    act(worker, "sleep 0")
    worker.kill()
    worker.end()
    assert worker.last_step == [0, 0]


def test_a_worker_without_memory_says_for_whom_and_ends(worker: LiveWorker) -> None:
    worker.ask("act", b"sleep 1000")
    message = f"act ran out of memory; worker_memory_bytes is {2**29} bytes"
    assert act(worker, "hoard") == [f"TransformDied: {message}"]
    assert worker.end() == 0


def test_a_worker_that_has_run_other_jobs_takes_some_on_asyncio(worker: LiveWorker) -> None:
    assert worker.xform("unlike", b"a") == b"nothing on asyncio"
    assert act(worker, "sleep 0", "sleep 0") == ["slept", "slept"]
