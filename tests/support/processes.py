"""Real commands and real servers, each in a process of its own that is always ended."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from support import in_process
from xformd import cli

DEADLINE_S = 90.0
"""Long enough for the busiest machine; nothing ever waits this long unless it is broken."""

XFORMD = (sys.executable, "-m", "xformd")
VERSES = Path(__file__).parent / "verses"

SLOW = re.compile(rb"^xformd: still (?:loading|warming up) plugin .*\n", re.MULTILINE)
"""What a command says on a slow machine."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a command: this one, without what would change its behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XFORMD_")}
    return {**kept, "COLUMNS": "200", **(extra or {})}


def xformd(*arguments: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, in this process; ``extra`` adds to its environment."""
    if arguments[:1] == ("serve",):
        extra.setdefault("XFORMD_HTTP", "none")  # its port is another test's
    done = in_process.run(cli.main.main, arguments, stdin=stdin, environment=environment(extra))
    done.stderr = SLOW.sub(b"", done.stderr)
    return done


def xformd_process(*arguments: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, in a process of its own, where that is the point."""
    if arguments[:1] == ("serve",):
        extra.setdefault("XFORMD_HTTP", "none")
    return subprocess.run(
        [*XFORMD, *arguments], input=stdin, capture_output=True, timeout=DEADLINE_S, env=environment(extra), check=False
    )


def wait_until(condition: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.005)


class Server:
    """A server process.

    Attributes:
        greeting: what it printed when it started.
        address: where it listens; without the ``tls:`` that says how.
        http: where it answers HTTP; empty where it does not.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, ready: str = "transforms from") -> None:
        self.process = process
        self._log = log
        self._pending = b""
        self.greeting: list[str] = []
        while not any(ready in line for line in self.greeting):
            self.greeting.append(self.read_line())
        self.address = self.greeting[0].rpartition(" ")[2].removeprefix("tls:")
        self.http = next((line.rpartition(" ")[2] for line in self.greeting if " listening on http" in line), "")

    def read_line(self, seconds: float = DEADLINE_S) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            assert ready, f"no line within {seconds} s; its log: {self.log}"
            data = os.read(self.process.stdout.fileno(), 65_536)
            assert data, f"it ended; its log: {self.log}"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode()

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text()

    def connect(self, source: str = "") -> socket.socket:
        """Connect, from an address of the loopback network if one is given: it is a peer of its own."""
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=DEADLINE_S, source_address=(source, 0))

    def ask(self, request: bytes, *, half_close: bool = False) -> bytes:
        """Send bytes; return everything that comes back until the close."""
        with self.connect() as connection:
            connection.sendall(request)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_to_end(connection)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_S)


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the peer closes."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def resident_bytes(server: Server) -> int:
    """Return the resident memory of a server's process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@contextmanager
def serving(
    folder: Path,
    *arguments: str,
    command: Sequence[str] = XFORMD,
    verb: Sequence[str] = ("serve",),
    ready: str = "transforms from",
    keep: Sequence[int] = (),
    where: Sequence[str] = ("--port", "0"),
    **extra: str,
) -> Iterator[Server]:
    """Run a server on a free port until the block ends; without workers, unless the test asks for some.

    Args:
        folder: for its log.
        arguments: after the verb; with ``--listen``, no free port is chosen.
        command: the program.
        verb: its subcommand.
        ready: part of the last line of its greeting.
        keep: descriptors that it inherits.
        where: options that choose a free port.
        extra: additional environment variables.
    """
    where = () if "--listen" in arguments else where
    extra.setdefault("XFORMD_HTTP", "none")  # its port is another test's
    if verb == ("serve",):
        extra.setdefault("XFORMD_WORKERS", "0")
        extra.setdefault("XFORMD_HOST_NAMES", "a b")  # what the tests' requests call it
        extra.setdefault("XFORMD_TRANSFORM_TIMEOUT_S", "1000")  # no test waits that long for what must end before
    log = folder / "server.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [*command, *verb, *where, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(extra),
            pass_fds=keep,
        ) as process,
    ):
        try:
            server = Server(process, log, ready)
            if verb == ("serve",) and "XFORMD_PLUGIN_LOAD_TIMEOUT_S" not in extra:
                wait_for_plugins(server)
            yield server
        finally:
            stop(process)


def wait_for_plugins(server: Server) -> None:
    """Wait for plugins that take long to be loaded on a busy machine: the server starts without them."""

    def are_loaded() -> bool:
        if server.greeting[0].rpartition(" ")[2].startswith("tls:"):
            slow = re.findall(r"(plugin \S+ \(\S+\)) is still loading", server.log)
            return all(f"{plugin} is loaded" in server.log for plugin in slow)
        with server.connect() as connection:
            connection.sendall(netstring(b"xformd/2") + netstring(b"1 !ping."))
            connection.shutdown(socket.SHUT_WR)
            return b"still loading" not in read_to_end(connection)

    if "is still loading after" in server.log:  # which is written before the server starts without it
        wait_until(are_loaded)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process in order, or else at once."""
    process.terminate()
    try:
        process.wait(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def netstring(string: bytes) -> bytes:
    """Frame a string by hand: the tests do not use the code that they test."""
    return str(len(string)).encode() + b":" + string + b","
