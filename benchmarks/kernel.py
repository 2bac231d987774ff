"""What the kernel knows of a process: its CPU time, its memory, the CPUs that it may use.

All of it is read from outside, so that what is measured does nothing for it.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

KIB = 1024


def process_tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    pids = [pid]
    for parent in pids:  # it grows while it is walked
        for task in _tasks(parent):
            with contextlib.suppress(OSError):  # the thread has just ended
                pids += [int(child) for child in (task / "children").read_text().split()]
    return pids


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its living descendants, all threads, user and system.

    It comes from each process's POSIX CPU clock, which the scheduler keeps in nanoseconds: ``utime`` and ``stime``
    count clock ticks of 4 ms or 10 ms, on many kernels by sampling.
    """
    total = 0.0
    for each in process_tree(pid):
        with contextlib.suppress(OSError):  # it has just ended
            total += time.clock_gettime(_cpu_clock(each))
    return total


def _cpu_clock(pid: int) -> int:
    """Do what ``clock_getcpuclockid(3)`` does, which Python does not offer; 2 is the scheduler's clock."""
    return (~pid << 3) | 2


def private_kib(pid: int) -> float:
    """Return the memory that belongs to a process and its descendants alone, in KiB; it leaves out shared libraries."""
    return sum(_private_kib(each) for each in process_tree(pid))


def _private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(size.split()[0]) for name, _, size in (line.partition(":") for line in lines)}
    return sizes["Private_Clean"] + sizes["Private_Dirty"] + sizes["Swap"]


def cpu_pair() -> tuple[int | None, int | None]:
    """Choose a CPU for the server and one for the generator, of another core if that can be; none where it is alone."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return None, None
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/core_cpus_list")
    same_core = _cpu_list(siblings.read_text()) if siblings.exists() else {first}
    return first, next((cpu for cpu in others if cpu not in same_core), others[0])


def _cpu_list(text: str) -> set[int]:
    """Read the kernel's form of a set of CPUs, such as ``0-1,64``."""
    ranges = [each.partition("-") for each in text.strip().split(",")]
    return {cpu for low, _, high in ranges for cpu in range(int(low), int(high or low) + 1)}


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on one CPU."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_open_files(wanted: int) -> int:
    """Raise the limit of open files towards what is wanted, here and in what is started later; give what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
