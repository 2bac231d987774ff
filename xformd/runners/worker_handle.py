"""The server's side of one worker: its process, its channel, and what it prints.

It knows how to start, to speak and to end; what to run, and what an end means, is for the pool.
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
"""Of what a worker prints during one job: what comes after goes nowhere."""

_COMMAND = (
    "import sys; path = {path!r}; sys.path[:] = path + [entry for entry in sys.path if entry not in path]; "
    "from xformd.runners.reaper import main; main()"
)
"""What the server can import, its workers can, and what has been installed since."""


class WorkerEvents(Protocol):
    """Who has a worker hears of these."""

    def worker_said_hello(self, worker: "WorkerHandle", report: messages.WorkerHello) -> None:
        """It has loaded its plugins."""
        ...

    def worker_began(self, worker: "WorkerHandle", step: int) -> None:
        """It begins a step of its job, counted from 0; it does not say so of the first."""
        ...

    def worker_raised(self, worker: "WorkerHandle", raised: SafeTraceback) -> None:
        """Its transform has raised something that it must not raise; the answer comes next."""
        ...

    def worker_answered(self, worker: "WorkerHandle", answer: session.Reply | session.Refusal) -> None:
        """It has answered."""
        ...

    def worker_hung_up(self, worker: "WorkerHandle") -> None:
        """It will do no more work, and is about to end."""
        ...

    def worker_ended(self, worker: "WorkerHandle", reason: str) -> None:
        """It is gone, and so is every process that came from it."""
        ...


class WorkerHandle(ProcessProtocol):
    """One worker.

    Args:
        told: what it is to load.
        events: hears what becomes of it.
        reactor: spawns it.

    Raises:
        OSError: the system has no more processes, memory or descriptors to give.
    """

    log = Logger()

    def __init__(self, told: messages.WorkerSetup, events: WorkerEvents, reactor: Any) -> None:
        self._events = events
        self._why = ""
        self._logs = {1: b"", 2: b""}
        self._lines = 0
        self.pid: int | None = None  # the worker's own, once it has reported
        self._decoder = netstring.Decoder(max(messages.MAX_HELLO_BYTES, told.max_result_bytes + session.MAX_HEAD_BYTES))
        self._process: IProcessTransport | None = None
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BUFFER_BYTES)
            self._channel = Channel(ours, self._receive, self._channel_lost, reactor)
            undo.callback(self._channel.close)
            self._process = self._spawn(reactor, theirs)
            undo.pop_all()
        self._channel.send(messages.encode_setup(told))

    def _spawn(self, reactor: Any, channel: socket.socket) -> IProcessTransport:
        process: IProcessTransport = reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, "-P", "-c", _COMMAND.format(path=sys.path)],
            env=None,
            childFDs={0: "w", 1: "r", 2: "r", reaper.CHANNEL: channel.fileno()},
        )
        if self._why:
            raise ChildProcessError(f"it {self._why}")
        return process

    def send(self, request: session.Request) -> None:
        """Give it a job."""
        self._lines = 0
        self._channel.send(session.encode_request(request))

    def kill(self, why: str = "") -> None:
        """End it, and all that came from it; ``worker_ended`` comes when that is done."""
        self._why = self._why or why
        self._channel.close()
        self._let_go()

    def resident_bytes(self) -> int:
        """Give how much memory it has in use, in bytes; 0 where the system does not tell."""
        return _resident_bytes(self.pid) if self.pid is not None else 0

    # What Twisted calls.

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Put what it prints into the log, line by line."""
        *lines, rest = (self._logs[childFD] + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        self._logs[childFD] = rest
        self._print(lines)

    def processExited(self, reason: Failure) -> None:
        """Tell that it is gone. Not in ``processEnded``, which waits for whoever holds its pipes."""
        self._channel.close()
        self._why = self._why or _explain(reason.value)
        if self._process is not None:  # else it is still being spawned, and nobody knows of it
            self._events.worker_ended(self, self._why)

    def processEnded(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Log what was left when its pipes were closed."""
        for rest in self._logs.values():
            self._print([rest] if rest else [])

    # What the channel calls.

    def _receive(self, data: bytes) -> None:
        try:
            strings = self._decoder.decode(data)
            while strings and not self._why:  # what it says after that for which it was killed means nothing
                self._handle(strings.pop(0))
        except (BadFrame, ValueError) as error:
            self.kill(f"said what no worker says: {one_line(str(error))}")
            self._events.worker_hung_up(self)

    def _handle(self, string: bytes) -> None:
        if self.pid is None:
            report = messages.decode_hello(string)
            self.pid = report.pid
            self._events.worker_said_hello(self, report)
        elif (step := messages.decode_step(string)) is not None:
            self._events.worker_began(self, step)
        elif (raised := messages.decode_traceback(string)) is not None:
            self._events.worker_raised(self, raised)
        else:
            answer = session.decode_reply(string)
            del string  # it may be long, and the answer holds its poem
            self._events.worker_answered(self, answer)

    def _channel_lost(self) -> None:
        # Mostly the process ends with it, and says itself how.
        self._let_go()
        self._events.worker_hung_up(self)

    def _let_go(self) -> None:
        if self._process is not None:
            self._process.closeStdin()

    def _print(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._lines += 1
            if self._lines <= MAX_LINES:
                text = printable(line[:MAX_LINE_BYTES].decode(errors="replace"))
                self.log.info("worker {pid}: {text}", pid=self.pid or "that starts", text=text)
            elif self._lines == MAX_LINES + 1:
                self.log.info("worker {pid} prints too much; the rest is left out", pid=self.pid)


def _explain(end: BaseException | None) -> str:
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
