"""What is process-wide in Python and in POSIX: save it before a plugin's code runs, and put it back afterwards.

A plugin may change any of it for its own sake, and would change it for everything else in the process. Invariant:
after ``restore`` the process is as it was, or ``restore`` names what it could not put back.

What stays, because the plugin needs it later: additions to the path of modules, what is new among the built-ins, exit
handlers, codecs, event loop policies, the start method of ``multiprocessing``, and names that it has replaced in other
modules.
What stays because nothing can see or undo it: variables of ``os.putenv``, audit hooks, what runs at a fork.
"""

import _signal  # type: ignore[import-not-found]  # without enumerations: a tenth of the time
import atexit
import builtins
import codecs
import contextlib
import decimal
import faulthandler
import fcntl
import gc
import io
import locale
import logging
import os
import random
import resource
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

THREADS_END_S = 0.1  # how long threads that a plugin has started, and which are about to end, may take for it

LEFT_THREAD = "left a thread running"

_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
"""A virtual machine, or ``faulthandler``, has its own handlers for these, below Python."""

_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_COMMON_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD)

_RLIMITS = [
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "STACK")
]
_STREAMS = ("stdin", "stdout", "stderr")
_CODEC_ERRORS = ("strict", "ignore", "replace", "backslashreplace", "surrogateescape", "surrogatepass")
_BUILT_INS = [*vars(builtins)]
_MISSING = object()

_ATTRIBUTES: tuple[tuple[Any, str], ...] = (
    *((sys, name) for name in _STREAMS),
    *((sys, f"__{name}__") for name in _STREAMS),
    *((sys, name) for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook")),
    *((sys, name) for name in ("argv", "dont_write_bytecode", "pycache_prefix", "tracebacklimit")),
    (threading, "excepthook"),
    (warnings, "showwarning"),
    (warnings, "formatwarning"),
    (os, "environ"),
    (tempfile, "tempdir"),  # remembered from the first use: it may be the folder of a job
)


_Facet = tuple[str, Callable[[], Any], Callable[[Any], object]]
"""One thing that a process has: its name, how it is read, and how what was read is put back."""


def _write_attributes(saved: list[Any]) -> None:
    for (module, name), value in zip(_ATTRIBUTES, saved, strict=True):
        if value is not _MISSING:
            setattr(module, name, value)
        elif hasattr(module, name):
            delattr(module, name)


def _read_umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask


def _read_environment() -> dict[Any, Any]:
    environment: Any = os.environ
    return dict(environment._data)  # as it is kept: to decode it takes a hundred times as long


def _write_environment(saved: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - saved.keys():
        del os.environb[name]
    os.environb.update(saved)
    time.tzset()


def _read_handlers() -> list[Any]:
    return [*map(_signal.getsignal, _SIGNALS)]


def _write_handlers(saved: Iterable[Any], numbers: Iterable[int] = _SIGNALS) -> None:
    for number, handler in zip(numbers, saved, strict=True):
        if handler is not None:  # None: set by other code than Python's
            _signal.signal(number, handler)


def _read_wakeup_descriptor() -> int:
    signal.set_wakeup_fd(descriptor := signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
    return descriptor


def _read_shapes() -> list[dict[str, Any] | None]:
    return [_shape(getattr(sys, name, None)) for name in _STREAMS]


def _shape(stream: Any) -> dict[str, Any] | None:
    """Return how a text stream is configured; None if it is closed, detached or something else."""
    with contextlib.suppress(ValueError):  # it is detached
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            return {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
    return None


def _write_shapes(saved: list[dict[str, Any] | None]) -> None:
    for name, shape in zip(_STREAMS, saved, strict=True):
        stream: Any = getattr(sys, name, None)
        if shape is not None and (now := _shape(stream)) != shape:
            stream.reconfigure(**shape) if now is not None else _open_again(name, shape)


def _open_again(name: str, shape: dict[str, Any]) -> None:
    """Make another stream for the same descriptor: whoever closes it, closes nothing else."""
    number = _STREAMS.index(name)
    stream: Any = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 - a descriptor, kept
    stream.reconfigure(**shape)
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _write_warning_filters(saved: list[Any]) -> None:
    warnings.filters[:] = saved  # type: ignore[index]  # typed as a sequence, and it is a list
    warnings._filters_mutated()  # type: ignore[attr-defined]  # as the standard library's own test helpers do


def _read_loggers(loggers: Iterable[Any] | None = None) -> dict[logging.Logger, tuple[Any, ...]]:
    known = (logging.root, *logging.root.manager.loggerDict.values()) if loggers is None else loggers
    return {
        logger: (logger.level, logger.propagate, logger.disabled, [*logger.handlers], [*logger.filters])
        for logger in known
        if isinstance(logger, logging.Logger)  # not a mere place in the tree
    }


def _write_loggers(saved: dict[logging.Logger, tuple[Any, ...]]) -> None:
    for logger, (level, propagate, disabled, handlers, filters) in saved.items():
        logger.propagate, logger.disabled = propagate, disabled
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.setLevel(level)


def _read_log_observers() -> list[Any] | None:
    twisted_logger: Any = sys.modules.get("twisted.logger")
    return None if twisted_logger is None else [*twisted_logger.globalLogPublisher._observers]


def _write_log_observers(saved: list[Any] | None) -> None:
    if saved is not None:
        sys.modules["twisted.logger"].globalLogPublisher._observers[:] = saved


def _read_scheduling() -> list[Any]:
    has_policies = hasattr(os, "sched_getscheduler")  # Linux
    policy = [os.sched_getscheduler(0), os.sched_getaffinity(0)] if has_policies else []
    return [os.getpriority(os.PRIO_PROCESS, 0), *policy]


def _write_scheduling(saved: list[Any]) -> None:
    priority, *policy = saved
    if policy:
        os.sched_setscheduler(0, policy[0], os.sched_getparam(0))
        os.sched_setaffinity(0, policy[1])
    os.setpriority(os.PRIO_PROCESS, 0, priority)


def _cannot_write(saved: object) -> None:  # noqa: ARG001 - as the others
    raise OSError("a session cannot be left for an earlier one")


def _items(find: Callable[[], Any]) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """Return how to read the items of a list, and how to put them back into the same list."""
    return lambda: [*find()], lambda saved: find().__setitem__(slice(None), saved)


_OF_JOBS: tuple[_Facet, ...] = (
    (
        "built-in names",
        lambda: [*map(vars(builtins).get, _BUILT_INS)],
        lambda saved: vars(builtins).update(zip(_BUILT_INS, saved, strict=True)),
    ),
    (
        "path of modules",  # what is new is needed later
        lambda: [*sys.path],
        lambda saved: sys.path.extend([entry for entry in saved if entry not in sys.path]),
    ),
    ("umask", _read_umask, os.umask),
    ("environment", _read_environment, _write_environment),
    ("signal handlers", _read_handlers, _write_handlers),
    (
        "signal mask",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda saved: signal.pthread_sigmask(signal.SIG_SETMASK, saved),
    ),
    ("wake-up descriptor of signals", _read_wakeup_descriptor, signal.set_wakeup_fd),
    (
        "timers",  # ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF
        lambda: [*map(signal.getitimer, range(3))],
        lambda saved: [signal.setitimer(timer, *times) for timer, times in enumerate(saved)],
    ),
    ("standard streams", _read_shapes, _write_shapes),
    ("default socket timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
    ("locale", lambda: locale.setlocale(locale.LC_ALL), lambda saved: locale.setlocale(locale.LC_ALL, saved)),
    ("arguments", *_items(lambda: sys.argv)),
    ("trace function", sys.gettrace, sys.settrace),
    ("profile function", sys.getprofile, sys.setprofile),
    ("trace function of threads", threading.gettrace, threading.settrace),
    ("profile function of threads", threading.getprofile, threading.setprofile),
    ("stack size of threads", threading.stack_size, threading.stack_size),
    ("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    ("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    ("digits of numbers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    ("dlopen flags", sys.getdlopenflags, sys.setdlopenflags),
    ("hooks of generators", sys.get_asyncgen_hooks, lambda saved: sys.set_asyncgen_hooks(*saved)),
    ("origin of coroutines", sys.get_coroutine_origin_tracking_depth, sys.set_coroutine_origin_tracking_depth),
    ("garbage collector", gc.isenabled, lambda saved: (gc.enable if saved else gc.disable)()),
    ("collector's thresholds", gc.get_threshold, lambda saved: gc.set_threshold(*saved)),
    ("collector's debugging", gc.get_debug, gc.set_debug),
    ("collector's callbacks", *_items(lambda: gc.callbacks)),
    ("warning filters", lambda: [*warnings.filters], _write_warning_filters),
    (
        "codecs' error handlers",
        lambda: [*map(codecs.lookup_error, _CODEC_ERRORS)],
        lambda saved: [*map(codecs.register_error, _CODEC_ERRORS, saved)],
    ),
    (
        "decimal context",
        lambda: decimal.getcontext().__reduce__(),
        lambda saved: decimal.setcontext(saved[0](*saved[1])),
    ),
    ("root logger", lambda: _read_loggers([logging.root]), _write_loggers),
    ("disabled logging", lambda: logging.root.manager.disable, logging.disable),
    ("logger class", logging.getLoggerClass, logging.setLoggerClass),
    ("log record factory", logging.getLogRecordFactory, logging.setLogRecordFactory),
    (
        "fault handler",
        faulthandler.is_enabled,
        lambda saved: (faulthandler.enable if saved else faulthandler.disable)(),
    ),
    (
        "resource limits",
        lambda: [*map(resource.getrlimit, _RLIMITS)],
        lambda saved: [*map(resource.setrlimit, _RLIMITS, saved)],
    ),
    ("scheduling", _read_scheduling, _write_scheduling),
    ("process group", os.getpgrp, lambda saved: os.setpgid(0, saved)),
    ("session", lambda: os.getsid(0), _cannot_write),
)
"""Read after each job: all together must take little beside a short one."""

_OF_IMPORTS: tuple[_Facet, ...] = (
    *_OF_JOBS,
    ("random numbers", random.getstate, random.setstate),
    ("loggers", _read_loggers, _write_loggers),
    ("observers of Twisted's log", _read_log_observers, _write_log_observers),
)


class ProcessState:
    """The state of this process; ``for_jobs`` saves only what is cheap to compare, for many calls of ``restore``."""

    def __init__(self, *, for_jobs: bool = False) -> None:
        self._is_for_jobs = for_jobs
        self._attributes = [getattr(module, name, _MISSING) for module, name in _ATTRIBUTES]
        self._handlers = dict(zip(_SIGNALS, _read_handlers(), strict=True))
        # Code below Python may have replaced any handler without Python's knowledge; most do it at their import.
        self._renewed = _COMMON_SIGNALS if for_jobs else set(_SIGNALS) - _FAULTS
        self._saved = [(*facet, facet[1]()) for facet in (_OF_JOBS if for_jobs else _OF_IMPORTS)]
        self._folder = _above_standard(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._descriptors = [*_read_descriptors()]

    def restore(self) -> list[str]:
        """Put everything back; return the names of what cannot be."""
        lost = []
        _write_attributes(self._attributes)  # unseen: what is equal may be another object
        for number, copy, flags, is_inheritable in self._descriptors:
            os.dup2(copy, number, is_inheritable)
            fcntl.fcntl(number, fcntl.F_SETFL, flags)  # it shares them with other processes
        for name, read, write, saved in self._saved:
            try:
                if read() != saved:
                    write(saved)
            except Exception:  # hooks, say, are compared, and may be a plugin's objects
                lost.append(name)
        os.fchdir(self._folder)
        faulthandler.cancel_dump_traceback_later()
        if self._is_for_jobs:
            draw_other_numbers()  # not the state: each job would draw the same ones
        _write_handlers(map(self._handlers.__getitem__, self._renewed), self._renewed)
        return lost

    def close(self) -> None:
        """Close its descriptors; it cannot be restored any more."""
        for descriptor in (self._folder, *(copy for _, copy, _, _ in self._descriptors)):
            os.close(descriptor)


def _read_descriptors() -> Iterator[tuple[int, int, int, bool]]:
    """Yield each standard descriptor that is open, with a copy and its flags."""
    for number in range(3):
        with contextlib.suppress(OSError):
            flags, is_inheritable = fcntl.fcntl(number, fcntl.F_GETFL), os.get_inheritable(number)
            yield number, _above_standard(os.dup(number)), flags, is_inheritable


def _above_standard(descriptor: int) -> int:
    """Return the descriptor, or a copy if it has taken the place of a standard stream that is closed."""
    if descriptor > 2:
        return descriptor
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return copy


def _empty_standard_input() -> None:
    """Have standard input read nothing from now on."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing:
        os.dup2(nothing, 0)
        os.close(nothing)
    else:  # it was closed
        os.set_inheritable(0, True)


@contextlib.contextmanager
def isolated_import(report: Callable[[str], object]) -> Iterator[None]:
    """Keep what the block, which imports a plugin, does to its process from lasting; standard input is empty in it.

    ``report`` is called with words for what lasts all the same, such as ``LEFT_THREAD``.
    """
    before, threads, children, pid = ProcessState(), _count_threads(), child_pids(), os.getpid()
    _empty_standard_input()
    for name, shape in zip(_STREAMS, _read_shapes(), strict=True):
        if shape is not None:
            with contextlib.suppress(OSError):  # its descriptor is closed
                _open_again(name, shape)
    try:
        yield
    finally:
        if os.getpid() != pid:  # the plugin has forked, and goes on in both
            os._exit(0)
        lost = before.restore()
        before.close()
        if lost:
            report(f"changed what cannot be put back: {', '.join(lost)}")
        if _are_still_more(threads):
            report(LEFT_THREAD)
        if child_pids() - children:
            report("left a process running")


def draw_other_numbers() -> None:
    """Seed what draws random numbers from the system, numpy's global generator too if it has been imported."""
    random.seed(int.from_bytes(os.urandom(16)))
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        with contextlib.suppress(Exception):  # a plugin may have replaced its generator
            numpy_random.seed()


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
        sys.modules["multiprocessing.process"]._children.clear()
        atexit.register(util._exit_function)


def run_exit_handlers() -> None:
    """Run the exit handlers of this process, and write what is buffered, as the interpreter does when it ends."""
    exits: Any = atexit
    exits._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _count_threads() -> int:
    """Return how many threads this process has, those that Python does not know included."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - their number is enough
    except OSError:  # not Linux
        return threading.active_count()


def _are_still_more(threads: int) -> bool:
    """Whether there are more threads than these, also after those that are about to end have done so."""
    nothing = select.poll()
    for _ in range(10):
        if _count_threads() <= threads:
            return False
        nothing.poll(100 * THREADS_END_S)
    return True


def child_pids() -> set[int]:
    """Return the children of this process; none if the system does not list them."""
    try:
        pids: set[int] = set()
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # a tenth of the time, if there is none
        for task in Path("/proc/self/task").iterdir():
            pids.update(map(int, (task / "children").read_text().split()))
    except (OSError, AttributeError):  # there is none, or it is not Linux, or a thread has just ended
        return set()
    return pids
