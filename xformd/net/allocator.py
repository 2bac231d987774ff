"""Lets the C library's allocator keep the memory that long poems need, from one request to the next.

A 1 MiB poem passes through half a dozen buffers of its size. By default glibc gives each back to the system when it is
freed, and the kernel hands out zeroed pages for the next one: that took two thirds of such a request's CPU time.
"""

import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 16 * 1024 * 1024
"""Freed memory that is kept at most: the price."""

LARGE_BYTES = 4 * 1024 * 1024
"""A block of this size or more is still given back at once."""


def keep_freed_memory() -> bool:
    """Set the allocator up, for the whole process.

    Returns:
        Whether the C library has such an allocator.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
