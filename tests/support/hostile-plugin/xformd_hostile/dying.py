"""Transforms that end their process."""

import ctypes
import fcntl
import os
from collections.abc import Iterator

import xformd
from xformd_hostile.traces import note

MAX_BOMB_BYTES = 2 * 1024**3
"""Where the bomb gives up: past every limit that a test sets, and not past what a machine has."""

COPIES = 25
"""Copies of one that crashes: each may do it a few times before it is quarantined."""


@xformd.transform(name="exit-0")
def exit_0(poem: str, *, marker: str = "") -> str:
    """End the process with status 0."""
    note(marker)
    os._exit(0)


@xformd.transform(name="exit-1")
def exit_1(poem: str, *, marker: str = "") -> str:
    """End the process with status 1."""
    note(marker)
    os._exit(1)


@xformd.transform
def segfault(poem: str, *, marker: str = "") -> str:
    """Read from address 0."""
    note(marker)
    return str(ctypes.string_at(0))


@xformd.transform
def memory_bomb(poem: str, *, marker: str = "") -> str:
    """Allocate, and use, until there is no more."""
    note(marker)
    hoard = []
    for _ in range(MAX_BOMB_BYTES >> 24):
        hoard.append(b"x" * (1 << 24))  # noqa: PERF401 - the hoard is to be there when it fails
    return f"nobody stopped it at {len(hoard) << 24} bytes"


@xformd.transform
def close_descriptors(poem: str, *, marker: str = "") -> str:
    """Close every descriptor, the way to the server among them."""
    note(marker)
    os.closerange(0, 65_536)
    return poem


@xformd.transform
def half_reply(poem: str, *, marker: str = "") -> str:
    """Write half a reply to whatever may be the way to the server, and die."""
    note(marker)
    written = [os.write(descriptor, b"1000:1 ok.half a rep") for descriptor in _ways_out()]
    if not written:
        return "it found no way out"
    os._exit(1)


def _ways_out() -> Iterator[int]:
    """Give the open pipes and sockets that can be written to, the standard streams apart."""
    for descriptor in sorted(map(int, os.listdir("/proc/self/fd"))):  # noqa: PTH208 - names, not paths
        try:
            kind = os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]  # noqa: PTH115
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            continue  # the one that read the list
        if descriptor > 2 and kind in ("pipe", "socket") and mode != os.O_RDONLY:
            yield descriptor


def _crash(poem: str, *, marker: str = "") -> str:
    """Crash; one of many alike, since each is quarantined on its own."""
    note(marker)
    os.abort()


TRANSFORMS = (
    exit_0,
    exit_1,
    segfault,
    memory_bomb,
    close_descriptors,
    half_reply,
    *(xformd.transform(name=f"crash-{number}")(_crash) for number in range(1, COPIES + 1)),
)
