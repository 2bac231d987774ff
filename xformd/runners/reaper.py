"""The process between a server and one worker: it ends whatever the worker leaves behind.

It starts the worker as its child and runs no plugin's code. When the worker ends, or its own standard input does, it
kills the worker and every process that came from it, whatever group or session they moved to. So the server kills a
worker by closing a pipe, and the kernel does so when the server is gone.

Descriptors: 0 is that pipe, 1 and 2 go to the server's log, 3 is the worker's channel to the server.
"""

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import NoReturn

CHANNEL = 3

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main() -> NoReturn:
    """Start a worker, watch it, and end as it ends."""
    os.setsid()  # away from the server's terminal, whose Ctrl-C is not for workers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeups, waker = os.pipe()
    os.set_blocking(waker, False)
    # These signals are meant for the server, which needs its workers until it has answered. They are handled, not
    # ignored: processes that a plugin starts would inherit the latter.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    reaper = os.getpid()
    worker = os.fork()
    if worker == 0:
        _become_worker(reaper, wakeups, waker)
    for descriptor in (1, 2, CHANNEL):  # so that a reader of these need not wait for this process to end
        os.close(descriptor)
    status = _watch(worker, wakeups)
    _sweep(worker)
    _end_as(status)


def _become_worker(reaper: int, *pipe: int) -> NoReturn:
    from xformd.runners import worker

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor in pipe:
        os.close(descriptor)
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != reaper:  # it died before PR_SET_PDEATHSIG was set
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    worker.main(CHANNEL)


def _watch(worker: int, wakeups: int) -> int:
    """Wait until the worker ends, or kill it when standard input ends; return its wait status."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wakeups, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == wakeups:
                os.read(wakeups, 4096)
                if (status := _reap(worker)) is not None:
                    return status
            elif not os.read(0, 4096):
                _kill(worker)
                return os.waitpid(worker, 0)[1]


def _reap(worker: int) -> int | None:
    """Reap every process that has ended; return the worker's wait status if it is one of them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in (0, worker):
            return status if pid else None


def _sweep(worker: int) -> None:
    """Kill all that came from the worker. Orphans become children of this process, which is a subreaper."""
    _kill_group(worker)
    while True:
        for child in _children():
            _kill(child)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:  # not Linux: only the worker's group is known
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # a setuid program cannot be killed
        os.kill(pid, signal.SIGKILL)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _end_as(status: int) -> NoReturn:
    """End with the worker's status or signal: this process's end is what the server sees."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
