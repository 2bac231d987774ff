"""What is process-wide in Python and in POSIX: save it before a plugin's code runs, and put it back afterwards.

A plugin may change any of it for its own sake, and would change it for everything else in the process. Invariant:
after ``restore`` the process is as it was, or ``restore`` names what it could not put back.
"""

import _signal  # type: ignore[import-not-found]
import atexit
import contextlib
import faulthandler
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import attrs

_SIGNALS = sorted(map(int, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))  # their names cost 0.5 us each
_RLIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_STANDARD_STREAMS = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_HOOKS = ("excepthook", "unraisablehook", "displayhook", "breakpointhook")


@attrs.frozen
class _Facet:
    """One thing that a process has: how it is read, and how what was read is put back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _read_umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


def _read_environment() -> dict[bytes, bytes]:
    encoded: Any = os.environ  # decoding all of it would take 20 us
    return dict(encoded._data)


def _write_environment(saved: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - saved.keys():
        del os.environb[name]
    os.environb.update(saved)
    time.tzset()


def _read_handlers() -> list[Any]:
    return [_signal.getsignal(number) for number in _SIGNALS]  # the public one names them: 40 us for all


def _write_handlers(saved: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, saved, strict=True):
        if handler is not None:  # None: set by other code than Python's
            signal.signal(number, handler)


def _read_wakeup_descriptor() -> int:
    signal.set_wakeup_fd(descriptor := signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    return descriptor


def _read_streams() -> list[Any]:
    streams = [getattr(sys, name) for name in _STANDARD_STREAMS]
    return [*streams, *map(_shape, streams[:3])]


def _shape(stream: Any) -> Any:
    return isinstance(stream, TextIOWrapper) and (
        stream.encoding,
        stream.errors,
        stream.line_buffering,
        stream.write_through,
    )


def _write_streams(saved: list[Any]) -> None:
    for name, stream in zip(_STANDARD_STREAMS, saved, strict=False):
        setattr(sys, name, stream)
    for stream, shape in zip(saved, saved[len(_STANDARD_STREAMS) :], strict=False):
        if shape and shape != _shape(stream):
            encoding, errors, line_buffering, write_through = shape
            stream.reconfigure(
                encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through
            )


def _read_descriptors() -> list[tuple[int, int, int] | None]:
    return [_identity(descriptor) for descriptor in (0, 1, 2)]


def _identity(descriptor: int) -> tuple[int, int, int] | None:
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed
        return None
    return status.st_dev, status.st_ino, status.st_rdev


def _read_hooks() -> list[Any]:
    return [*(getattr(sys, name) for name in _HOOKS), threading.excepthook, sys.gettrace(), sys.getprofile()]


def _write_hooks(saved: list[Any]) -> None:
    *hooks, threading.excepthook, trace, profile = saved
    for name, hook in zip(_HOOKS, hooks, strict=True):
        setattr(sys, name, hook)
    sys.settrace(trace)
    sys.setprofile(profile)


def _write_warnings(saved: tuple[Any, Any]) -> None:
    warnings.filters[:], warnings.showwarning = saved  # type: ignore[index]  # typed as a sequence, and it is a list
    warnings._filters_mutated()  # type: ignore[attr-defined]  # as the standard library's own test helpers do


def _read_collector() -> tuple[Any, ...]:
    return gc.isenabled(), gc.get_threshold(), [*gc.callbacks]


def _write_collector(saved: tuple[Any, ...]) -> None:
    is_enabled, threshold, callbacks = saved
    (gc.enable if is_enabled else gc.disable)()
    gc.set_threshold(*threshold)
    gc.callbacks[:] = callbacks


def _read_interpreter() -> tuple[Any, ...]:
    return sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(), faulthandler.is_enabled()


def _write_interpreter(saved: tuple[Any, ...]) -> None:
    recursion_limit, switch_interval_s, max_digits, has_fault_handler = saved
    sys.setrecursionlimit(recursion_limit)
    sys.setswitchinterval(switch_interval_s)
    sys.set_int_max_str_digits(max_digits)
    if has_fault_handler != faulthandler.is_enabled():
        faulthandler.enable() if has_fault_handler else faulthandler.disable()


def _read_logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    return root.level, [*root.handlers], [*root.filters], logging.root.manager.disable


def _write_logging(saved: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    level, root.handlers[:], root.filters[:], disabled = saved
    root.setLevel(level)
    logging.disable(disabled)


def _write_limits(saved: list[tuple[int, int]]) -> None:
    for number, limits in zip(_RLIMITS, saved, strict=True):
        if resource.getrlimit(number) != limits:
            resource.setrlimit(number, limits)


def _read_affinity() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


_OF_JOBS = (
    _Facet("umask", _read_umask, os.umask),
    _Facet("environment", _read_environment, _write_environment),
    _Facet("default socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Facet("signal handlers", _read_handlers, _write_handlers),
    _Facet(
        "signal mask",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda saved: signal.pthread_sigmask(signal.SIG_SETMASK, saved),
    ),
    _Facet("wake-up descriptor of signals", _read_wakeup_descriptor, signal.set_wakeup_fd),
    _Facet("alarm", lambda: signal.getitimer(signal.ITIMER_REAL), lambda saved: signal.setitimer(0, *saved)),
    _Facet("standard streams", _read_streams, _write_streams),
    _Facet("hooks", _read_hooks, _write_hooks),
)
"""Read after each job: all together must take little beside a short one."""

_OF_IMPORTS = (
    *_OF_JOBS,
    _Facet("locale", lambda: locale.setlocale(locale.LC_ALL), lambda saved: locale.setlocale(locale.LC_ALL, saved)),
    _Facet("random numbers", random.getstate, random.setstate),
    _Facet("warnings", lambda: ([*warnings.filters], warnings.showwarning), _write_warnings),
    _Facet("garbage collector", _read_collector, _write_collector),
    _Facet("interpreter", _read_interpreter, _write_interpreter),
    _Facet("logging", _read_logging, _write_logging),
    _Facet("resource limits", lambda: [resource.getrlimit(number) for number in _RLIMITS], _write_limits),
    _Facet(
        "priority",
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda saved: os.setpriority(os.PRIO_PROCESS, 0, saved),
    ),
    _Facet("CPU affinity", _read_affinity, lambda saved: os.sched_setaffinity(0, saved)),
)


class ProcessState:
    """The state of this process at one moment.

    Args:
        for_jobs: whether to save only what is cheap to compare, for many calls of ``restore``.
    """

    def __init__(self, *, for_jobs: bool = False) -> None:
        self._saved = [(facet, facet.read()) for facet in (_OF_JOBS if for_jobs else _OF_IMPORTS)]
        self._folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._identities = _read_descriptors()
        self._copies = [None if one is None else _copy(number) for number, one in enumerate(self._identities)]

    def restore(self) -> list[str]:
        """Put everything back; return the names of what cannot be."""
        lost = []
        for facet, saved in self._saved:
            try:
                if facet.read() != saved:
                    facet.write(saved)
            except (OSError, ValueError, AttributeError):
                lost.append(facet.name)
        os.fchdir(self._folder)
        for number, identity, copy in zip((0, 1, 2), self._identities, self._copies, strict=True):
            if copy is not None and _identity(number) != identity:
                os.dup2(copy, number)
        return lost

    def set_signal_handlers_again(self) -> None:
        """Install every handler anew: code below Python may have replaced one without Python's knowledge."""
        _write_handlers(next(saved for facet, saved in self._saved if facet.read is _read_handlers))

    def close(self) -> None:
        """Close its descriptors; it cannot be restored any more."""
        for descriptor in (self._folder, *self._copies):
            if descriptor is not None:
                os.close(descriptor)


def _copy(descriptor: int) -> int:
    copy = os.dup(descriptor)  # not inheritable
    if copy > 2:
        return copy
    try:  # a standard stream is closed, and the copy must not take its place
        return _copy(copy)
    finally:
        os.close(copy)


@contextlib.contextmanager
def isolated_import(report: Callable[[str], object]) -> Iterator[None]:
    """Keep what the block, which imports a plugin, does to its process from lasting; standard input is empty in it.

    Args:
        report: called with words for what lasts all the same, such as ``left a thread running``.
    """
    before, threads, children = ProcessState(), count_threads(), child_pids()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        yield
    finally:
        lost = before.restore()
        before.set_signal_handlers_again()
        before.close()
        if lost:
            report(f"changed what cannot be put back: {', '.join(lost)}")
        if count_threads() > threads:
            report("left a thread running")
        if child_pids() - children:
            report("left a process running")


def forget_exit_handlers() -> None:
    """Leave the exit handlers that a forked process has inherited to its parent, finalizers included.

    A temporary folder that a plugin has made at import, say, belongs to all workers. Neither module has a public way;
    ``multiprocessing`` does the same in the processes that it forks.
    """
    finalize: Any = weakref.finalize
    finalize._registry.clear()
    finalize._registered_with_atexit = False
    exits: Any = atexit
    exits._clear()
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        util._finalizer_registry.clear()
        atexit.register(util._exit_function)


def run_exit_handlers() -> None:
    """Run the exit handlers of this process, as the interpreter does when it ends."""
    exits: Any = atexit
    exits._run_exitfuncs()


def count_threads() -> int:
    """Return how many threads this process has, those that Python does not know included."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - their number is enough
    except OSError:  # not Linux
        return threading.active_count()


def child_pids() -> set[int]:
    """Return the children of this process; none if the system does not list them."""
    try:  # listing them takes 40 us, and nearly always there are none
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    try:
        pids: set[int] = set()
        for task in Path("/proc/self/task").iterdir():
            pids.update(map(int, (task / "children").read_text().split()))
    except OSError:  # not Linux, or a thread has just ended
        return set()
    return pids
