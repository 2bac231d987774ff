"""Transforms that end their process."""

import ctypes
import fcntl
import os
from collections.abc import Iterator

from xformd_hostile.traces import marked

MAX_BOMB_BYTES = 2 * 1024**3
"""Where the bomb stops: above every limit that a test sets, below what a machine has."""

COPIES = 25
"""Copies of the one that crashes: each may do it a few times before it is quarantined."""


def bomb(_: str) -> str:
    """Allocate, and use, until there is no more."""
    hoard = []
    for _number in range(MAX_BOMB_BYTES >> 24):
        hoard.append(b"x" * (1 << 24))  # noqa: PERF401 - the hoard is to be there when it fails
    return f"nobody stopped it at {len(hoard) << 24} bytes"


def half_reply(_: str) -> str:
    """Write half a reply to whatever may be the channel to the server, and die."""
    written = [os.write(descriptor, b"1000:1 ok.half a rep") for descriptor in _outputs()]
    if not written:
        return "it found no channel"
    os._exit(1)


def _outputs() -> Iterator[int]:
    """Yield the open pipes and sockets that can be written to, except the standard streams."""
    for descriptor in sorted(map(int, os.listdir("/proc/self/fd"))):  # noqa: PTH208 - names, not paths
        try:
            kind = os.readlink(f"/proc/self/fd/{descriptor}").partition(":")[0]  # noqa: PTH115
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            continue  # the one that read the list
        if descriptor > 2 and kind in ("pipe", "socket") and mode != os.O_RDONLY:
            yield descriptor


TRANSFORMS = (
    marked("exit-0", lambda _: os._exit(0)),
    marked("exit-1", lambda _: os._exit(1)),
    marked("segfault", lambda _: str(ctypes.string_at(0))),
    marked("memory-bomb", bomb),
    marked("close-descriptors", lambda _: os.closerange(0, 65_536)),
    marked("half-reply", half_reply),
    *(marked(f"crash-{number}", lambda _: os.abort()) for number in range(1, COPIES + 1)),
)
