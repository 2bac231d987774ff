"""The process above a fork server, and above each worker: it ends whatever its child leaves behind.

It runs no plugin's code. When its child ends, or the server closes its lifeline, it kills the child and every process
that came from it, whatever group or session they moved to. So the server kills a worker by closing a socket, and the
kernel does so when the server is gone.
"""

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from xformd.plugins.process_state import child_pids

LIFELINE, CONTROL = 0, 3  # descriptors of the reaper of a fork server; 1 and 2 go to the server's log

_FOR_THE_SERVER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class LastStep:
    """Whose code a worker on asyncio runs at this moment, in memory that its reaper reads when it is no more."""

    def __init__(self) -> None:
        self.memory: bytearray | mmap.mmap = bytearray(16)

    def begin(self, request_id: int) -> None:
        """Note that code for a request runs from now on; 0 for none."""
        struct.pack_into("=qd", self.memory, 0, request_id, time.monotonic())

    def read(self) -> tuple[int, int]:
        """Return the id of the request whose code runs, and for how many milliseconds; 0 for none."""
        request_id, since_s = struct.unpack_from("=qd", self.memory)
        return request_id, int(1000 * (time.monotonic() - since_s)) if request_id else 0


last_step = LastStep()


def main() -> NoReturn:
    """Start a fork server, watch it, and end as it ends."""
    from xformd.runners import fork_server

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # core files may hold poems
    folder = _make_folder()

    def become_fork_server() -> NoReturn:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, LIFELINE)  # plugins read nothing, and what they open first does not become their input
        os.close(nothing)
        fork_server.main(CONTROL, folder)

    try:
        status = keep(LIFELINE, become_fork_server, (1, 2, CONTROL))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _end_as(status)


def _make_folder() -> Path:
    """Make the folder for the folders of jobs, in memory if nothing else can be written."""
    try:
        return Path(tempfile.mkdtemp(prefix="xformd-"))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="xformd-", dir="/dev/shm"))


def keep(lifeline: int, become_child: Callable[[], NoReturn], others: tuple[int, ...]) -> int:
    """Fork a child; return its wait status once it and everything that came from it have ended.

    When the other end of the ``lifeline`` is closed, the child is killed. This process closes the ``others``, which are
    descriptors of the child's, so that a reader need not wait for it.
    """
    os.setsid()  # away from the server's terminal, whose Ctrl-C is not for workers
    set_subreaper()
    wakeups, waker = catch_signals()
    reaper = os.getpid()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (wakeups, waker):
            os.close(descriptor)
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != reaper:  # it died before PR_SET_PDEATHSIG was set
            os._exit(0)
        become_child()
    for descriptor in others:
        os.close(descriptor)
    status = _watch(child, lifeline, wakeups)
    _sweep(child)
    return status


def set_subreaper() -> None:
    """Become the parent of the orphans among this process's descendants."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def catch_signals() -> tuple[int, int]:
    """Return both ends of a pipe that can be read when a signal has arrived, such as that of a child's end."""
    wakeups, waker = os.pipe()
    os.set_blocking(waker, False)
    ignore_signals(signal.SIGCHLD)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    return wakeups, waker


def default_signals_in_children() -> None:
    """Have signals end what a plugin forks: this process only ignores those that are for the server."""
    masks: list[set[Any]] = []

    def block() -> None:  # one that comes before the child has its own handling must not be lost
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_SERVER))

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def reset() -> None:
        for number in _FOR_THE_SERVER:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


def ignore_signals(*numbers: int) -> None:
    """Handle the signals that are meant for the server, and these, by doing nothing.

    The server needs its workers until it has answered. They are not ignored: what a plugin starts would inherit that.
    """
    for number in (*_FOR_THE_SERVER, *numbers):
        signal.signal(number, lambda *_: None)


def keep_worker(
    lifeline: int, become_worker: Callable[[], NoReturn], others: tuple[int, ...], folder: Path
) -> NoReturn:
    """Keep a worker, report its wait status through the lifeline, and remove the ``folder`` of its jobs."""
    gc.disable()  # it would write to pages that are shared with the fork server
    fork_server = os.getppid()
    last_step.memory = mmap.mmap(-1, 16)  # shared with what is forked from now on
    try:
        report = b"%d %d %d" % (keep(lifeline, become_worker, others), *last_step.read())
    except OSError as error:
        report = f"the system cannot fork: {error.strerror}".encode()
    shutil.rmtree(folder, ignore_errors=True)
    if os.getppid() != fork_server:  # its reaper is gone too, which would have removed the rest
        with contextlib.suppress(OSError):  # other workers have folders there
            folder.parent.rmdir()
    with contextlib.suppress(OSError):  # the server is gone
        os.write(lifeline, report)
    os._exit(0)


def _watch(child: int, lifeline: int, wakeups: int) -> int:
    """Wait until the child ends, or kill it when the lifeline is cut; return its wait status."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    poll.register(wakeups, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wakeups:
                os.read(wakeups, 4096)
                if (status := _reap(child)) is not None:
                    return status
            elif not os.read(lifeline, 4096):
                kill(child)
                return os.waitpid(child, 0)[1]


def _reap(child: int) -> int | None:
    """Reap every process that has ended; return the child's wait status if it is one of them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, child):
            return status if pid else None


def _sweep(child: int) -> None:
    """Kill all that came from the child. Orphans become children of this process, which is a subreaper."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    while True:
        for other in child_pids():
            kill(other)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def kill(pid: int) -> None:
    """Kill a process, if it is there and may be killed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # a setuid program cannot be killed
        os.kill(pid, signal.SIGKILL)


def _end_as(status: int) -> NoReturn:
    """End with the child's status or signal: this process's end is what the server sees."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
