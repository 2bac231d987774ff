"""The allocator is told what to keep, where there is one that listens."""

import platform

from xformd.net.allocator import keep_freed_memory


def test_glibc_listens() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
