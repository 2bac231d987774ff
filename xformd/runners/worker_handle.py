"""The server's end of one worker: its channel, its lifeline, and what it prints.

Invariant: a job hears of its own steps and answer only; a worker that sends anything else is ended.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.abstract import FileDescriptor
from twisted.internet.fdesc import readFromFD
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.main import CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.config.resources import count_oom_kills, resident_bytes
from xformd.errors import BadFrame, one_line, printable
from xformd.net.deadline import cancel
from xformd.net.transport import CHANNEL_BUFFER_BYTES, Channel
from xformd.runners import messages
from xformd.telemetry.tracebacks import SafeTraceback
from xformd.wire import netstring, session

if TYPE_CHECKING:
    from xformd.runners.supervisor import Supervisor

STDERR = 2

END_GRACE_S = 2.0  # how long a worker that is ended in order may take to run its exit handlers

MAX_LINE_BYTES, MAX_LINES = 1_000, 100  # of a worker's output, logged for each job; the rest is dropped


class Job:
    """What a worker runs for a request, and hears about directly: it ignores what it has no method for."""

    __slots__ = ()

    def began(self, step: int) -> None:
        """Note that a step begins, counted from 0; the first is not reported."""

    def raised(self, raised: SafeTraceback) -> None:
        """Note that a transform has raised something unexpected; the answer follows."""

    def answered(self, answer: session.Reply | session.Refusal) -> None:
        """Take the answer: nothing else follows."""

    def returned(self) -> None:
        """Note that the batch that it was in has failed; nothing else follows."""


@attrs.define(eq=False, slots=False)
class WorkerHandle:
    """One worker: has it forked, sends it jobs, passes on what it answers, and ends it.

    Making it raises ``OSError`` if the system has no more descriptors to give, or the fork server is gone.
    """

    log = Logger()

    _fork: Callable[..., None]  # asks the fork server for a worker that has these descriptors
    _max_result_bytes: int
    _events: "Supervisor"  # hears of it
    _reactor: Any
    _logs_output: bool = attrs.field(default=True, kw_only=True)  # or else it goes to this process's standard error

    def __attrs_post_init__(self) -> None:
        self._why_killed = ""
        self._status = bytearray()
        self._jobs: dict[int, Job] = {}
        self._oom_kills = count_oom_kills()
        self._grace: IDelayedCall | None = None
        self.pid: int | None = None  # the worker's own, not its reaper's; known from its hello
        self.worn = ""  # why it asks to be replaced
        self.last_step = 0, 0.0  # of a job on asyncio, once it has ended: the job's id if it ran then, and its seconds
        longest_answer = self._max_result_bytes + session.MAX_HEAD_BYTES
        self._decoder = netstring.Decoder(max(messages.MAX_HELLO_BYTES, longest_answer))
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as undo:
            (channel, their_channel), (lifeline, their_lifeline) = (socket_pair(theirs, undo) for _ in range(2))
            their_channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
            self._output = OutputLog(self._name, self._reactor, is_passed_on=not self._logs_output)
            their_output = self._output.open(theirs, undo)
            self._channel = Channel(channel, self._receive, self._channel_lost, self._reactor)
            undo.callback(self._channel.close)
            self._lifeline = Channel(lifeline, self._status.extend, self._ended, self._reactor)
            undo.callback(self._lifeline.close)
            self._fork(their_channel.fileno(), their_lifeline.fileno(), their_output)
            undo.pop_all()

    def send(self, requests: Sequence[session.Request], jobs: Sequence[Job]) -> None:
        """Send a request, or several as a batch; each of the ``jobs`` hears what becomes of its own."""
        self._output.allow_more()
        self._jobs.update(zip((request.id for request in requests), jobs, strict=True))
        self._channel.send(messages.encode_requests(requests))

    def cancel(self, request_id: int) -> None:
        """Cancel a request on asyncio; it is answered all the same."""
        self._channel.send(messages.encode_note("cancel", request_id))

    def kill(self, why: str) -> None:
        """End it and every process that it started; ``worker_ended`` follows, and nothing else of it is passed on."""
        self._why_killed = self._why_killed or why
        self._channel.close()
        self._lifeline.finish()

    def retire(self, why: str) -> None:
        """End it in order, if it has no job: it may run its exit handlers for ``END_GRACE_S``."""
        self._why_killed = self._why_killed or why
        self._channel.finish()
        self._grace = self._reactor.callLater(END_GRACE_S, self._lifeline.finish)

    def resident_bytes(self) -> int:
        """Return how much memory it uses, in bytes; 0 if the system does not say."""
        return resident_bytes(self.pid) if self.pid is not None else 0

    def cpu_s(self) -> float:
        """Return how much CPU time it has used, in seconds, without its children; 0 if the system does not say."""
        if self.pid is None:
            return 0.0
        try:
            return time.clock_gettime(~self.pid << 3 | 2)  # its CPUCLOCK_SCHED, as of clock_getcpuclockid(3)
        except OSError:
            return 0.0

    def _name(self) -> str:
        return f"worker {self.pid or '(starting)'}"

    # Called by the lifeline.

    def _ended(self) -> None:
        """Report its end: its reaper has ended too."""
        # On a busy machine the end is noticed before the last messages are read. They say which step it had reached,
        # or why it could not go on: without them, the wrong transform would be quarantined.
        self._events.worker_disconnected(self)
        self._channel.read_rest()
        self._channel.close()
        self._output.read_rest()
        cancel(self._grace)
        status, *last_step = self._status.split() if self._status[:1].isdigit() else [self._status]
        if last_step:
            self.last_step = int(last_step[0]), int(last_step[1]) / 1000
        self._events.worker_ended(self, self._why_killed or _describe_end(status, self._oom_kills))

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
        news = messages.decode_news(string)
        if self.pid is None:
            self._prepare(news)
        elif not self._jobs:
            raise ValueError("no request is running")
        elif (note := messages.decode_note(string)) is not None:
            self._heed(*note)
        elif news is not None:
            self._learn(news)
        else:
            answer = session.decode_reply(string)
            del string  # it may be long, and the answer holds its poem
            self._job(answer.id, is_over=True).answered(answer)

    def _heed(self, note: str, request_id: int, index: int) -> None:
        if note == "step":
            self._job(request_id).began(index)
        elif note == "return":
            self._job(request_id, is_over=True).returned()
        else:
            raise ValueError(f"{note!r} is for workers")

    def _prepare(self, news: Mapping[str, Any] | None) -> None:
        match news:
            case {"pid": int(pid), "listing": dict(listing)}:
                self.pid = pid
                self._events.worker_said_hello(self, messages.WorkerHello(pid, listing))
            case None:
                raise ValueError("a worker begins with a hello")
            case _:
                self._events.worker_loading(self, news)

    def _learn(self, news: Mapping[str, Any]) -> None:
        match news:
            case {"raised": int(request_id), "error": str(error), "traceback": str(traceback), "detail": str(detail)}:
                self._job(request_id).raised(SafeTraceback(error, traceback, detail))
            case {"warning": str(warning)}:
                self.worn = one_line(warning)
            case _:
                raise ValueError("no worker has such news")

    def _job(self, request_id: int, *, is_over: bool = False) -> Job:
        if (job := self._jobs.pop(request_id, None) if is_over else self._jobs.get(request_id)) is None:
            raise ValueError(f"request {request_id} is not running")
        return job

    def _channel_lost(self) -> None:
        # Usually the process is ending too, and its status says why.
        self._lifeline.finish()
        self._events.worker_disconnected(self)


def socket_pair(theirs: contextlib.ExitStack, undo: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return our end of a channel, which ``undo`` closes, and a process's, which ``theirs`` closes."""
    ours, their_end = socket.socketpair()
    undo.callback(ours.close)
    theirs.callback(their_end.close)
    return ours, their_end


class OutputLog(FileDescriptor):
    """Logs what a process prints, line by line; the same pipe is its standard output and its standard error.

    What ``is_passed_on`` goes to this process's standard error instead, for the person who runs a command.
    """

    log = Logger()

    def __init__(self, name: Callable[[], str], reactor: Any, *, is_passed_on: bool = False) -> None:
        super().__init__(reactor)
        self._is_passed_on = is_passed_on
        self._descriptor = -1
        self._name = name
        self._rest = b""
        self._lines = 0

    def open(self, theirs: contextlib.ExitStack, undo: contextlib.ExitStack) -> int:
        """Make the pipe, and read from it; return the process's end. The stacks are those of ``socket_pair``."""
        self._descriptor, their_end = os.pipe()
        theirs.callback(os.close, their_end)
        undo.callback(self.connectionLost, Failure(CONNECTION_LOST))
        os.set_blocking(self._descriptor, False)
        self.reactor.addReader(self)
        return their_end

    def fileno(self) -> int:
        """Return the pipe's descriptor; -1 once it is closed."""
        return self._descriptor

    def allow_more(self) -> None:
        """Allow ``MAX_LINES`` again: another job begins."""
        self._lines = 0

    def doRead(self) -> Any:
        """Log the lines that are complete, or long."""
        return readFromFD(self._descriptor, self._received)

    def read_rest(self) -> None:
        """Log what has been printed and not been read yet."""
        with contextlib.suppress(OSError):
            while self._descriptor != -1 and (data := os.read(self._descriptor, 65_536)):
                self._received(data)

    def connectionLost(self, reason: Failure) -> None:
        """Log the unfinished line: a crashing interpreter's last words often lack a newline."""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1
            self._log([self._rest] if self._rest else [])

    def _received(self, data: bytes) -> None:
        if self._is_passed_on:
            with contextlib.suppress(OSError):  # it is full, or closed: no reason for a transform to fail
                os.write(STDERR, data)
            return
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._rest = rest
        self._log(lines)

    def _log(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._lines += 1
            if self._lines <= MAX_LINES:
                text = printable(line[:MAX_LINE_BYTES].decode(errors="replace"))
                self.log.info("{process}: {text}", process=self._name(), text=text)
            elif self._lines == MAX_LINES + 1:
                self.log.info("{process} prints too much; the rest is left out", process=self._name())


def _describe_end(status: bytearray, oom_kills: int) -> str:
    """Describe an end by what the lifeline has brought: a wait status, words, or nothing."""
    if status and not status.isdigit():
        return f"could not be started: {one_line(status.decode(errors='replace'))}"
    code = os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL  # its reaper was killed too
    by = ", by the kernel's out-of-memory killer" if code == -signal.SIGKILL and count_oom_kills() > oom_kills else ""
    return describe_exit(code) + by


def describe_exit(code: int) -> str:
    """Return what follows a process's name: ended with an exit status, or, if that is negative, killed by a signal."""
    if code >= 0:
        return f"ended with exit status {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
