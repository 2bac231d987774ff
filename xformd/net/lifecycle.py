"""The life of a server's process: its start, its reloads, its drain and its end, and telling a service manager of them.

Invariant: a server that drains still accepts everything, and tells whoever asks that it will stop.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from xformd.net.allocator import MemoryTrimmer
from xformd.net.deadline import cancel
from xformd.net.systemd import Notifier
from xformd.telemetry import logs
from xformd.telemetry.reloads import ReloadFile, ReloadOutcome

if TYPE_CHECKING:
    from xformd.net.listener import ListeningService

STOP_EXTRA_S = 15.0
"""For what comes after the grace period of a stopping server: the last answers, and the end of its workers."""


@attrs.define(eq=False, slots=False)
class Lifecycle:
    """Runs a server that SIGHUP reloads.

    Once it listens, ``announce`` is called with each line that ``greet`` makes of its addresses; ``failed`` is called
    if it cannot.
    """

    log = Logger()

    _server: "ListeningService"
    _reactor: Any
    _greet: Callable[[tuple[str, ...]], Iterable[str]]
    _announce: Callable[[str], object]
    _failed: Callable[[Failure], None]

    def __attrs_post_init__(self) -> None:
        self._notifier = Notifier(os.environ)
        self._addresses: tuple[str, ...] = ()
        self._is_stopping = self._must_not_drain = False
        self._drained: Deferred[None] | None = None
        self._file: ReloadFile | None = None

    @property
    def drain_delay_s(self) -> float:
        """How long a stop waits first."""
        return self._server.limits.drain_delay_s

    def start(self) -> None:
        """Start the server."""
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
        MemoryTrimmer(self._reactor)
        with contextlib.suppress(AttributeError, OSError):  # a system without memfd, or one that forbids it
            self._file = ReloadFile()
        self._show_reloads()
        if self._notifier.watchdog_s:
            ticking = LoopingCall(self._notifier.tell, WATCHDOG=1)
            ticking.clock = self._reactor
            ticking.start(self._notifier.watchdog_s)
        self._server.listening.addCallbacks(self._started, self._failed)
        self._server.startService()

    def _started(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses  # none if it was stopped before it listened
        try:
            for line in self._greet(addresses) if addresses else ():
                self._announce(line)
        except OSError as error:  # a closed standard output is no reason not to serve
            self.log.warn("cannot print where it listens: {error}", error=error)
        self._ready()

    def _ready(self) -> None:
        """Tell that the server is ready, unless it is stopping by now."""
        if self._addresses and not self._is_stopping:
            self._notifier.tell(READY=1, STATUS="; ".join(self._greet(self._addresses)))

    def reload(self) -> Deferred[None]:
        """Open the log anew and reload the server; fires when that is done, or has failed."""
        if not self._is_stopping:
            self._notifier.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1_000, STATUS="reloading")
        logs.reopen()
        reloading = self._server.reload()
        self._show_reloads()
        return reloading.addCallback(self._reloaded)

    def _reloaded(self, outcome: ReloadOutcome) -> None:
        self._ready()
        if outcome.errors:
            self._notifier.tell(STATUS=f"not reloaded: {'; '.join(outcome.errors)}")
        self._show_reloads()

    def _show_reloads(self) -> None:
        if self._file is not None:
            self._file.write(self._server.reloads)

    async def drain(self) -> None:
        """Announce that the server stops, and go on for ``drain_delay_s``, or until ``end_drain`` is called."""
        delay_s = self.drain_delay_s if self._addresses and not self._must_not_drain else 0.0
        self._is_stopping = True
        longest_s = delay_s + self._server.limits.shutdown_grace_s + STOP_EXTRA_S
        self._notifier.tell(STOPPING=1, EXTEND_TIMEOUT_USEC=int(1e6 * longest_s), STATUS=f"draining for {delay_s:g} s")
        if delay_s:
            self._server.announce_stop()
            self.log.info("draining: stops in {delay_s:g} s, and accepts everything until then", delay_s=delay_s)
            self._drained = Deferred()
            timer = self._reactor.callLater(delay_s, self._drained.callback, None)
            await self._drained
            cancel(timer)
        self._notifier.tell(STATUS="stopping: answers what it has accepted")

    def end_drain(self) -> None:
        """Stop at once, not after the delay."""
        self._must_not_drain = True
        if self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    async def stop(self, then: Callable[[], object] = lambda: None) -> None:
        """Drain, call ``then``, and stop the server: it first finishes what it has accepted."""
        await self.drain()
        then()
        await self._server.stopService()
        if self._file is not None:
            self._file.close()
            self._file = None
