"""How a test finds what a transform did and what it left: notes in a folder, and processes with a name.

A marker is the test's own, so that tests which run side by side never take each other's processes for theirs.
"""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

LIFE_S = 60.0
"""How long anything hangs or lingers that nobody ends."""

PR_SET_NAME = 15


def note(marker: str) -> None:
    """Leave a note that a call began here: a line with this process's id, in the file of the marker's name.

    Args:
        marker: none leaves no note.
    """
    if marker:
        with Path(os.environ["HOSTILE_FOLDER"], marker).open("a") as file:
            file.write(f"{os.getpid()}\n")


def hang() -> None:
    """Wait for as long as anything waits here."""
    ends_at = time.monotonic() + LIFE_S
    while time.monotonic() < ends_at:
        time.sleep(1)


def name_process(marker: str) -> None:
    """Give this process a name, which the process table shows."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, marker.encode()[:15], 0, 0, 0)


def go_deaf() -> None:
    """Ignore every signal that can be ignored, in whatever thread this is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)
