"""Long poems reuse a worker's memory instead of taking fresh pages from the system."""

import itertools
import platform
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from support.hostile import MIB, Hosting
from support.session_client import Session

pytestmark = pytest.mark.slow

POEM = b"x" * MIB
PAGE_BYTES = 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory: run it on glibc")
def test_long_poems_reuse_a_workers_memory(hosting: Hosting) -> None:
    """At the median, all buffers of a poem together need fewer fresh pages than one of them has."""
    faults: dict[int, list[int]] = defaultdict(list)
    with hosting(XFORMD_WORKERS="1") as hostile, Session(hostile.server) as session:
        for _ in range(30):
            pid = ask(session)
            faults[pid].append(page_faults(pid))
    fresh = [after - before for counts in faults.values() for before, after in itertools.pairwise(counts)]
    assert statistics.median(fresh) < MIB / PAGE_BYTES


def ask(session: Session) -> int:
    """Send a long poem; return the process id of the worker that handled it."""
    return int(session.ask("pid", POEM).poem.split()[-1])


def page_faults(pid: int) -> int:
    """Count how often the kernel has given a process a page without reading a file."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_name[7])
