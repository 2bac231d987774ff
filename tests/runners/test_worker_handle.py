"""The server's end of a worker: what it passes on, and what it logs."""

import ast
import errno
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.python.failure import Failure

from support.fakes import RecordingJob
from support.logs import Log
from support.reactors import FakeReactor
from xformd.plugins.selection import EVERYTHING
from xformd.runners import messages
from xformd.runners.messages import WorkerHello, WorkerSetup
from xformd.runners.worker_handle import MAX_LINE_BYTES, MAX_LINES, WorkerHandle
from xformd.spec import parse
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring
from xformd.wire.session import Reply, Request, encode_reply

SETUP = WorkerSetup(selection=EVERYTHING, max_request_bytes=1_000, max_result_bytes=1_000, memory_bytes=2**30)
HELLO = WorkerHello(os.getpid(), {})


class Events(RecordingJob):
    """Supervisor and job in one: records what a worker's handle tells."""

    def worker_said_hello(self, worker: WorkerHandle, hello: WorkerHello) -> None:
        self.heard.append(("hello", hello))

    def worker_disconnected(self, worker: WorkerHandle) -> None:
        self.heard.append(("disconnected", None))

    def worker_ended(self, worker: WorkerHandle, reason: str) -> None:
        self.heard.append(("ended", reason))


class Started:
    """A handle whose worker is played by the test."""

    def __init__(self, setup: WorkerSetup = SETUP) -> None:
        self.reactor = FakeReactor()
        self.events = Events()
        self.heard = self.events.heard
        self.worker = WorkerHandle(setup, self.events, self.reactor)
        (self.process,) = self.reactor.processes

    def send(self, data: bytes) -> None:
        """Send something to the handle, as the worker."""
        self.process.channel.sendall(data)
        self.reactor.read()

    def run(self, spec: str = "upper", request_id: int = 1) -> None:
        self.worker.send(Request(request_id, parse(spec), b"x"), self.events)

    def print(self, data: bytes, descriptor: int = 1) -> None:
        self.worker.childDataReceived(descriptor, data)

    def end(self, reason: Exception | None = None) -> None:
        self.worker.processExited(Failure(reason or ProcessDone(0)))

    def close(self) -> None:
        self.worker.kill("the test is over")
        self.process.channel.close()


@pytest.fixture
def started() -> Iterator[Started]:
    made = Started()
    yield made
    made.close()


@pytest.fixture
def ready(started: Started) -> Started:
    started.send(messages.encode_hello(HELLO))
    started.heard.clear()
    return started


def test_it_gets_its_setup_and_says_hello(started: Started) -> None:
    (string,) = netstring.Decoder(10_000).decode(started.process.channel.recv(100_000))
    assert messages.decode_setup(string) == SETUP
    assert started.worker.resident_bytes() == 0
    started.send(messages.encode_hello(HELLO))
    assert started.heard == [("hello", HELLO)]
    assert started.worker.pid == os.getpid()


def test_its_memory_is_what_it_has_touched(ready: Started) -> None:
    status = Path("/proc/self/status").read_text()
    resident_bytes = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert ready.worker.resident_bytes() == pytest.approx(resident_bytes, rel=0.1)
    ready.worker.pid = 2**30
    assert ready.worker.resident_bytes() == 0


def test_a_job_hears_of_its_steps_and_its_answer(ready: Started) -> None:
    raised = SafeTraceback("ValueError", "there")
    ready.run("upper+upper")
    assert ready.process.channel.recv(100_000).endswith(b"1 upper+upper.x,")
    ready.send(messages.encode_step(1) + messages.encode_traceback(raised) + encode_reply(Reply(1, b"X")))
    assert ready.heard == [("began", 1), ("raised", raised), ("answered", Reply(1, b"X"))]


RUBBISH = [b"rubbish", netstring.encode(b"rubbish"), b"99999999999999:", netstring.encode(b"step 1 2")]
WRONG_ID = [encode_reply(Reply(request_id, b"X")) for request_id in (0, 6, 77)]


@pytest.mark.parametrize("data", RUBBISH + WRONG_ID)
def test_rubbish_ends_a_busy_worker_and_what_follows_is_ignored(ready: Started, data: bytes) -> None:
    ready.run(request_id=7)
    ready.send(data + encode_reply(Reply(7, b"X")))
    assert ready.heard == [("disconnected", None)]
    assert ready.process.stdin_closed
    ready.end()
    what, reason = ready.heard[-1]
    assert what == "ended"
    assert str(reason).startswith("sent an invalid message: ")


@pytest.mark.parametrize(
    "data", [encode_reply(Reply(1, b"X")), messages.encode_step(1), messages.encode_traceback(SafeTraceback("E", ""))]
)
@pytest.mark.parametrize("jobs", [0, 1])
def test_a_worker_without_a_job_may_send_nothing(ready: Started, data: bytes, jobs: int) -> None:
    for _ in range(jobs):
        ready.run()
        ready.send(encode_reply(Reply(1, b"X")))
    ready.heard.clear()
    ready.send(data)
    ready.end()
    assert ready.heard[-1] == ("ended", "sent an invalid message: no request is running")
    assert {what for what, _ in ready.heard} == {"disconnected", "ended"}


@pytest.mark.parametrize("string", [b"5", b"[1]", b"1 ok.x", b"[" * 100_000])
def test_a_malformed_hello_ends_it(started: Started, string: bytes) -> None:
    started.send(netstring.encode(string))
    assert started.process.stdin_closed
    started.end()
    assert started.heard[-1] == ("ended", "sent an invalid message: a hello is a process id and a listing")


def test_what_a_killed_worker_sends_is_ignored(ready: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready.events, "answered", lambda answer: ready.worker.kill(f"answered {answer.id}"))
    ready.run()
    ready.send(encode_reply(Reply(1, b"X")) + encode_reply(Reply(1, b"too late")))
    assert ready.heard == []
    ready.end(ProcessTerminated(None, signal.SIGKILL))
    assert ready.heard == [("disconnected", None), ("ended", "answered 1")]


def test_a_closed_channel_is_its_end(ready: Started) -> None:
    ready.process.channel.close()
    (channel,) = ready.reactor.readers
    channel.connectionLost(Failure(ConnectionDone()))
    assert ready.heard == [("disconnected", None)]
    assert ready.process.stdin_closed == 1
    ready.end(ProcessTerminated(1))
    assert ready.heard[-1] == ("ended", "ended with exit status 1")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (ProcessDone(0), "ended with exit status 0"),
        (ProcessTerminated(3), "ended with exit status 3"),
        (ProcessTerminated(None, signal.SIGSEGV), "was killed by SIGSEGV"),
        (ProcessTerminated(None, 99), "was killed by signal 99"),
    ],
)
def test_its_end_is_described(ready: Started, end: Exception, reason: str) -> None:
    ready.end(end)
    assert ready.heard == [("disconnected", None), ("ended", reason)]


def test_messages_that_are_unread_at_its_end_are_passed_on_first(ready: Started) -> None:
    """On a busy machine a death would be blamed on the step before, and the wrong transform quarantined."""
    ready.run("upper+upper")
    ready.process.channel.sendall(messages.encode_step(1) + encode_reply(Reply(1, b"X")))
    ready.end(ProcessTerminated(None, signal.SIGSEGV))
    told = [("disconnected", None), ("began", 1), ("answered", Reply(1, b"X")), ("ended", "was killed by SIGSEGV")]
    assert ready.heard == told


@pytest.mark.parametrize("max_result_bytes", [1_000, 200_000_000])
def test_a_result_may_be_as_long_as_the_limit(max_result_bytes: int) -> None:
    """And longer than any report: which is too long is clear from the first digits on."""
    made = Started(attrs.evolve(SETUP, max_result_bytes=max_result_bytes))
    made.send(messages.encode_hello(HELLO))
    head = b"9007199254740991 ok."
    made.send(b"%d:%b" % (len(head) + max_result_bytes, head))
    assert made.heard == [("hello", HELLO)]
    made.close()


# Starting it.


def test_it_imports_what_the_server_can_and_nothing_from_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, package = tmp_path / "here", tmp_path / "there" / "xformd"
    here.mkdir()
    for name in ("__init__", "runners/__init__", "runners/reaper"):
        module = package / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("def main():\n    import sys\n    print(sys.path)\n")
    monkeypatch.syspath_prepend(package.parent)
    started = Started()
    started.close()
    ran = subprocess.run(started.process.args, cwd=here, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    path = ast.literal_eval(ran.stdout.decode())
    assert path[: len(sys.path)] == sys.path
    assert not {"", ".", str(here)} & {*path}


def test_it_imports_what_was_installed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    started = Started()
    started.close()
    command = started.process.args[-1].replace("from xformd.runners.reaper import main; main()", "print(sys.path)")
    ran = subprocess.run([*started.process.args[:-1], command], capture_output=True, timeout=20, check=True)
    assert "site-packages" in ran.stdout.decode()


@pytest.mark.parametrize("refuses", ["addReader", "spawnProcess"])
def test_a_failed_start_leaves_nothing_open(refuses: str) -> None:
    reactor, events = FakeReactor(), Events()
    setattr(reactor, refuses, Mock(side_effect=OSError(errno.EAGAIN, "no")))
    with pytest.raises(OSError, match="no"):
        WorkerHandle(SETUP, events, reactor)
    assert not reactor.readers
    gc.collect()  # a socket that is left open warns, and a warning is an error
    assert events.heard == []
    assert reactor.processes == []


def test_a_process_that_ends_while_spawning_was_never_started() -> None:
    # Twisted says so from within spawnProcess, when nobody knows the worker yet.
    reactor, events = FakeReactor(), Events()
    reactor.spawning = lambda protocol: protocol.processExited(Failure(ProcessTerminated(127)))
    with pytest.raises(OSError, match="it ended with exit status 127"):
        WorkerHandle(SETUP, events, reactor)
    assert events.heard == []
    assert not reactor.readers
    reactor.processes[0].channel.close()


# What it prints.


def test_its_output_is_logged_line_by_line(ready: Started, log: Log) -> None:
    ready.print(b"one\ntw")
    ready.print(b"on stderr\n", 2)
    ready.print(b"o\n\xff\x1b[31m\nrest")
    pid = os.getpid()
    assert log.lines == [f"worker {pid}: {text}" for text in ("one", "on stderr", "two", "\ufffd\ufffd[31m")]
    ready.worker.processEnded(Failure(ProcessDone(0)))
    assert log.lines[-1] == f"worker {pid}: rest"


def test_output_before_its_hello_and_after_its_end_is_logged_once(started: Started, log: Log) -> None:
    started.print(b"loading\n")
    assert log.lines == ["worker (starting): loading"]
    log.clear()
    started.send(messages.encode_hello(HELLO))
    started.print(b"Fatal Python ")
    started.end(ProcessTerminated(None, signal.SIGSEGV))
    started.print(b"error\nin thread")
    started.worker.processEnded(Failure(ProcessTerminated(None, signal.SIGSEGV)))
    pid = os.getpid()
    assert log.lines == [f"worker {pid}: Fatal Python error", f"worker {pid}: in thread"]


def test_a_line_without_an_end_is_cut(ready: Started, log: Log) -> None:
    for _ in range(3):
        ready.print(b"x" * MAX_LINE_BYTES)
    assert len(log.lines) == 1
    assert max(map(len, ready.worker._partial_lines.values())) <= MAX_LINE_BYTES
    assert len(log.lines[0]) < MAX_LINE_BYTES + 100


def test_too_much_output_is_dropped_until_the_next_job(ready: Started, log: Log) -> None:
    ready.print(b"x\n" * 10_000)
    assert len(log.lines) == MAX_LINES + 1
    assert log.lines[-1] == f"worker {os.getpid()} prints too much; the rest is left out"
    ready.run()
    ready.print(b"again\n")
    assert log.lines[-1].endswith("again")
