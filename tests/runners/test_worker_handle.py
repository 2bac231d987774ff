"""The server's end of a worker: what it passes on, and what it logs."""

import errno
import gc
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.python.failure import Failure

from support.fakes import RecordingJob
from support.live import descriptors
from support.logs import Log
from support.reactors import FakeReactor
from xformd.runners import messages
from xformd.runners.messages import WorkerHello
from xformd.runners.worker_handle import END_GRACE_S, MAX_LINE_BYTES, MAX_LINES, OutputLog, WorkerHandle
from xformd.spec import parse
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring
from xformd.wire.session import Reply, Request, encode_reply

HELLO = WorkerHello(os.getpid(), {})


class Events(RecordingJob):
    """Supervisor and job in one: records what a worker's handle tells."""

    def worker_loading(self, worker: WorkerHandle, news: Mapping[str, Any]) -> None:
        self.heard.append(("loading", news))

    def worker_said_hello(self, worker: WorkerHandle, hello: WorkerHello) -> None:
        self.heard.append(("hello", hello))

    def worker_disconnected(self, worker: WorkerHandle) -> None:
        self.heard.append(("disconnected", None))

    def worker_ended(self, worker: WorkerHandle, reason: str) -> None:
        self.heard.append(("ended", reason))


class Started:
    """A handle whose worker, and the reaper above it, are played by the test."""

    def __init__(self, max_result_bytes: int = 1_000) -> None:
        self.reactor = FakeReactor()
        self.events = Events()
        self.heard = self.events.heard
        self.worker = WorkerHandle(self._fork, max_result_bytes, cast(Any, self.events), self.reactor)

    def _fork(self, *descriptors: int) -> None:
        channel, lifeline, self.output = map(os.dup, descriptors)
        self.channel, self.lifeline = socket.socket(fileno=channel), socket.socket(fileno=lifeline)
        for end in (self.channel, self.lifeline):
            end.settimeout(90)

    def send(self, data: bytes) -> None:
        """Send something to the handle, as the worker."""
        self.channel.sendall(data)
        self.reactor.read()

    def run(self, spec: str = "upper", request_id: int = 1) -> None:
        self.worker.send([Request(request_id, parse(spec), b"x")], [self.events])

    def print(self, data: bytes) -> None:
        """Print something, however much it is."""
        for at in range(0, len(data), 4_000):
            os.write(self.output, data[at : at + 4_000])
            self.reactor.read()

    def close_output(self) -> None:
        os.close(self.output)
        self.output = -1
        self.reactor.read()

    @property
    def is_being_killed(self) -> bool:
        """Whether the reaper has been told to kill the worker."""
        self.lifeline.setblocking(False)
        try:
            return self.lifeline.recv(1) == b""
        except BlockingIOError:
            return False

    def end(self, status: bytes = b"0") -> None:
        """End, as the reaper reports it; the handle hears of that before it reads what is unread."""
        self.lifeline.sendall(status)
        self.lifeline.close()
        lifeline = self.worker._lifeline
        while (lost := lifeline.doRead()) is None:
            pass
        lifeline.connectionLost(Failure(lost))

    def close(self) -> None:
        self.worker.kill("the test is over")
        self.channel.close()
        self.lifeline.close()
        if self.output != -1:
            os.close(self.output)
        for _ in range(3):
            self.reactor.read()
        assert not self.reactor.readers


@pytest.fixture
def started() -> Iterator[Started]:
    made = Started()
    yield made
    made.close()


@pytest.fixture
def ready(started: Started) -> Started:
    started.send(messages.encode_hello(HELLO.pid, json.dumps(HELLO.listing)))
    started.heard.clear()
    return started


def test_it_says_hello(started: Started) -> None:
    assert started.worker.resident_bytes() == 0
    started.send(messages.encode_hello(HELLO.pid, json.dumps(HELLO.listing)))
    assert started.heard == [("hello", HELLO)]
    assert started.worker.pid == os.getpid()


def test_it_tells_what_it_loads_before_its_hello(started: Started) -> None:
    news = messages.encode_news(loading=["x-owl", "owl"]) + messages.encode_news(timeout_s=300)
    started.send(news + messages.encode_hello(HELLO.pid, json.dumps(HELLO.listing)))
    assert started.heard == [
        ("loading", {"loading": ["x-owl", "owl"]}),
        ("loading", {"timeout_s": 300}),
        ("hello", HELLO),
    ]
    started.heard.clear()
    started.send(messages.encode_news(loading=["x-owl", "owl"]))
    assert [what for what, _ in started.heard] == ["disconnected"]


def test_its_memory_is_what_it_has_touched(ready: Started) -> None:
    status = Path("/proc/self/status").read_text()
    resident_bytes = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert ready.worker.resident_bytes() == pytest.approx(resident_bytes, rel=0.1)
    ready.worker.pid = 2**30
    assert ready.worker.resident_bytes() == 0


def test_a_job_hears_of_its_steps_and_its_answer(ready: Started) -> None:
    raised = SafeTraceback("ValueError", "there")
    ready.run("upper+upper")
    assert ready.channel.recv(100_000).endswith(b"1 upper+upper.x,")
    ready.send(
        messages.encode_note("step", 1, 1)
        + messages.encode_news(raised=1, **attrs.asdict(raised))
        + encode_reply(Reply(1, b"X"))
    )
    assert ready.heard == [("began", 1), ("raised", raised), ("answered", Reply(1, b"X"))]


RUBBISH = [b"rubbish", netstring.encode(b"rubbish"), b"99999999999999:", netstring.encode(b"step 1 2")]
WRONG_ID = [encode_reply(Reply(request_id, b"X")) for request_id in (0, 6, 77)]


@pytest.mark.parametrize("data", RUBBISH + WRONG_ID)
def test_rubbish_ends_a_busy_worker_and_what_follows_is_ignored(ready: Started, data: bytes) -> None:
    ready.run(request_id=7)
    ready.send(data + encode_reply(Reply(7, b"X")))
    assert ready.heard == [("disconnected", None)]
    assert ready.is_being_killed
    ready.end()
    what, reason = ready.heard[-1]
    assert what == "ended"
    assert str(reason).startswith("sent an invalid message: ")


@pytest.mark.parametrize(
    "data",
    [
        encode_reply(Reply(1, b"X")),
        messages.encode_note("step", 1, 1),
        messages.encode_news(raised=1, error="E", traceback="", detail=""),
    ],
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
    assert started.is_being_killed
    started.end()
    assert started.heard[-1] == ("ended", "sent an invalid message: a worker begins with a hello")


def test_what_a_killed_worker_sends_is_ignored(ready: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready.events, "answered", lambda answer: ready.worker.kill(f"answered {answer.id}"))
    ready.run()
    ready.send(encode_reply(Reply(1, b"X")) + encode_reply(Reply(1, b"too late")))
    assert ready.heard == []
    ready.end(b"9")
    assert ready.heard == [("disconnected", None), ("ended", "answered 1")]


def test_a_closed_channel_is_its_end(ready: Started) -> None:
    ready.channel.close()
    ready.reactor.read()
    assert ready.heard == [("disconnected", None)]
    assert ready.is_being_killed
    ready.end(b"256")
    assert ready.heard[-1] == ("ended", "ended with exit status 1")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (b"0", "ended with exit status 0"),
        (b"768", "ended with exit status 3"),
        (b"11", "was killed by SIGSEGV"),
        (b"139", "was killed by SIGSEGV"),  # with a core file
        (b"99", "was killed by signal 99"),
        (b"", "was killed by SIGKILL"),  # its reaper was killed, and says nothing
        (b"the system cannot fork: \nno room", "could not be started: the system cannot fork: no room"),
    ],
)
def test_its_end_is_described(ready: Started, status: bytes, reason: str) -> None:
    ready.end(status)
    assert ready.heard == [("disconnected", None), ("ended", reason)]
    assert ready.channel.recv(1) == b""


@pytest.mark.parametrize(
    ("status", "words"),
    [(b"9", ", by the kernel's out-of-memory killer"), (b"", ", by the kernel's out-of-memory killer"), (b"11", "")],
)
def test_an_end_by_the_out_of_memory_killer_says_so(monkeypatch: pytest.MonkeyPatch, status: bytes, words: str) -> None:
    kills = iter([3, 4])
    monkeypatch.setattr("xformd.runners.worker_handle.count_oom_kills", lambda: next(kills))
    made = Started()
    made.end(status)
    number = "SIGSEGV" if status == b"11" else "SIGKILL"
    assert made.heard[-1] == ("ended", f"was killed by {number}{words}")
    made.close()


def test_a_status_that_comes_in_pieces_is_put_together(ready: Started) -> None:
    ready.lifeline.sendall(b"76")
    ready.reactor.read()
    assert ready.heard == []
    ready.end(b"8")
    assert ready.heard[-1] == ("ended", "ended with exit status 3")


def test_a_killed_worker_ends_when_its_reaper_does(ready: Started) -> None:
    ready.worker.kill("took too long")
    assert ready.channel.recv(1) == b""
    assert ready.is_being_killed
    assert ready.heard == []
    ready.end(b"9")
    assert ready.heard[-1] == ("ended", "took too long")


def test_a_worker_that_is_retired_may_end_by_itself(ready: Started) -> None:
    ready.worker.retire("has done 2 jobs")
    assert ready.channel.recv(1) == b""
    assert not ready.is_being_killed
    ready.end(b"256")
    assert ready.heard == [("disconnected", None), ("ended", "has done 2 jobs")]
    assert ready.reactor.getDelayedCalls() == []


def test_a_retired_worker_that_does_not_end_is_killed(ready: Started) -> None:
    ready.worker.retire("has done 2 jobs")
    ready.reactor.advance(END_GRACE_S - 0.1)
    assert not ready.is_being_killed
    ready.reactor.advance(0.1)
    assert ready.is_being_killed
    ready.end(b"9")
    assert ready.heard[-1] == ("ended", "has done 2 jobs")


def test_messages_that_are_unread_at_its_end_are_passed_on_first(ready: Started) -> None:
    """On a busy machine a death would be blamed on the step before, and the wrong transform quarantined."""
    ready.run("upper+upper")
    ready.channel.sendall(messages.encode_note("step", 1, 1) + encode_reply(Reply(1, b"X")))
    ready.end(b"11")
    told = [("disconnected", None), ("began", 1), ("answered", Reply(1, b"X")), ("ended", "was killed by SIGSEGV")]
    assert ready.heard == told


@pytest.mark.parametrize("max_result_bytes", [1_000, 200_000_000])
def test_a_result_may_be_as_long_as_the_limit(max_result_bytes: int) -> None:
    """And longer than any report: which is too long is clear from the first digits on."""
    made = Started(max_result_bytes)
    made.send(messages.encode_hello(HELLO.pid, json.dumps(HELLO.listing)))
    head = b"9007199254740991 ok."
    made.send(b"%d:%b" % (len(head) + max_result_bytes, head))
    assert made.heard == [("hello", HELLO)]
    made.close()


# Starting it.


def open_descriptors() -> set[int]:
    gc.collect()
    return {*descriptors(os.getpid())}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_start_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    reactor, events, readers = FakeReactor(), Events(), []

    def add_reader(reader: Any) -> None:
        readers.append(reader)
        if len(readers) == failing:
            raise OSError(errno.ENOSPC, "no")
        FakeReactor.addReader(reactor, reader)

    monkeypatch.setattr(reactor, "addReader", add_reader)
    before = open_descriptors()
    with pytest.raises(OSError, match="no"):
        WorkerHandle(lambda *_: None, 1_000, cast(Any, events), reactor)
    assert not reactor.readers
    assert events.heard == []
    readers.clear()
    assert open_descriptors() == before


def test_a_fork_server_that_is_gone_leaves_nothing_open() -> None:
    def fork(*_: int) -> None:
        raise BrokenPipeError(errno.EPIPE, "its channel is closed")

    reactor, events = FakeReactor(), Events()
    before = open_descriptors()
    with pytest.raises(BrokenPipeError):
        WorkerHandle(fork, 1_000, cast(Any, events), reactor)
    assert open_descriptors() == before
    assert (reactor.readers, events.heard) == (set(), [])


# What it prints.


def test_its_output_is_logged_line_by_line(ready: Started, log: Log) -> None:
    ready.print(b"one\ntw")
    ready.print(b"o\n\xff\x1b[31m\nrest")
    pid = os.getpid()
    assert log.lines == [f"worker {pid}: {text}" for text in ("one", "two", "\ufffd\ufffd[31m")]
    ready.close_output()
    assert log.lines[-1] == f"worker {pid}: rest"


def test_output_before_its_hello_and_after_its_end_is_logged_once(started: Started, log: Log) -> None:
    started.print(b"loading\n")
    assert log.lines == ["worker (starting): loading"]
    log.clear()
    started.send(messages.encode_hello(HELLO.pid, json.dumps(HELLO.listing)))
    started.print(b"Fatal Python ")
    started.end(b"11")
    started.print(b"error\nin thread")
    started.close_output()
    pid = os.getpid()
    assert log.lines == [f"worker {pid}: Fatal Python error", f"worker {pid}: in thread"]


def test_a_line_without_an_end_is_cut(ready: Started, log: Log) -> None:
    for _ in range(3):
        ready.print(b"x" * MAX_LINE_BYTES)
    assert len(log.lines) == 1
    assert ready.worker._output is not None
    assert len(ready.worker._output._rest) <= MAX_LINE_BYTES
    assert len(log.lines[0]) < MAX_LINE_BYTES + 100


def test_too_much_output_is_dropped_until_the_next_job(ready: Started, log: Log) -> None:
    ready.print(b"x\n" * 10_000)
    assert len(log.lines) == MAX_LINES + 1
    assert log.lines[-1] == f"worker {os.getpid()} prints too much; the rest is left out"
    ready.run()
    ready.print(b"again\n")
    assert log.lines[-1].endswith("again")


def test_a_log_whose_pipe_is_closed_has_no_descriptor() -> None:
    reactor = FakeReactor()
    output = OutputLog(lambda: "owl", reactor)
    with ExitStack() as theirs, ExitStack() as undo:
        os.fstat(output.open(theirs, undo))
        undo.pop_all()
    assert output.fileno() > 2
    reactor.read()
    assert output.fileno() == -1
