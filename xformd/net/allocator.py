"""Make the C library's allocator keep the memory of long poems from one request to the next, and give back the rest.

A 1 MiB poem passes through half a dozen buffers of its size. By default glibc returns each to the kernel when it is
freed, and the kernel zeroes pages for the next one: that took two thirds of such a request's CPU time.
"""

import ctypes
import time
from contextlib import suppress
from pathlib import Path
from resource import getpagesize
from typing import Any

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 * 1024 * 1024  # how much freed memory may be kept: the price
LARGE_BYTES = 4 * 1024 * 1024  # blocks of this size or more are still returned at once


def keep_freed_memory() -> bool:
    """Set up the allocator of this process; return whether the C library has one that can be set up."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


TRIM_PERIOD_S = 1.0


class MemoryTrimmer:
    """Returns freed memory to the system, within a second of the load that has needed it.

    By itself the allocator does so only at the end of its heap, where a small block may stay: 200 sessions that never
    read left 440 MiB behind. Giving it back takes 0.02 ms, or 50 ms where 100,000 small blocks are free. So it waits
    while the process is busy, which would need the memory again, and takes a thousandth of the time at most.
    """

    def __init__(self, clock: Any) -> None:
        try:
            self._trim = ctypes.CDLL(None).malloc_trim
            self._lowest_bytes = _resident_bytes()
        except (AttributeError, OSError, TypeError):  # not glibc, or not Linux
            return
        self._clock = clock
        self._check(0.0)

    def _check(self, busy_cpu_s: float) -> None:
        started_s, seconds = time.process_time(), TRIM_PERIOD_S
        with suppress(OSError):  # no file descriptor is left: the next time
            if started_s < busy_cpu_s and _resident_bytes() > self._lowest_bytes + KEPT_BYTES:
                self._trim(KEPT_BYTES)
                seconds = max(seconds, 1000 * (time.process_time() - started_s))
            self._lowest_bytes = min(self._lowest_bytes, _resident_bytes())
        self._clock.callLater(seconds, self._check, started_s + seconds / 2)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * getpagesize()
