"""The server's end of one worker: its process, its channel, and what it prints.

Invariant: one job at a time, which hears of its own steps and answer only; a worker that sends anything else is ended.
"""

import contextlib
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.error import ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.errors import BadFrame, one_line, printable
from xformd.net.transport import CHANNEL_BUFFER_BYTES, Channel
from xformd.runners import messages, reaper
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring, session

MAX_LINE_BYTES = 1_000
MAX_LINES = 100
"""Of a worker's output, logged for each job; the rest is dropped."""

_COMMAND = (
    "import sys; path = {path!r}; sys.path[:] = path + [entry for entry in sys.path if entry not in path]; "
    "from xformd.runners.reaper import main; main()"
)
"""Workers can import what the server can, and what has been installed since it started."""


class Job(Protocol):
    """What a worker runs for a request, and hears about directly."""

    def began(self, step: int) -> None:
        """Note that a step begins, counted from 0; the first is not reported."""
        ...

    def raised(self, raised: SafeTraceback) -> None:
        """Note that a transform has raised something unexpected; the answer follows."""
        ...

    def answered(self, answer: session.Reply | session.Refusal) -> None:
        """Take the answer: the worker is free."""
        ...

    def died(self, reason: str) -> None:
        """Note that the worker has ended without an answer. Called by the supervisor, which replaces it."""
        ...


class WorkerEvents(Protocol):
    """What a supervisor needs to know of its workers."""

    def worker_said_hello(self, worker: "WorkerHandle", hello: messages.WorkerHello) -> None:
        """Note that it has loaded its plugins."""
        ...

    def worker_disconnected(self, worker: "WorkerHandle") -> None:
        """Note that it can run no more jobs and is about to end."""
        ...

    def worker_ended(self, worker: "WorkerHandle", reason: str) -> None:
        """Note that it has ended, with every process that it started."""
        ...


class WorkerHandle(ProcessProtocol):
    """One worker: starts the process, sends it jobs, passes on what it answers, and ends it.

    Raises:
        OSError: the system has no more processes, memory or descriptors to give.
    """

    log = Logger()

    def __init__(self, setup: messages.WorkerSetup, events: WorkerEvents, reactor: Any) -> None:
        self._events = events
        self._why_killed = ""
        self._job: Job | None = None
        self._request_id = 0
        self._partial_lines = {1: b"", 2: b""}
        self._lines = 0
        self.pid: int | None = None  # the worker's own, not the reaper's; known from its hello
        max_bytes = max(messages.MAX_HELLO_BYTES, setup.max_result_bytes + session.MAX_HEAD_BYTES)
        self._decoder = netstring.Decoder(max_bytes)
        self._process: IProcessTransport | None = None
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
            self._channel = Channel(ours, self._receive, self._channel_lost, reactor)
            undo.callback(self._channel.close)
            self._process = self._spawn(reactor, theirs)
            undo.pop_all()
        self._channel.send(messages.encode_setup(setup))

    def _spawn(self, reactor: Any, channel: socket.socket) -> IProcessTransport:
        process: IProcessTransport = reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-P", "-c", _COMMAND.format(path=sys.path)],
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", reaper.CHANNEL: channel.fileno()},
        )
        if self._why_killed:
            raise ChildProcessError(f"it {self._why_killed}")
        return process

    def send(self, request: session.Request, job: Job) -> None:
        """Send a request; ``job`` hears what becomes of it."""
        self._lines = 0
        self._job, self._request_id = job, request.id
        self._channel.send(session.encode_request(request))

    def kill(self, why: str) -> None:
        """End it and every process that it started; ``worker_ended`` follows, and nothing else of it is passed on."""
        self._why_killed = self._why_killed or why
        self._channel.close()
        self._close_stdin()

    def resident_bytes(self) -> int:
        """Return how much memory it uses, in bytes; 0 if the system does not say."""
        return _resident_bytes(self.pid) if self.pid is not None else 0

    # Called by Twisted.

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Log what it prints, line by line."""
        *lines, rest = (self._partial_lines[childFD] + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._partial_lines[childFD] = rest
        self._log_output(lines)

    def processExited(self, reason: Failure) -> None:
        """Report its end. ``processEnded`` may come much later: a process that it started can hold its pipes open."""
        if self._process is None:  # it is still being spawned, and the supervisor does not have it yet
            self._why_killed = _describe_end(reason.value)
            return
        # On a busy machine the end is noticed before the last messages are read. They say which step it had reached,
        # or why it could not go on: without them, the wrong transform would be quarantined.
        self._events.worker_disconnected(self)
        self._channel.read_rest()
        self._channel.close()
        self._events.worker_ended(self, self._why_killed or _describe_end(reason.value))

    def processEnded(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Log the unfinished lines: a crashing interpreter's last words often lack a newline."""
        for rest in self._partial_lines.values():
            self._log_output([rest] if rest else [])

    # Called by the channel.

    def _receive(self, data: bytes) -> None:
        try:
            strings = self._decoder.decode(data)
            while strings and not self._why_killed:
                self._handle(strings.pop(0))
        except (BadFrame, ValueError) as error:
            self.kill(f"sent an invalid message: {one_line(str(error))}")
            self._events.worker_disconnected(self)

    def _handle(self, string: bytes) -> None:
        if self.pid is None:
            hello = messages.decode_hello(string)
            self.pid = hello.pid
            self._events.worker_said_hello(self, hello)
            return
        if (job := self._job) is None:
            raise ValueError("no request is running")
        if (step := messages.decode_step(string)) is not None:
            job.began(step)
        elif (raised := messages.decode_traceback(string)) is not None:
            job.raised(raised)
        else:
            answer = session.decode_reply(string)
            del string  # it may be long, and the answer holds its poem
            if answer.id != self._request_id:
                raise ValueError(f"request {self._request_id} is running, not {answer.id}")
            self._job = None
            job.answered(answer)

    def _channel_lost(self) -> None:
        # Usually the process is ending too, and its status says why.
        self._close_stdin()
        self._events.worker_disconnected(self)

    def _close_stdin(self) -> None:
        """Have the reaper kill the worker, and end."""
        if self._process is not None:
            self._process.closeStdin()

    def _log_output(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._lines += 1
            if self._lines <= MAX_LINES:
                text = printable(line[:MAX_LINE_BYTES].decode(errors="replace"))
                self.log.info("worker {pid}: {text}", pid=self.pid or "(starting)", text=text)
            elif self._lines == MAX_LINES + 1:
                self.log.info("worker {pid} prints too much; the rest is left out", pid=self.pid or "(starting)")


def _describe_end(end: BaseException | None) -> str:
    if not isinstance(end, ProcessTerminated):
        return "ended with exit status 0"
    if end.signal is None:
        return f"ended with exit status {end.exitCode}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(end.signal, f'signal {end.signal}')}"


def _resident_bytes(pid: int) -> int:
    try:
        statm = Path(f"/proc/{pid}/statm").read_text()
    except OSError:
        return 0
    return int(statm.split()[1]) * resource.getpagesize()
