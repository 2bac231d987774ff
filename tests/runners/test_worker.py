"""A worker, as a real process: it is told what to load, says what it has, and answers one job after the other."""

import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from support.fakes import REGISTRY
from support.live import DEADLINE_S, WORKER, Live, live
from xformd import BadOptions, GibberishError, NoSuchTransform, TooLarge, TransformDied, TransformFailed
from xformd.plugins.selection import EVERYTHING
from xformd.runners import messages
from xformd.runners import worker as module
from xformd.wire import netstring


@pytest.fixture
def started() -> Iterator[Live]:
    with live(WORKER) as worker:
        yield worker


@pytest.fixture
def worker(started: Live, hostile: Path) -> Live:
    started.begin(hostile)
    return started


def test_it_says_who_it_is_and_what_it_has(started: Live, hostile: Path) -> None:
    report = started.begin(hostile)
    assert report.pid == started.process.pid
    names = {described["name"] for described in report.listed["transforms"]}
    assert {"shout", "upper"} <= names


def test_it_answers_one_job_after_the_other(worker: Live) -> None:
    assert worker.xform("shout:marks=2", "é".encode()) == "É!!".encode()
    assert worker.xform("upper", b"x" * 900_000) == b"X" * 900_000
    assert worker.xform("upper") == b""


@pytest.mark.parametrize("poem", [b"return", b"raise"])
def test_a_child_that_a_transform_lets_come_back_does_not_answer_too(worker: Live, poem: bytes) -> None:
    for _ in range(3):
        assert worker.xform("twofold", poem) == poem
        assert worker.xform("shout", b"a") == b"A!"


def test_it_says_which_step_it_begins(worker: Live) -> None:
    worker.ask("shout+shout+shout", b"a")
    assert [messages.decode_step(worker.receive()) for _ in range(2)] == [1, 2]
    assert worker.answer() == b"A!!!"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("refuse", GibberishError, "not in my house"),
        ("nope", NoSuchTransform, "no transform 'nope' here"),
        ("shout:loud=1", BadOptions, "shout has no option 'loud'"),
        ("shout:marks=x", BadOptions, "shout: option 'marks' takes a whole number"),
        ("grow", TooLarge, "the result of grow has 1000001 bytes; the limit is 1000000 bytes"),
        ("broken", TransformFailed, "broken raised ValueError"),
        ("leave", TransformFailed, "leave raised SystemExit"),
        ("wrong", TransformFailed, "wrong returned int where it must return str"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_job_runs(worker: Live, spec: str, kind: type, message: str) -> None:
    error = worker.xform(spec, b"poem")
    assert isinstance(error, kind)
    assert message in str(error)
    assert worker.xform("upper", b"a") == b"A"


@pytest.mark.parametrize(("spec", "error"), [("broken", "ValueError"), ("leave", "SystemExit")])
def test_a_fault_is_told_with_its_place_and_without_its_words(worker: Live, spec: str, error: str) -> None:
    worker.ask(spec, b"poem")
    raised = messages.decode_traceback(worker.receive())
    assert raised is not None
    assert raised.error == error
    assert f", in {spec}\n{error}" in raised.traceback
    assert "no poem" not in raised.traceback
    assert isinstance(worker.answer(), TransformFailed)
    worker.close_channel()
    assert worker.end() == (b"", b"")


def test_a_refusal_is_no_fault(worker: Live) -> None:
    worker.ask("refuse")
    assert isinstance(worker.answer(), GibberishError)


def test_what_it_prints_goes_to_the_log_and_never_to_the_channel(worker: Live) -> None:
    worker.close_input()
    assert worker.xform("gossip", b"poem") == b"poem"
    worker.close_channel()
    printed, complaints = worker.end()
    assert printed == b"to print poem\nto descriptor 1\n"
    assert complaints == b"to stderr\n"


def test_who_takes_all_the_memory_dies_and_it_says_so(worker: Live) -> None:
    error = worker.xform("hoard")
    assert isinstance(error, TransformDied)
    assert str(error) == f"hoard ran out of memory; its worker may use {2**30} bytes"
    assert worker.process.wait(DEADLINE_S) == 0


def test_a_transforms_own_limit_is_what_it_may_take_on_besides(worker: Live) -> None:
    assert worker.xform("modest", b"50000000") == b"50000000"
    assert worker.xform("upper", b"a") == b"A"
    error = worker.xform("modest", b"200000000")
    assert isinstance(error, TransformDied)
    assert worker.process.wait(DEADLINE_S) == 0


def test_a_transforms_own_limit_is_no_more_than_the_operators(started: Live, hostile: Path) -> None:
    started.begin(hostile, memory_bytes=2**29)
    assert str(started.xform("greedy", b"600000000")) == f"greedy ran out of memory; its worker may use {2**29} bytes"


def test_the_operators_limit_holds_while_plugins_are_imported(started: Live, tmp_path: Path) -> None:
    (tmp_path / "glutton.py").write_text("hoard = bytes(600_000_000)")
    listed = started.begin(tmp_path, memory_bytes=2**29).listed
    (reason,) = [plugin["reason"] for plugin in listed["plugins"] if plugin["name"] == "glutton"]
    assert "MemoryError" in reason
    assert started.xform("upper", b"a") == b"A"


def test_the_limit_of_one_transform_is_not_that_of_the_next(worker: Live) -> None:
    worker.ask("modest+hoard", b"1")
    assert messages.decode_step(worker.receive()) == 1
    assert f"its worker may use {2**30} bytes" in str(worker.answer())


def test_what_one_transform_may_take_on_does_not_bound_the_next_poem(started: Live, hostile: Path) -> None:
    started.begin(hostile, max_request_bytes=60_000_000, max_result_bytes=60_000_000)
    assert started.xform("tiny", b"a") == b"a"
    poem = b"x" * 30_000_000
    assert started.xform("upper", poem) == poem.upper()


def test_it_ends_when_the_server_is_gone(worker: Live) -> None:
    worker.close_channel()
    assert worker.end() == (b"", b"")
    assert worker.process.returncode == 1


def test_it_ends_when_a_transform_has_closed_its_channel(worker: Live) -> None:
    worker.ask("close-all")
    with pytest.raises(EOFError):
        worker.receive()
    assert worker.process.wait(DEADLINE_S) == 1


@pytest.mark.parametrize("data", [b"rubbish", netstring.encode(b"rubbish")])
def test_what_it_cannot_do_is_in_the_log(started: Live, data: bytes) -> None:
    started.channel.sendall(data)
    _, complaints = started.end()
    assert b"Error" in complaints
    assert started.process.returncode == 1


def test_a_plugin_folder_that_is_gone_is_in_the_log(started: Live, tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        started.begin(tmp_path / "gone")
    assert b"plugins_dir: no such folder: " in started.end()[1]


def test_a_plugin_folder_that_cannot_be_read_is_in_the_log(started: Live, tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        started.begin(Path("/" + "x" * 5_000))
    assert b"OSError" in started.end()[1]


def test_it_dies_by_a_signal_as_any_process(worker: Live) -> None:
    worker.ask("die", b"SIGSEGV")
    with pytest.raises(EOFError):
        worker.receive()
    assert worker.process.wait(DEADLINE_S) == -signal.SIGSEGV


def test_it_ends_when_nobody_takes_its_answer(worker: Live) -> None:
    worker.ask("upper", b"x" * 900_000)
    worker.close_channel()
    assert worker.end() == (b"", b"")
    assert worker.process.returncode == 1


# In this process: what a machine would have to be set up for.


def test_a_channel_that_breaks_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"unread")
        ours.close()
        with pytest.raises(module._Gone):
            module._Channel(theirs).receive()


def test_specs_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Channel:
        sent: ClassVar[list[bytes]] = []

        def send(self, data: bytes) -> None:
            self.sent.append(data)

    monkeypatch.setattr("xformd.spec.MAX_REMEMBERED", 10)
    monkeypatch.setattr(module, "_limit_memory", lambda _: None)
    told = messages.WorkerSetup(selection=EVERYTHING, max_request_bytes=100, max_result_bytes=100, memory_bytes=1)
    job = module._Job(REGISTRY, told, Channel())  # type: ignore[arg-type]
    for steps in range(1, 31):
        job.run(b"%d %b.a" % (steps, b"+".join([b"upper"] * steps)))
        assert len(job._plans) <= 10
        assert Channel.sent[-1] == netstring.encode(b"%d ok.A" % steps)


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
def test_the_system_may_allow_less(monkeypatch: pytest.MonkeyPatch, hard: int, wanted: int, expected: int) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (1, hard))
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    module._limit_memory(wanted)
    assert limits == [(expected, hard)]


def test_where_the_system_does_not_tell_a_transforms_own_limit_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._address_space_bytes() > 1_000_000
    monkeypatch.setattr(module, "Path", lambda _: Path("/no/such/file"))
    assert module._address_space_bytes() == 0
