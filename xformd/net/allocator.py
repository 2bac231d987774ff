"""Make the C library's allocator keep the memory of long poems from one request to the next.

A 1 MiB poem passes through half a dozen buffers of its size. By default glibc returns each to the kernel when it is
freed, and the kernel zeroes pages for the next one: that took two thirds of such a request's CPU time.
"""

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 * 1024 * 1024
"""How much freed memory may be kept: the price."""

LARGE_BYTES = 4 * 1024 * 1024
"""Blocks of this size or more are still returned at once."""


def keep_freed_memory() -> bool:
    """Set up the allocator of this process; return whether the C library has one that can be set up."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
