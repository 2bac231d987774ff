"""What a process may use: its affinity, and the limits of control groups of both versions, as their files say."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from xformd.config.resources import Resources, count_oom_kills, find_resources, resident_bytes

GIB = 2**30

V2 = "0::/shop/xformd"
V1 = "4:memory:/shop/xformd\n1:cpu,cpuacct:/shop/xformd\n0::/"


def write(root: Path, groups: str, files: Mapping[str, str]) -> Path:
    """Write a small /proc and /sys."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text and text + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quota", "memory_bytes"),
    [
        ("", {}, None, None),
        (V2, {"shop/xformd/cpu.max": "max 100000", "shop/xformd/memory.max": "max"}, None, None),
        (V2, {"shop/xformd/cpu.max": "150000 100000", "shop/xformd/memory.max": str(GIB)}, 1.5, GIB),
        (V2, {"shop/xformd/cpu.max": "300000 100000", "shop/cpu.max": "50000 100000"}, 0.5, None),  # the one above it
        (V2, {"cpu.max": "200000 100000", "memory.max": str(2 * GIB)}, 2.0, 2 * GIB),  # a path of the machine
        ("0::/", {"unified/cpu.max": "200000 100000"}, 2.0, None),
        (
            V1,
            {
                "cpu,cpuacct/shop/xformd/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/shop/xformd/cpu.cfs_period_us": "100000",
                "memory/shop/xformd/memory.limit_in_bytes": str(3 * GIB),
            },
            2.5,
            3 * GIB,
        ),
        (
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
    ],
)
def test_control_groups_of_both_versions_count(
    tmp_path: Path, groups: str, files: Mapping[str, str], quota: float | None, memory_bytes: int | None
) -> None:
    found = find_resources(write(tmp_path, groups, files))
    assert (found.quota, found.memory_bytes) == (quota, memory_bytes)
    assert found.affinity == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("found", "workers"),
    [
        (Resources(4), 4),
        (Resources(4, quota=1.5), 2),
        (Resources(4, quota=0.2), 1),
        (Resources(2, quota=8.0), 2),
        (Resources(8, memory_bytes=3 * GIB), 3),
        (Resources(8, memory_bytes=GIB // 2), 1),
    ],
)
def test_there_are_as_many_workers_as_there_is_room_for(found: Resources, workers: int) -> None:
    assert found.workers(worker_memory_bytes=GIB) == workers


def test_what_was_found_is_told_to_a_person() -> None:
    told = str(Resources(4, quota=1.5, memory_bytes=3 * GIB))
    assert told == "4 CPUs by affinity, 1.5 by the control group, 3,072 MiB of memory by the control group"


@pytest.mark.parametrize(
    ("groups", "name", "text"),
    [
        (V2, "shop/xformd/memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0"),
        (V1, "memory/shop/xformd/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3"),
    ],
)
def test_the_kernels_kills_for_want_of_memory_are_counted(tmp_path: Path, groups: str, name: str, text: str) -> None:
    assert count_oom_kills(write(tmp_path, groups, {name: text})) == 3


def test_where_the_system_does_not_say_nothing_is_counted(tmp_path: Path) -> None:
    assert count_oom_kills(tmp_path) == 0
    assert resident_bytes(2**30) == 0
    assert resident_bytes() > 2**20
