"""Run a server or a command: its log, its signals, its file descriptors, and the reactor until the work is done.

Invariant: the first SIGTERM or SIGINT stops a server in good order, the next ends it at once. One that drains first
needs one more SIGTERM: it ends the wait.
"""

import contextlib
import functools
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.limits import Limits
from xformd.net.allocator import keep_freed_memory
from xformd.net.deadline import use_monotonic_clock
from xformd.net.lifecycle import Lifecycle
from xformd.net.listener import ListeningService
from xformd.telemetry.access_log import STDERR
from xformd.telemetry.logs import start_server_log

SPARE_DESCRIPTORS = 32  # for files that transforms open, the log, and listening sockets
NEARLY_ALL = 0.95  # with room for more than this share of the connections that are allowed, nobody has to do anything
SPARE_DESCRIPTORS_PER_WORKER = 8  # for the pipes of one worker process, and of the one that replaces it

GUESSED_OPEN_DESCRIPTORS = 16

Result = TypeVar("Result")
AnyServer = TypeVar("AnyServer", bound=ListeningService)

log = Logger()


def run_until_done(work: Coroutine[Deferred[Any], Any, Result]) -> Result:
    """Run a coroutine to its end, and return or raise what it does. The reactor runs only if it has to wait."""
    reactor = _installed_reactor()
    outcome: list[Result | Failure] = []
    done = Deferred.fromCoroutine(work).addBoth(outcome.append)
    if not outcome:
        done.addCallback(lambda _: reactor.stop())
        # The system's own handling, so that Ctrl-C ends a command also while it waits for a file, or in a transform.
        reactor.callWhenRunning(default_signals)
        reactor.run()
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


def _installed_reactor() -> Any:
    """Return the reactor. Its threads end with the process: one that asks a mute name server takes 10 s or more."""
    from twisted.internet import reactor

    use_monotonic_clock(reactor)
    pool: Any = reactor.getThreadPool()  # type: ignore[attr-defined]  # every reactor here has threads
    pool.threadFactory = functools.partial(threading.Thread, daemon=True)
    pool.threads = deque(maxlen=0)  # of those to join
    return reactor


def prepare_to_serve(log_format: str = "text", log_file: Path = STDERR, log_level: str = "info") -> None:
    """Set up a server process: its signals, its log and its allocator, before anything installs a reactor.

    Raises:
        ConfigError: the log cannot be opened.
    """
    be_init()
    default_signals()
    with contextlib.suppress(ImportError):  # where the system has no epoll, Twisted's own reactor does
        from xformd.net.reactor import install

        install()
    # Until there is something to reload, SIGHUP must not end the server. A handler, because child processes would
    # inherit SIG_IGN.
    signal.signal(signal.SIGHUP, lambda *_: None)
    start_server_log(log_format, log_file, log_level)
    keep_freed_memory()


def run_server(
    make: Callable[[Any], AnyServer],
    greet: Callable[[AnyServer, tuple[str, ...]], Iterable[str]],
    announce: Callable[[str], None],
) -> None:
    """Run a server until SIGTERM or SIGINT, then let it finish what it has accepted; SIGHUP reloads it.

    ``announce`` is called with each line that ``greet`` makes of the server and the addresses on which it listens.
    Raises ``ConfigError`` if the server cannot be made, and ``ListenFailed`` if it cannot listen on one of its
    endpoints.
    """
    reactor = _installed_reactor()
    server = make(reactor)
    failures: list[Failure] = []

    def failed(failure: Failure) -> None:
        failures.append(failure)
        reactor.stop()

    lifecycle = Lifecycle(server, reactor, functools.partial(greet, server), announce, failed)

    def start() -> None:
        _handle_signals(reactor, lifecycle)
        lifecycle.start()

    reactor.callWhenRunning(start)
    stop = lifecycle.stop
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(stop(default_signals)))
    reactor.run()
    if failures:
        failures[0].raiseException()


def _handle_signals(reactor: Any, lifecycle: Lifecycle) -> None:
    may_drain = True

    def stop(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
        nonlocal may_drain
        if may_drain and number == signal.SIGTERM and lifecycle.drain_delay_s:
            may_drain = False  # the next signal ends the wait
        else:
            # The next signal ends the process at once, even in a transform that blocks.
            default_signals()
            reactor.callFromThread(lifecycle.end_drain)
        reactor.callFromThread(_stop_once, reactor)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _stop_once(reactor: Any) -> None:
    with contextlib.suppress(ReactorNotRunning):  # it is stopping
        reactor.stop()


def default_signals() -> None:
    """Make SIGTERM and SIGINT end this process at once."""
    # The kernel ignores signals with the default action sent to a container's first process, so there a handler is
    # needed. Elsewhere the default is better: it also ends a transform that blocks, where no Python handler would run.
    handler = _exit_at_once if os.getpid() == 1 else signal.SIG_DFL
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def be_init() -> None:
    """Return in a child process if this is the first one of a container, and otherwise do nothing.

    The first process is the parent of all orphans in its container, and has to wait for them; Twisted waits for its own
    children alone. So this process does that and passes signals on, until the child ends, and ends as the child did.
    """
    if os.getpid() != 1:
        return
    numbers = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    while True:
        arrived = signal.sigwaitinfo(numbers)
        if arrived.si_signo != signal.SIGCHLD:
            if arrived.si_code <= 0:  # sent by a process: the terminal has sent its own to the child too
                os.kill(child, arrived.si_signo)
            continue
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if ended[0] == child:
                    code = os.waitstatus_to_exitcode(ended[1])
                    os._exit(code if code >= 0 else 128 - code)


def _exit_at_once(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
    os._exit(128 + number)


def within_descriptors(limits: Limits, *, workers: int, fronts: int = 1, open_now: int = 0) -> Limits:
    """Make room for the allowed connections, and lower ``max_connections``, with a warning, if they do not fit.

    Each of the ``fronts`` allows ``max_connections``, however many endpoints it has; ``open_now`` are among these.
    """
    allowed = limits.max_connections
    limit, room = make_room(fronts * allowed, workers, open_now)
    each = max(1, room // fronts)
    if each == allowed:
        return limits
    log_it = log.info if each > NEARLY_ALL * allowed else log.warn
    where = " on each front" if fronts > 1 else ""
    message = (
        "ulimit -n is {limit} and has room for {room} connections{where} instead of {allowed}; raise it (LimitNOFILE)"
    )
    log_it(message, limit=limit, room=each, where=where, allowed=allowed)
    return attrs.evolve(limits, max_connections=each)


def make_room(connections: int, workers: int, open_now: int = 0) -> tuple[int, int]:
    """Raise the limit on file descriptors as far as connections and workers need and the system allows.

    Return the limit that holds now, and how many of the connections fit and still leave room for everything else.
    """
    others, spare = open_descriptors() - open_now, SPARE_DESCRIPTORS + SPARE_DESCRIPTORS_PER_WORKER * (workers + 1)
    limit = raise_limit(connections + others + spare)
    return limit, min(connections, max(1, limit - others - min(spare, limit // 2)))


def raise_limit(wanted: int) -> int:
    """Raise the soft limit on descriptors towards ``wanted``, and return the one that holds then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max(soft, wanted)
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # the system has a lower limit than it reports
        return soft
    return raised


def open_descriptors() -> int:
    """Count this process's open descriptors, or guess if the system does not list them."""
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - less the listing's own
    except OSError:
        return GUESSED_OPEN_DESCRIPTORS
