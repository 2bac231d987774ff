"""How a test finds what a transform did and what it left: notes in a folder, and processes with a name.

A marker belongs to one test, so that tests which run side by side never take each other's processes for theirs.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import xformd

LIFE_S = 300.0
"""Whatever hangs or lingers ends by itself after this time."""

PR_SET_NAME = 15
OWL = (("Owl", "Owl"),)


def note(marker: str) -> None:
    """Note that a call began here: add this process's id to the file with the marker's name; "" notes nothing."""
    if marker:
        with Path(os.environ["HOSTILE_FOLDER"], marker).open("a") as file:
            file.write(f"{os.getpid()}\n")


def marked(name: str, act: Callable[[str], Any], examples: Sequence[Any] = ()) -> xformd.Transform:
    """Make a transform that leaves a note, then acts on the poem; an ``act`` without a result returns the poem."""

    def transform(poem: str, *, marker: str = "") -> str:
        note(marker)
        result = act(poem)
        return poem if result is None else result

    return xformd.transform(name=name, examples=examples)(transform)


def hang() -> None:
    ends_at = time.monotonic() + LIFE_S
    while time.monotonic() < ends_at:
        time.sleep(1)


def name_process(marker: str) -> None:
    """Set this process's name, which the process table shows."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, marker.encode()[:15], 0, 0, 0)


def go_deaf() -> None:
    """Ignore every signal that can be ignored, in whatever thread this is."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, signal.SIG_IGN)
