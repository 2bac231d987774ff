"""Transforms that leave something behind: processes that bear the marker as their name, a thread, memory.

The processes keep every descriptor of the worker open, and are deaf to signals.
"""

import os
import threading
from typing import Literal

import xformd
from xformd_hostile.traces import OWL, go_deaf, hang, name_process, note

Then = Literal["return", "hang", "crash"]

COPIES = ("", "-2")
"""Of each that leaves a process, so that twenty kills quarantine none of them."""

_leaked: list[bytes] = []


def _linger(marker: str, ready: int) -> None:
    """Be the process that is left; report once it can be found."""
    try:
        go_deaf()
        name_process(marker)
        os.write(ready, b"!")
        hang()
    finally:
        os._exit(0)


def _forked(marker: str, *, new_session: bool = False, twice: bool = False) -> None:
    """Leave a process, and wait until it is there."""
    is_ready, ready = os.pipe()
    child = os.fork()
    if child == 0:
        if new_session:
            os.setsid()
        if twice and os.fork() != 0:
            os._exit(0)
        _linger(marker, ready)
    os.close(ready)
    if twice:
        os.waitpid(child, 0)
    os.read(is_ready, 1)
    os.close(is_ready)


def _leaver(name: str, **how: bool) -> xformd.Transform:
    def transform(poem: str, *, marker: str = "", then: Then = "return") -> str:
        note(marker)
        if marker:
            _forked(marker, **how)
        if then == "hang":
            hang()
        if then == "crash":
            os._exit(1)
        return poem

    return xformd.transform(name=name, examples=OWL)(transform)


@xformd.transform(examples=OWL)
def thread(poem: str, *, marker: str = "") -> str:
    """Start a thread that does not end, and that Python waits for."""
    note(marker)
    if marker:
        threading.Thread(target=hang, daemon=False).start()
    return poem


@xformd.transform(examples=OWL)
def leak(poem: str, *, size_bytes: int = 0) -> str:
    _leaked.append(b"x" * size_bytes)
    return poem


@xformd.transform
def own_session(poem: str, *, marker: str = "") -> str:
    """Leave the process group of the worker, where it may, and hang."""
    note(marker)
    try:
        os.setsid()
    except PermissionError:  # it leads its group already: then its child goes
        _forked(marker, new_session=True)
    hang()
    return poem


TRANSFORMS = (
    *(_leaver(f"fork{copy}") for copy in COPIES),
    *(_leaver(f"setsid{copy}", new_session=True) for copy in COPIES),
    *(_leaver(f"daemonise{copy}", new_session=True, twice=True) for copy in COPIES),
    thread,
    leak,
    own_session,
)
