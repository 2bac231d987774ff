"""What a process needs around Twisted: a log, signals, and a reactor that runs until the work is done."""

import functools
import os
import signal
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.net import descriptors
from xformd.net.allocator import keep_freed_memory
from xformd.net.listener import Listening
from xformd.telemetry.logs import start_server_log

if TYPE_CHECKING:
    from xformd.config import Settings

Result = TypeVar("Result")
AnyServer = TypeVar("AnyServer", bound=Listening)

log = Logger()


def run_until_done(work: Coroutine[Deferred[Any], Any, Result]) -> Result:
    """Run a coroutine to its end; the reactor turns only if it has to wait for something.

    Args:
        work: awaits Deferreds.

    Returns:
        What it returns.

    Raises:
        BaseException: whatever it raises.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    outcome: list[Result | Failure] = []
    done = Deferred.fromCoroutine(work).addBoth(outcome.append)
    if not outcome:
        done.addCallback(lambda _: reactor.stop())
        # The system's own handling: Ctrl-C ends a command also while it waits for a file, or in a transform.
        reactor.callWhenRunning(default_signals)
        reactor.run()
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


def prepare_to_serve(log_format: str = "text", *, with_loop: bool = False) -> None:
    """Make this process one that serves; before anything else installs a reactor.

    Args:
        log_format: of its log: ``text`` or ``json``.
        with_loop: whether asyncio's tasks run here too, as HTTP's do.
    """
    try:
        from xformd.net.reactor import install
    except ImportError:  # this system has no epoll
        if with_loop:
            from twisted.internet import asyncioreactor

            asyncioreactor.install()
    else:
        install(with_asyncio=with_loop)
    start_server_log(log_format)
    keep_freed_memory()


def run_server(
    make: Callable[[Any], AnyServer],
    greet: Callable[[AnyServer, tuple[str, ...]], Iterable[str]],
    announce: Callable[[str], None],
    on_sighup: Callable[[AnyServer], object] | None = None,
) -> None:
    """Run any server until SIGTERM or SIGINT, and let it end what it has accepted.

    Args:
        make: puts it together, for a reactor.
        greet: says, given the server and the addresses where it listens, what there is to say of it.
        announce: is told that, line by line.
        on_sighup: is called on SIGHUP.

    Raises:
        ConfigError: it cannot be put together, or its endpoints are none.
        ListenFailed: it cannot listen where it was told to.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    server = make(reactor)
    failures: list[Failure] = []

    def started(addresses: tuple[str, ...]) -> None:
        if not addresses:
            return  # it was stopped before it listened
        try:
            for line in greet(server, addresses):
                announce(line)
        except OSError as error:  # nobody reads it: that is no reason not to serve
            log.warn("cannot say where it listens: {error}", error=error)

    def failed(failure: Failure) -> None:
        failures.append(failure)
        reactor.stop()

    server.listening.addCallbacks(started, failed)
    reactor.callWhenRunning(server.startService)
    reactor.callWhenRunning(_heed_signals, reactor, None if on_sighup is None else functools.partial(on_sighup, server))
    reactor.addSystemEventTrigger("before", "shutdown", server.stopService)
    reactor.run()
    if failures:
        failures[0].raiseException()


def within_descriptors(settings: "Settings") -> "Settings":
    """Make room for the connections that are allowed, and allow no more than there is room for.

    Args:
        settings: what the operator wants.

    Returns:
        The same with no more connections than there can be; the log says so where there are fewer.
    """
    allowed = settings.limits.max_connections
    fronts = 1 + settings.answers_http  # each of which allows so many
    room = descriptors.make_room(fronts * allowed, settings.worker_count)
    each = max(1, room.connections // fronts)
    if each == allowed:
        return settings
    log.warn(
        "ulimit -n is {limit} and has room for {room} connections{where}, not for the {allowed} of max_connections; "
        "raise it (LimitNOFILE), or lower max_connections",
        limit=room.limit,
        room=each,
        where=" on each port" if fronts > 1 else "",
        allowed=allowed,
    )
    return attrs.evolve(settings, limits=attrs.evolve(settings.limits, max_connections=each))


def _heed_signals(reactor: Any, on_sighup: Callable[[], object] | None) -> None:
    def stop(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
        # Whoever signals once more does not want to wait, not even for a transform that blocks.
        default_signals()
        reactor.callFromThread(reactor.stop)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if on_sighup is not None:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(on_sighup))


def default_signals() -> None:
    """Let SIGTERM and SIGINT end this process at once."""
    # What the first process of a container leaves to the system is not heeded there. Elsewhere it is, also in a
    # transform that blocks, where no handler of Python's would run.
    handler = _end_at_once if os.getpid() == 1 else signal.SIG_DFL
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def _end_at_once(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
    os._exit(128 + number)
