"""The allocator is set up where it can be."""

import platform

from xformd.net.allocator import keep_freed_memory


def test_glibc_can_be_set_up() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
