"""Commands run in this process, which saves starting an interpreter for each.

What needs a process stays out: servers that serve, signals, closed streams, and what is left behind at the end.
"""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, BinaryIO
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from support.processes import DEADLINE_S, environment
from xformd.cli import main
from xformd.net import run
from xformd.telemetry import logs


def xformd(*arguments: str, stdin: bytes = b"", **extra: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; ``extra`` adds to its environment. A server must be refused before it serves."""
    status = 0
    with _streams(stdin) as (stdout, stderr), _process(extra):
        try:
            main.main([*arguments], prog_name="xformd")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess(arguments, status, _content(stdout), _content(stderr))


def _content(file: BinaryIO) -> bytes:
    with file:
        file.seek(0)
        return file.read()


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Put files in the place of the standard streams and of their descriptors."""
    given, stdout, stderr = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115 - the caller reads two of them
    given.write(stdin)
    given.seek(0)
    saved = [os.dup(descriptor) for descriptor in range(3)]
    for descriptor, file in enumerate((given, stdout, stderr)):
        os.dup2(file.fileno(), descriptor)
    out, err = (io.TextIOWrapper(os.fdopen(os.dup(number), "wb"), line_buffering=True) for number in (1, 2))
    with io.TextIOWrapper(given) as readable, mock.patch.multiple(sys, stdin=readable, stdout=out, stderr=err):
        try:
            yield stdout, stderr
        finally:
            out.close()
            err.close()
            for descriptor, copy in enumerate(saved):
                os.dup2(copy, descriptor)
                os.close(copy)


@contextlib.contextmanager
def _process(extra: dict[str, str]) -> Iterator[None]:
    """Let a command have an environment, a reactor and a log of its own, as far as one process can."""
    on_sighup = signal.getsignal(signal.SIGHUP)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, environment(extra), clear=True))
        stack.enter_context(mock.patch.object(logs, "start"))
        for name, substitute in (
            ("run_until_done", _run_until_done),
            ("run_server", _run_server),
            ("prepare_to_serve", mock.Mock()),
            ("default_signals", mock.Mock()),
        ):
            stack.enter_context(mock.patch.object(run, name, substitute))
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, on_sighup)
            _end_connections()


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor


def _run_until_done(work: Coroutine[Deferred[Any], Any, Any]) -> Any:
    return _wait_for(Deferred.fromCoroutine(work))


def _run_server(make: Callable[[Any], Any], *_: Any, **__: Any) -> None:
    server = make(_reactor())
    server.startService()
    _wait_for(server.listening)
    raise AssertionError("this command serves: run it in a process")


def _wait_for(deferred: Deferred[Any]) -> Any:
    outcome: list[Any] = []
    deferred.addBoth(outcome.append)
    end = time.monotonic() + DEADLINE_S
    while not outcome:
        assert time.monotonic() < end, "the command did not end"
        _reactor().iterate(0.02)
    (result,) = outcome
    return result.raiseException() if isinstance(result, Failure) else result


def _end_connections() -> None:
    """Do what the end of a process does."""
    reactor = _reactor()
    reactor.disconnectAll()
    for call in reactor.getDelayedCalls():
        call.cancel()
