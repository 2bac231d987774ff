"""What a process needs around Twisted: a log, signals, and a reactor that runs until the work is done."""

import functools
import os
import signal
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd import __version__
from xformd.net import descriptors
from xformd.net.allocator import keep_freed_memory
from xformd.net.listener import Listening
from xformd.telemetry.logs import start_server_log

if TYPE_CHECKING:
    from xformd.config import Settings
    from xformd.plugins.registry import Registry

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
        reactor.callWhenRunning(_default_signals)
        reactor.run()
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


def serve(settings: "Settings", announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then answer what has been accepted; load the plugins anew on SIGHUP.

    Args:
        settings: what to serve, and where.
        announce: is told, line by line, where the server listens and what it has.

    Raises:
        ConfigError: the settings name something that is not there.
        ListenFailed: the server cannot listen where it was told to.
    """
    _default_signals()
    signal.signal(signal.SIGHUP, _ignore)  # whoever wants the plugins anew gets them: they are being loaded
    prepare_to_serve(settings.log_format, with_loop=settings.answers_http)
    from xformd.server.app import make_server  # which a client's command does not need

    run_server(
        lambda reactor: make_server(within_descriptors(settings), reactor),
        lambda server, addresses: _greeting(addresses, server.registry),
        announce,
        on_sighup=lambda server: server.reload(),
    )


def prepare_to_serve(log_format: str = "text", *, with_loop: bool = False) -> None:
    """Make this process one that serves; before anything else installs a reactor.

    Args:
        log_format: of its log: ``text`` or ``json``.
        with_loop: whether asyncio's tasks run here too, as HTTP's do.
    """
    try:
        from xformd.net import loop_reactor, reactor
    except ImportError:  # this system has no epoll
        if with_loop:
            from twisted.internet import asyncioreactor

            asyncioreactor.install()
    else:
        (loop_reactor if with_loop else reactor).install()
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
        _default_signals()
        reactor.callFromThread(reactor.stop)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if on_sighup is not None:
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(on_sighup))


def _default_signals() -> None:
    # What the first process of a container leaves to the system is not heeded there. Elsewhere it is, also in a
    # transform that blocks, where no handler of Python's would run.
    handler = _end_at_once if os.getpid() == 1 else signal.SIG_DFL
    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)


def _end_at_once(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
    os._exit(128 + number)


def _ignore(number: int, frame: object) -> None:
    """Ignore a signal so that no child does: only what is left to the system is inherited."""


def listening_lines(addresses: tuple[str, ...]) -> Iterator[str]:
    """Say where a server listens."""
    for address in addresses:
        yield f"xformd {__version__} listening on {address}"


def _greeting(addresses: tuple[str, ...], registry: "Registry") -> Iterator[str]:
    yield from listening_lines(addresses)
    active = registry.with_state("active")
    yield f"{len(registry.entries)} transforms from {len(active)} plugins"
    for plugin in registry.with_state("failed"):
        yield f"failed: plugin {plugin.label}: {plugin.reason}"
    for conflict in registry.conflicts:
        yield f"conflict: {conflict}"
