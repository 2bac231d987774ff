"""Real fork servers, reapers and workers, driven over plain sockets as the server drives them."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.processes import DEADLINE_S
from xformd.plugins.selection import Selection
from xformd.runners import messages
from xformd.runners.messages import WorkerHello, WorkerSetup
from xformd.spec import parse
from xformd.wire import netstring, session

_COMMAND = "from xformd.runners.reaper import main; main()"

# In an interpreter of its own: the coverage tool opens a file at once, which would take descriptor 3.
_START = """
import os, sys
control = int(sys.argv[1])
if control != 3:
    os.dup2(control, 3)
    os.close(control)
os.execv(sys.executable, [sys.executable, "-P", "-c", sys.argv[2]])
"""


class _Netstrings:
    """What comes over a socket, a netstring at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._decoder = netstring.Decoder(messages.MAX_HELLO_BYTES)
        self._strings: list[bytes] = []

    def receive(self) -> bytes:
        """Wait for a netstring."""
        while not self._strings:
            try:
                data = self._connection.recv(65_536)
            except ConnectionResetError:  # it has ended before it read what it was sent
                data = b""
            if not data:
                raise EOFError
            self._strings += self._decoder.decode(data)
        return self._strings.pop(0)


class LiveWorker:
    """A worker and the reaper above it: a channel, a lifeline, and what it prints."""

    def __init__(self, control: socket.socket, close_at_end: ExitStack) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        (self.channel, _), (self.lifeline, _) = pairs
        self._output, output = os.pipe()
        close_at_end.callback(os.close, self._output)
        for ours, _ in pairs:
            ours.settimeout(DEADLINE_S)
            close_at_end.callback(ours.close)
        socket.send_fds(control, [b"."], [*(theirs.fileno() for _, theirs in pairs), output])
        os.close(output)
        for _, theirs in pairs:
            theirs.close()
        self._netstrings = _Netstrings(self.channel)
        self._requests = 0
        self.news: list[Mapping[str, Any]] = []
        """What it has told while it loaded plugins, and later."""
        self.raised: list[str] = []
        """The errors of which it has told in answer to ``answers``."""

    def begin(self) -> "LiveWorker":
        """Wait for its hello."""
        while "listing" not in (news := messages.decode_news(self.receive()) or {}):
            self.news.append(news)
        self.hello = WorkerHello(news["pid"], news["listing"])
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.hello.pid

    def receive(self) -> bytes:
        """Wait for a netstring."""
        return self._netstrings.receive()

    def ask(self, spec: str, *poems: bytes, timeout_ms: int | None = None) -> int:
        """Send a request, or a batch of requests; return the id of the last one."""
        requests = []
        for poem in poems or (b"",):
            self._requests += 1
            requests.append(session.Request(self._requests, parse(spec), poem, timeout_ms))
        self.channel.sendall(messages.encode_requests(requests))
        return self._requests

    def cancel(self, request_id: int) -> None:
        """Cancel a request on asyncio."""
        self.channel.sendall(messages.encode_note("cancel", request_id))

    def answers(self, count: int) -> dict[int, bytes | Exception | None]:
        """Return so many answers by their ids, and None for what has to run again."""
        found: dict[int, bytes | Exception | None] = {}
        while len(found) < count:
            string = self.receive()
            if (news := messages.decode_news(string)) is not None and "raised" in news:
                self.raised.append(news["error"])
            elif news is not None:
                self.news.append(news)
            elif (note := messages.decode_note(string)) is not None:
                assert note[0] == "return"
                found[note[1]] = None
            else:
                reply = session.decode_reply(string)
                found[reply.id] = reply.poem if isinstance(reply, session.Reply) else reply.error
        return found

    def answer(self) -> bytes | Exception:
        """Return the next answer's poem or error, without a traceback before it."""
        while "raised" in (messages.decode_news(string := self.receive()) or ()):
            pass
        reply = session.decode_reply(string)
        assert reply.id == self._requests
        return reply.poem if isinstance(reply, session.Reply) else reply.error

    def xform(self, spec: str, poem: bytes = b"") -> bytes | Exception:
        """Send a request and wait for its answer."""
        self.ask(spec, poem)
        return self.answer()

    def text(self, spec: str, poem: bytes = b"") -> str:
        """Send a request and wait for its result."""
        result = self.xform(spec, poem)
        assert isinstance(result, bytes), result
        return result.decode()

    def retire(self) -> None:
        """End it in order."""
        self.channel.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """Have its reaper kill it."""
        self.lifeline.shutdown(socket.SHUT_WR)

    def end(self) -> int | None:
        """Wait for its end; return its exit code as its reaper reports it, None if it does not."""
        status, *last_step = b"".join(iter(lambda: self.lifeline.recv(100), b"")).split() or [b""]
        self.last_step = [*map(int, last_step)]
        return os.waitstatus_to_exitcode(int(status)) if status else None

    def wait_for_output(self, text: bytes) -> None:
        """Wait until it has printed this."""
        seen = b""
        while text not in seen:
            assert select.select([self._output], [], [], DEADLINE_S)[0], f"it has printed {seen!r}"
            data = os.read(self._output, 65_536)
            assert data, f"it ended, and has printed {seen!r}"
            seen += data

    def printed(self) -> bytes:
        """Wait until nobody can print any more; return what it has printed."""
        return _read_all(self._output)


def _read_all(descriptor: int) -> bytes:
    text = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], DEADLINE_S)
        assert ready, "somebody holds its output open"
        if not (data := os.read(descriptor, 65_536)):
            return text
        text += data


class LiveForkServer:
    """A fork server with the reaper above it, and a control socket."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, close_at_end: ExitStack) -> None:
        self.process = process
        self.control = control
        self._close_at_end = close_at_end
        self._netstrings = _Netstrings(control)

    def send_setup(self, folder: Path | None = None, **fields: Any) -> None:
        """Send the setup, with the plugins of a folder."""
        selection = Selection(distributions=frozenset(), directories=(folder,) if folder else ())
        sizes = {"max_request_bytes": 1_000_000, "max_result_bytes": 1_000_000, "memory_bytes": 2**30}
        self.control.sendall(messages.encode_setup(WorkerSetup(**{"selection": selection, **sizes, **fields})))

    def begin(self, folder: Path | None = None, **fields: Any) -> list[Mapping[str, Any]]:
        """Send the setup; return the news until the plugins are loaded, without those of built-ins."""
        self.send_setup(folder, **fields)
        news: list[Mapping[str, Any]] = []
        while not news or not {"loaded", "late"} & news[-1].keys():
            told = messages.decode_news(self.receive())
            assert told is not None
            if told.get("loading", [""])[0] != "xformd":
                news.append(told)
        return news

    def receive(self) -> bytes:
        """Wait for a netstring."""
        return self._netstrings.receive()

    def fork(self) -> LiveWorker:
        """Ask for a worker."""
        return LiveWorker(self.control, self._close_at_end)

    def worker(self) -> LiveWorker:
        """Ask for a worker, and wait for its hello."""
        return self.fork().begin()

    @property
    def pid(self) -> int:
        """The fork server's own process id, which is not its reaper's."""
        (pid,) = children(self.process.pid)
        return pid

    def finish(self) -> None:
        """Ask for no more workers: it ends in order."""
        self.control.shutdown(socket.SHUT_WR)

    def cut_lifeline(self) -> None:
        """Have its reaper kill it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self) -> tuple[int, bytes]:
        """Wait for its end; return the exit code, and what it has printed."""
        assert self.process.stdout is not None
        printed = _read_all(self.process.stdout.fileno())
        return self.process.wait(DEADLINE_S), printed


@contextmanager
def live(command: str = _COMMAND) -> Iterator[LiveForkServer]:
    """Run a fork server until the block ends."""
    control, theirs = socket.socketpair()
    control.settimeout(DEADLINE_S)
    with ExitStack() as close_at_end:
        close_at_end.callback(control.close)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        with process:
            try:
                yield LiveForkServer(process, control, close_at_end)
            finally:
                control.close()
                try:  # let it end by itself, so that its coverage is saved
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    process.kill()


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Return a process's children."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def descriptors(pid: int) -> list[int]:
    """Return a process's open descriptors."""
    return [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
