"""Memory that workers use, as the kernel counts it: what is stopped, by whom, and what is not."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import XFORMD, Server, serving, wait_until
from support.session_client import Session

pytestmark = pytest.mark.slow

MIB = 2**20
CGROUPS = Path("/sys/fs/cgroup")
PLUGIN = f"""
import mmap, os, threading
import xformd


def touch(memory, mib):
    for page in range(0, mib * {MIB}, 4096):
        memory[page] = 1


@xformd.transform
def private(poem: str, *, mib: int) -> str:
    touch(bytearray(mib * {MIB}), mib)
    return poem


@xformd.transform
def shared(poem: str, *, mib: int) -> str:
    touch(mmap.mmap(-1, mib * {MIB}), mib)
    return poem


@xformd.transform
def reserved(poem: str, *, mib: int) -> str:
    mmap.mmap(-1, mib * {MIB}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    return poem


@xformd.transform
def threads(poem: str) -> str:
    done = threading.Event()
    started = [threading.Thread(target=lambda: (bytearray({MIB}), done.wait())) for _ in range(24)]
    for thread in started:
        thread.start()
    touch(bytearray(300 * {MIB}), 300)
    done.set()
    for thread in started:
        thread.join()
    return poem


MODEL = []


@xformd.transform
def lazy(poem: str) -> str:
    if not MODEL:
        MODEL.append(bytearray(300 * {MIB}))
        touch(MODEL[0], 300)
    return str(os.getpid())


@xformd.transform
def leaky(poem: str) -> str:
    MODEL.append(bytearray(40 * {MIB}))
    touch(MODEL[-1], 40)
    return str(os.getpid())


@xformd.hookimpl
def xformd_transforms():
    return [private, shared, reserved, threads, lazy, leaky]
"""


@contextlib.contextmanager
def started(folder: Path, *command: str) -> Iterator[tuple[Server, Session]]:
    (folder / "memory.py").write_text(PLUGIN)
    loose = ("--plugins=none", "--plugins-dir", str(folder), "--workers", "1", "--http", "none")
    with serving(folder, *loose, command=(*command, *XFORMD)) as server, Session(server) as session:
        yield server, session


def test_a_job_may_use_what_the_limit_says_and_reserve_more(tmp_path: Path) -> None:
    with started(tmp_path) as (_, session):
        for spec in ("threads", "private:mib=700", "reserved:mib=8000", "threads"):
            assert session.ask(spec, b"Owl").poem == b"Owl", spec
        died = session.ask("private:mib=1500", b"Owl")
        assert died.code == "transform-died"
        assert died.poem == b"private ran out of memory; worker_memory_bytes is 1073741824 bytes"
        assert session.ask("threads", b"Owl").poem == b"Owl"


def test_memory_that_a_job_shares_counts_too(tmp_path: Path) -> None:
    with started(tmp_path) as (_, session):
        died = session.ask("shared:mib=4000", b"Owl")
        assert died.code == "transform-died"
        assert b"bytes of memory; worker_memory_bytes is 1073741824" in died.poem
        assert session.ask("private:mib=1", b"Owl").poem == b"Owl"


def test_a_model_that_is_loaded_on_its_first_use_is_no_leak_and_a_leak_is_one(tmp_path: Path) -> None:
    with started(tmp_path) as (server, session):
        assert len({session.ask("lazy", b"").poem for _ in range(40)}) <= 2  # a worker and its spare
        assert len({session.ask("leaky", b"").poem for _ in range(20)}) > 1
        wait_until(lambda: "has grown by" in server.log)


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group with a limit, of version 1 or 2; skip the test where the system does not allow it."""
    v1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if v1 else CGROUPS) / f"xformd-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs the right to make a control group: run as root")
    try:
        try:
            (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit_bytes))
        except OSError:
            pytest.skip("needs the memory controller in this control group")
        yield group
    finally:
        group.rmdir()


def test_when_the_machine_is_out_of_memory_a_worker_ends_and_the_log_says_why(tmp_path: Path) -> None:
    with memory_group(400 * MIB) as group:
        enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group))
        with started(tmp_path, *enter) as (server, session):
            died = session.ask("private:mib=700", b"Owl")
            assert died.code == "transform-died"
            assert died.poem == b"the worker of private was killed by SIGKILL, by the kernel's out-of-memory killer"
            assert session.ask("private:mib=1", b"Owl").poem == b"Owl"
            assert server.process.poll() is None
