"""Run an xformd command in this process, as a process of its own would run it, which takes a tenth of the time.

The command has file descriptors, an environment, a reactor and a log of its own, and leaves nothing behind: what it
imports from outside of the installed packages, its signal handlers and its hooks are gone when it is done.
"""

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast
from unittest import mock

import twisted.internet
from twisted.internet.error import ConnectionDone
from twisted.logger import globalLogBeginner, globalLogPublisher
from twisted.python.failure import Failure

import xformd

TIME_LIMIT_S = 90.0
"""Far more than any command here takes: only one that hangs gets there."""

REACTOR = "twisted.internet.reactor"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE)

_packages = tuple(
    str(Path(file).parents[up]) for file, up in ((os.__file__, 0), (xformd.__file__, 0), (twisted.__file__, 1))
)


def run(
    command: Callable[..., object],
    arguments: Sequence[str],
    *,
    stdin: bytes,
    environment: Mapping[str, str],
    site_packages: Path | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a click command, which ends with ``sys.exit``; ``site_packages`` is where more packages are installed."""
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        with ExitStack() as own:
            for enter in (_garbage, _hooks, _modules, _log, _reactor):
                own.enter_context(enter())
            if site_packages is not None:
                sys.path.insert(0, str(site_packages))
            own.enter_context(mock.patch.dict(os.environ, environment, clear=True))
            own.enter_context(_streams(files))
            with _time_limit():
                status = _status(command, arguments)
        for file in files[1:]:
            file.seek(0)
        return subprocess.CompletedProcess(arguments, status, files[1].read(), files[2].read())


def _status(command: Callable[..., object], arguments: Sequence[str]) -> int:
    try:
        command(args=[*arguments], prog_name="xformd")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    raise AssertionError("a command ends with sys.exit")


@contextmanager
def _time_limit() -> Iterator[None]:
    """Interrupt a command that hangs, in whatever it waits."""

    def interrupt(*_: object) -> None:
        if REACTOR in sys.modules:
            cast("Any", sys.modules[REACTOR]).crash()
        raise TimeoutError(f"the command has not ended within {TIME_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _streams(files: Sequence[BinaryIO]) -> Iterator[None]:
    """Put files in the place of the standard streams, and of their descriptors."""
    saved = [os.dup(number) for number in range(3)]
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    streams = [
        io.TextIOWrapper(
            os.fdopen(number, "rb" if number == 0 else "wb", closefd=False), encoding="utf-8", write_through=number == 2
        )
        for number in range(3)
    ]
    try:
        with mock.patch.multiple(sys, stdin=streams[0], stdout=streams[1], stderr=streams[2]):
            yield
    finally:
        for stream in streams:
            with suppress(OSError, ValueError):
                stream.close()
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextmanager
def _reactor() -> Iterator[None]:
    """Let the command install a reactor, and take it away again."""
    ours = sys.modules.pop(REACTOR, None)
    had = twisted.internet.__dict__.pop("reactor", None)
    try:
        yield
    finally:
        used: Any = sys.modules.pop(REACTOR, None)
        twisted.internet.__dict__.pop("reactor", None)
        if used is not None:
            _close(used)
        if ours is not None:
            sys.modules[REACTOR] = ours
        if had is not None:
            twisted.internet.reactor = had


def _close(reactor: Any) -> None:
    if reactor.threadpool is not None:
        reactor.threadpool.stop()
    internal = set(reactor._internalReaders)
    for selectable in {*reactor.removeAll(), *internal}:
        with suppress(Exception):
            selectable.connectionLost(Failure(ConnectionDone()))
    reactor._poller.close()


@contextmanager
def _log() -> Iterator[None]:
    """Send to the command's observers what is logged meanwhile, and nothing after that."""
    begun: list[Any] = []

    def begin(observers: Sequence[Any], **_: object) -> None:
        for observer in observers:
            begun.append(observer)
            globalLogPublisher.addObserver(observer)

    handlers = [*logging.getLogger().handlers]
    with mock.patch.object(globalLogBeginner, "beginLoggingTo", begin):
        try:
            yield
        finally:
            logging.getLogger().handlers[:] = handlers
            for observer in begun:
                globalLogPublisher.removeObserver(observer)


@contextmanager
def _garbage() -> Iterator[None]:
    """Collect what the command leaves: the end of a process would have closed its sockets."""
    gc.freeze()  # then a collection looks at nothing that was there before
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()
        gc.unfreeze()


@contextmanager
def _hooks() -> Iterator[None]:
    """Restore signal handlers, and what takes care of uncaught exceptions."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(threading, "excepthook", threading.excepthook))
        stack.enter_context(mock.patch.object(sys, "unraisablehook", sys.unraisablehook))
        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.getsignal(number))
        yield


@contextmanager
def _modules() -> Iterator[None]:
    """Forget the modules of plugins: the next command may find another plugin under the same name."""
    before, path = set(sys.modules), [*sys.path]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            if not _is_installed(sys.modules[name]):
                del sys.modules[name]


def _is_installed(module: ModuleType) -> bool:
    origin = getattr(module, "__file__", None)
    return origin is None or origin.startswith(_packages)
