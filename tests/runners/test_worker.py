"""A worker, as a real process: it loads its plugins, says hello, and answers one job after the other."""

import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from support.live import DEADLINE_S, WORKER, Live, live
from xformd import BadOptions, GibberishError, NoSuchTransform, TooLarge, TransformDied, TransformFailed
from xformd.runners import messages
from xformd.runners import worker as module
from xformd.wire import netstring


@pytest.fixture(scope="module")
def shared(hostile: Path) -> Iterator[Live]:
    """A worker for tests that leave it alive."""
    with live(WORKER) as worker:
        worker.begin(hostile)
        yield worker


@pytest.fixture
def started() -> Iterator[Live]:
    """A worker that has no setup yet."""
    with live(WORKER) as worker:
        yield worker


@pytest.fixture
def worker(started: Live, hostile: Path) -> Live:
    """A worker for a test that ends it."""
    started.begin(hostile)
    return started


def test_its_hello_has_its_pid_and_its_transforms(started: Live, hostile: Path) -> None:
    hello = started.begin(hostile)
    assert hello.pid == started.process.pid
    names = {described["name"] for described in hello.listing["transforms"]}
    assert {"shout", "upper"} <= names


def test_it_answers_one_job_after_the_other(shared: Live) -> None:
    assert shared.xform("shout:marks=2", "é".encode()) == "É!!".encode()
    assert shared.xform("upper", b"x" * 900_000) == b"X" * 900_000
    assert shared.xform("upper") == b""


@pytest.mark.parametrize("poem", [b"return", b"raise"])
def test_a_forked_child_does_not_answer_too(shared: Live, poem: bytes) -> None:
    for _ in range(3):
        assert shared.xform("twofold", poem) == poem
        assert shared.xform("shout", b"a") == b"A!"


def test_it_names_each_step_but_the_first(shared: Live) -> None:
    shared.ask("shout+shout+shout", b"a")
    assert [messages.decode_step(shared.receive()) for _ in range(2)] == [1, 2]
    assert shared.answer() == b"A!!!"


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
def test_an_error_is_answered_and_the_next_job_runs(shared: Live, spec: str, kind: type, message: str) -> None:
    error = shared.xform(spec, b"poem")
    assert isinstance(error, kind)
    assert message in str(error)
    assert shared.xform("upper", b"a") == b"A"


def test_a_traceback_comes_before_the_refusal_and_without_its_message(worker: Live) -> None:
    for spec, error in (("broken", "ValueError"), ("leave", "SystemExit")):
        worker.ask(spec, b"poem")
        raised = messages.decode_traceback(worker.receive())
        assert raised is not None
        assert raised.error == error
        assert f", in {spec}\n{error}" in raised.traceback
        assert "no poem" not in raised.traceback
        assert isinstance(worker.answer(), TransformFailed)
    worker.channel.close()
    assert worker.end() == (b"", b"")


def test_an_expected_refusal_has_no_traceback(shared: Live) -> None:
    shared.ask("refuse")
    assert messages.decode_traceback(shared.receive()) is None


def test_its_output_goes_to_the_log_and_never_to_the_channel(worker: Live) -> None:
    worker.close_input()
    assert worker.xform("gossip", b"poem") == b"poem"
    worker.channel.close()
    printed, errors = worker.end()
    assert printed == b"to print poem\nto descriptor 1\n"
    assert errors == b"to stderr\n"


def test_a_worker_without_memory_says_so_and_ends(worker: Live) -> None:
    error = worker.xform("hoard")
    assert isinstance(error, TransformDied)
    assert str(error) == f"hoard ran out of memory; its worker may use {2**30} bytes"
    assert worker.process.wait(DEADLINE_S) == 0


def test_a_transforms_own_memory_limit_comes_on_top(worker: Live) -> None:
    assert worker.xform("modest", b"50000000") == b"50000000"
    assert worker.xform("upper", b"a") == b"A"
    error = worker.xform("modest", b"200000000")
    assert isinstance(error, TransformDied)
    assert worker.process.wait(DEADLINE_S) == 0


def test_the_operators_memory_limit_holds_from_the_import_on(started: Live, hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "glutton.py").write_text("hoard = bytes(600_000_000)")
    (tmp_path / "hostile.py").write_text((hostile / "hostile.py").read_text())
    listing = started.begin(tmp_path, memory_bytes=2**29).listing
    (reason,) = [plugin["reason"] for plugin in listing["plugins"] if plugin["name"] == "glutton"]
    assert "MemoryError" in reason
    assert started.xform("upper", b"a") == b"A"
    assert str(started.xform("greedy", b"600000000")) == f"greedy ran out of memory; its worker may use {2**29} bytes"


def test_one_transforms_memory_limit_does_not_bind_the_next(worker: Live) -> None:
    worker.ask("modest+hoard", b"1")
    assert messages.decode_step(worker.receive()) == 1
    assert f"its worker may use {2**30} bytes" in str(worker.answer())


def test_one_transforms_memory_limit_does_not_bind_the_next_poem(started: Live, hostile: Path) -> None:
    started.begin(hostile, max_request_bytes=60_000_000, max_result_bytes=60_000_000)
    assert started.xform("tiny", b"a") == b"a"
    poem = b"x" * 30_000_000
    assert started.xform("upper", poem) == poem.upper()


def test_it_ends_when_the_server_is_gone_even_in_the_middle_of_an_answer(worker: Live) -> None:
    worker.ask("upper", b"x" * 900_000)
    worker.channel.close()
    assert worker.end() == (b"", b"")
    assert worker.process.returncode == 1


@pytest.mark.parametrize(
    ("spec", "poem", "status"), [("close-all", b"", 1), ("die", b"SIGSEGV", -signal.SIGSEGV)], ids=["channel", "signal"]
)
def test_it_ends_by_what_a_transform_does(worker: Live, spec: str, poem: bytes, status: int) -> None:
    worker.ask(spec, poem)
    with pytest.raises(EOFError):
        worker.receive()
    assert worker.process.wait(DEADLINE_S) == status


@pytest.mark.parametrize("data", [b"rubbish", netstring.encode(b"rubbish")])
def test_a_malformed_setup_is_logged(started: Live, data: bytes) -> None:
    started.channel.sendall(data)
    assert b"Error" in started.end()[1]
    assert started.process.returncode == 1


@pytest.mark.parametrize(
    ("folder", "error"),
    [("/no/such/folder", b"plugins_dir: no such folder"), ("/" + "x" * 5_000, b"OSError")],
    ids=["missing", "unreadable"],
)
def test_a_plugin_folder_that_cannot_be_read_is_logged(started: Live, folder: str, error: bytes) -> None:
    with pytest.raises(EOFError):
        started.begin(Path(folder))
    assert error in started.end()[1]


# In this process, for what would need a machine set up for it.


def test_a_broken_channel_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"unread")
        ours.close()
        with pytest.raises(module._Gone):
            module._Channel(theirs).receive()


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
    module._limit_memory(wanted)
    setrlimit.assert_called_once_with(resource.RLIMIT_AS, (expected, hard))


def test_without_proc_the_address_space_counts_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._address_space_bytes() > 1_000_000
    monkeypatch.setattr(module, "Path", lambda _: Path("/no/such/file"))
    assert module._address_space_bytes() == 0
