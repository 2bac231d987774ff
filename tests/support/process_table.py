"""The process table: which processes there are, and which belong to a test.

A server of these tests has a token in its environment, which every descendant inherits, even one with another parent.
So a test sees all that its server has ever started, and nothing that other tests run at the same time.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TOKEN = "HOSTILE_TOKEN"
"""The environment variable."""


def pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - a Path each takes 5 times as long


def has_variable(pid: int, variable: bytes) -> bool:
    """Whether a process has this NAME=value in its environment. A zombie has none."""
    with suppress(OSError):  # it has just ended, or is another user's
        return variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def bearing(token: str) -> set[int]:
    """Return the live processes with this token."""
    return {pid for pid in pids() if has_variable(pid, f"{TOKEN}={token}".encode())}


def named(name: str) -> set[int]:
    """Return the live processes that have given themselves this name."""
    found = set()
    for pid in pids():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().rstrip("\n") == name and is_alive(pid):
                found.add(pid)
    return found


def leaves(processes: set[int]) -> set[int]:
    """Return the processes without children here: the workers, where each has a process that watches it."""
    return processes - {parent(pid) for pid in processes}


def parent(pid: int) -> int:
    """Return a process's parent; 0 if it is gone."""
    return int(_status(pid)[1])


def is_alive(pid: int) -> bool:
    """Whether this process exists and is no zombie."""
    return _status(pid)[0] not in "ZX"


def _status(pid: int) -> list[str]:
    """Return the fields after a process's name: its state, its parent and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def kill(processes: set[int]) -> None:
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
