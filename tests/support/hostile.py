"""A server with the hostile transforms, and its processes."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs

from support import packages, process_table
from support.packages import Environment
from support.processes import Server, serving, wait_until
from support.session_client import Answer, Session, step

PLUGIN = Path(__file__).parent / "hostile-plugin"

WORKERS = 2
MIB = 1024 * 1024

KILL_S = 0.2
"""A request is answered at most this long after its limit, as the project promises."""

GONE_S = 0.5
"""A process outlives its request or its server by at most this long."""

DEFAULTS = {
    "XFORMD_WORKERS": str(WORKERS),
    "XFORMD_SHUTDOWN_GRACE_S": "1",
    "XFORMD_WORKER_MEMORY_BYTES": str(512 * MIB),
}


@attrs.frozen
class Hostile:
    """A running server, the folder with its transforms' notes, and the token in its processes' environment."""

    server: Server
    folder: Path
    token: str

    def processes(self) -> set[int]:
        """Return the live processes that came from the server, whatever their parents are now."""
        return process_table.bearing(self.token) - {self.server.process.pid}

    def started(self, marker: str) -> set[int]:
        """Return the processes in which the transform with this marker has started."""
        note = self.folder / marker
        return set(map(int, note.read_text().split())) if note.exists() else set()

    def wait_for(self, marker: str) -> set[int]:
        """Wait until the transform with this marker has started; return its processes."""
        wait_until(lambda: bool(self.started(marker)))
        return self.started(marker)

    def left_of(self, marker: str) -> set[int]:
        """Return the live processes in which this marker's transform ran, and those that it has left behind."""
        ran_in = {pid for pid in self.started(marker) if process_table.is_alive(pid)}
        return ran_in | process_table.named(marker)

    def worker_pids(self, count: int = WORKERS) -> set[int]:
        """Return the processes of ``count`` workers that run at the same time."""
        pids: set[int] = set()
        spec = f"{step('sleep', seconds=0.05)}+pid"
        with Session(self.server) as session:

            def look() -> bool:
                answers = session.collect(session.send(*[(spec, b"")] * (2 * count)))
                pids.update(int(answer.poem) for answer in answers if answer.code == "ok")
                return len(pids) >= count

            wait_until(look)
        return pids


Hosting = Callable[..., AbstractContextManager[Hostile]]


def new_marker() -> str:
    """Return a unique marker that fits into a process's name."""
    return f"h-{secrets.token_hex(5)}"


def install(folder: Path) -> Environment:
    """Build the plugin, and install it into a fresh environment."""
    wheel = packages.build_wheel(PLUGIN, folder)
    environment = packages.create_environment(folder / "environment")
    packages.install(environment, [wheel])
    return environment


@contextmanager
def hostile_server(
    environment: Environment, folder: Path, *arguments: str, command: Sequence[str] = (), **extra: str
) -> Iterator[Hostile]:
    """Run a server with the hostile transforms until the block ends, and kill what it leaves behind.

    Arguments that select plugins replace the default selection, ``command`` the environment's xformd, and ``extra``
    variables those in ``DEFAULTS``.
    """
    token = secrets.token_hex(8)
    command = command or (str(environment.python), "-m", "xformd")
    selection = () if any(argument.startswith("--plugins") for argument in arguments) else ("--plugins=xformd-hostile",)
    variables: dict[str, Any] = {**DEFAULTS, "HOSTILE_FOLDER": str(folder), process_table.TOKEN: token, **extra}
    try:
        with serving(folder, *selection, *arguments, command=command, **variables) as server:
            yield Hostile(server, folder, token)
    finally:
        process_table.kill(process_table.bearing(token))


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true in time."""
    ends_at = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.005)
    return True


def seconds_until(condition: Callable[[], bool]) -> float:
    start = time.monotonic()
    wait_until(condition)
    return time.monotonic() - start


def codes(answers: list[Answer]) -> list[str]:
    return [answer.code for answer in answers]
