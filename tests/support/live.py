"""Real workers and reapers, driven over a plain socket as the server drives them."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xformd.plugins.selection import Selection
from xformd.runners import messages
from xformd.runners.messages import WorkerHello, WorkerSetup
from xformd.spec import parse
from xformd.wire import netstring, session

DEADLINE_S = 20.0
"""Long enough for a busy machine; nothing ever waits this long unless it is broken."""

WORKER = "from xformd.runners.worker import main; main(3)"
REAPER = "from xformd.runners.reaper import main; main()"

# In an interpreter of its own: the coverage tool opens a file at once, which would take descriptor 3.
_START = """
import os, sys
channel = int(sys.argv[1])
if channel != 3:
    os.dup2(channel, 3)
    os.close(channel)
os.execv(sys.executable, [sys.executable, "-P", "-c", sys.argv[2]])
"""


class Live:
    """One process with a channel, and its standard streams."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.process = process
        self.channel = channel
        self._decoder = netstring.Decoder(messages.MAX_HELLO_BYTES)
        self._strings: list[bytes] = []
        self._requests = 0

    def receive(self) -> bytes:
        """Wait for a netstring."""
        while not self._strings:
            data = self.channel.recv(65_536)
            if not data:
                raise EOFError
            self._strings += self._decoder.decode(data)
        return self._strings.pop(0)

    def begin(self, folder: Path | None = None, **limits: int) -> WorkerHello:
        """Send the setup; return the hello."""
        selection = Selection(distributions=frozenset(), directories=(folder,) if folder else ())
        sizes = {"max_request_bytes": 1_000_000, "max_result_bytes": 1_000_000, "memory_bytes": 2**30, **limits}
        self.channel.sendall(messages.encode_setup(WorkerSetup(selection=selection, **sizes)))
        return messages.decode_hello(self.receive())

    def ask(self, spec: str, poem: bytes = b"") -> int:
        """Send a request; return its id."""
        self._requests += 1
        self.channel.sendall(session.encode_request(session.Request(self._requests, parse(spec), poem)))
        return self._requests

    def answer(self) -> bytes | Exception:
        """Return the next answer's poem or error, without a traceback before it."""
        while messages.decode_traceback(string := self.receive()) is not None:
            pass
        reply = session.decode_reply(string)
        assert reply.id == self._requests
        return reply.poem if isinstance(reply, session.Reply) else reply.error

    def xform(self, spec: str, poem: bytes = b"") -> bytes | Exception:
        """Send a request and wait for its answer."""
        self.ask(spec, poem)
        return self.answer()

    def close_input(self) -> None:
        """Close its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self) -> tuple[bytes, bytes]:
        """Wait for its end; return its standard output and error."""
        return self.process.communicate(timeout=DEADLINE_S)


@contextmanager
def live(code: str) -> Iterator[Live]:
    """Run a worker, or a reaper with its worker, until the block ends."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        with process:
            try:
                yield Live(process, ours)
            finally:
                ours.close()
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


def descriptors(pid: int) -> list[int]:
    """Return a process's open descriptors."""
    return [int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()]
