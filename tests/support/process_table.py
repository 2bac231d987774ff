"""The process table, as a test may look at it: which processes are there, and which of them are its own.

A server of these tests carries a token in its environment, which every descendant inherits, whoever its parent has
become. So a test sees all that its server has ever started, and nothing of what other tests run at the same time.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TOKEN = "HOSTILE_TOKEN"
"""The environment variable."""


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def bearing(token: str) -> set[int]:
    """Give the processes with this token; a zombie has no environment, and is none of them."""
    wanted = f"{TOKEN}={token}".encode()
    found = set()
    for pid in _pids():
        with suppress(OSError):  # it has just ended, or is somebody else's
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def named(name: str) -> set[int]:
    """Give the processes that have given themselves this name, and live."""
    found = set()
    for pid in _pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().rstrip("\n") == name and is_alive(pid):
                found.add(pid)
    return found


def leaves(pids: set[int]) -> set[int]:
    """Give those of the processes that are nobody's parent: the workers, where each has a process that watches it."""
    return pids - {parent for pid in pids if (parent := _parent(pid))}


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    """Whether this process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(pids: set[int]) -> None:
    """Kill processes, those that have gone already apart."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
