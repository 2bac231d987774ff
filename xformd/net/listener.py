"""Listen on the endpoints of a server, and stop in good order.

Invariant: a server that stops first finishes what it has accepted. Where no file descriptors are left, it pauses
accepting: a connection that cannot be accepted would wake the reactor again at once, for ever.
"""

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure

from xformd.errors import ConfigError, ListenFailed, safe_str
from xformd.net import endpoints
from xformd.net.allocator import MemoryTrimmer
from xformd.net.factory import DrainingFactory
from xformd.net.transport import detect_loss, make_eager

if TYPE_CHECKING:  # it needs what the extra "tls" installs
    from xformd.net.tls import Certificates

ACCEPT_PAUSE_S = 1.0

NO_DESCRIPTORS = "no file descriptors are left; raise ulimit -n (LimitNOFILE), or lower max_connections"
NO_MEMORY = "no memory is left for sockets; give the machine more, or lower max_connections"
NO_FILES = "no file descriptors are left on the machine; raise fs.file-max, or lower max_connections"
STUCK = {"EMFILE": NO_DESCRIPTORS, "ENFILE": NO_FILES, "ENOBUFS": NO_MEMORY, "ENOMEM": NO_MEMORY}
"""Errors of ``accept`` that would come again at once, for ever, as the connection stays in the backlog; what to do."""


class ListeningService(Service):
    """A server that listens on one or several endpoints.

    Args:
        listen: the endpoints to listen on.
        factory: makes its connections.
        reactor: what it runs on.
        is_eager: whether to send at once what is written; not for a factory whose connections have producers.
        setting: the setting that names the endpoints, for error messages.
        flags: what moves the server to another port, for error messages; the flag of the setting unless given.
        scheme: put before the addresses that are shown, such as ``http://``, which is ``https://`` over TLS.
        alpn: the protocols that it speaks, for clients that ask for one over TLS.

    Attributes:
        listening: fires with the addresses once it listens on all endpoints; fails with ``ListenFailed`` or
            ``ConfigError``.
    """

    log = Logger()

    def __init__(
        self,
        listen: tuple[str, ...],
        factory: DrainingFactory[Any],
        reactor: Any,
        *,
        is_eager: bool = False,
        setting: str = "listen",
        flags: str = "",
        scheme: str = "",
        alpn: tuple[bytes, ...] = (),
    ) -> None:
        self.listening: Deferred[tuple[str, ...]] = Deferred()
        self._listen = listen
        self._factory = factory
        factory.drains_itself = False  # but only once its ports are closed: until then, what connects is served
        self._reactor = reactor
        self._is_eager = is_eager
        self._setting = setting
        self._flags = flags or f"--{setting}"
        self._scheme = scheme
        self._alpn = alpn
        self._certificates: list[Certificates] = []
        self._ports: list[IListeningPort] = []
        self._log_observer = cast(ILogObserver, self._observe)
        self._pause: IDelayedCall | None = None

    def startService(self) -> None:
        """Start to listen; the attribute ``listening`` has the outcome."""
        Service.startService(self)
        globalLogPublisher.addObserver(self._log_observer)
        Deferred.fromCoroutine(self._start()).chainDeferred(self.listening)

    def stopService(self) -> Deferred[None]:
        """Stop listening; fires when what has been accepted is done."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    def reload(self) -> object:
        """Read the certificates of its TLS endpoints again; a bad one is logged, and the one before it stays."""
        for certificates in self._certificates:
            certificates.reload()
        return None

    def reload_on_sighup(self) -> None:
        """Make SIGHUP, which would end the process, reload the server."""
        signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))

    async def _start(self) -> tuple[str, ...]:
        return tuple([await self._listen_on(description) for description in self._listen])

    async def _listen_on(self, description: str) -> str:
        """Listen on one endpoint; return its address."""
        limits = self._factory.limits
        more: Any = {"backlog": limits.listen_backlog, "alpn": self._alpn}
        endpoint = endpoints.server_endpoint(self._reactor, description, self._setting, **more)
        try:
            port = await endpoint.listen(self._factory)
        except Exception as error:  # each endpoint type raises what it likes
            raise _explain(description, error, self._flags) from error
        if self._is_eager:
            make_eager(port)
        detect_loss(port, limits.write_timeout_s)
        self._ports.append(port)
        scheme = self._scheme
        if endpoint.certificates is not None:
            self._certificates.append(endpoint.certificates)
            scheme = scheme.replace("http:", "https:")
        return scheme + endpoints.show(port.getHost())

    async def _stop(self) -> None:
        globalLogPublisher.removeObserver(self._log_observer)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        ports, self._ports = self._ports, []
        for port in ports:
            try:
                closing = port.stopListening()
                if closing is not None:
                    await closing
            except Exception as error:  # a Unix socket's file is gone, say: still finish what has been accepted
                self.log.warn("cannot close a port in order: {error}", error=safe_str(error))
        await self._factory.drain()

    def _observe(self, event: LogEvent) -> None:
        """Find new connections that Twisted could not accept: its log is the only place that reports them."""
        if not event.get("log_namespace", "").startswith("twisted.internet."):
            return
        if event.get("acceptError") in STUCK:
            self._pause_accepting(event["acceptError"])
        elif (event.get("log_format") or "").startswith("EMFILE recovery: Closed"):
            self._factory.refusals.refused("descriptors", NO_DESCRIPTORS)

    def _pause_accepting(self, error_name: str) -> None:
        if self._pause is not None or not self._ports:
            return
        message = "new connections wait for {pause_s:g} s: {advice}"
        self.log.warn(message, pause_s=ACCEPT_PAUSE_S, advice=STUCK[error_name])
        for port in self._ports:
            port.stopReading()  # type: ignore[attr-defined]  # ports are readers
        self._pause = self._reactor.callLater(ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._pause = None
        for port in self._ports:
            port.startReading()  # type: ignore[attr-defined]


class FailFastService(Service):
    """Starts a server that SIGHUP reloads; ends the process if it cannot listen. ``locate`` finds a setting's place."""

    log = Logger()

    def __init__(
        self, server: ListeningService, reactor: Any, locate: Callable[[ConfigError], ConfigError] = lambda error: error
    ) -> None:
        self._locate = locate
        self._server = server
        self._reactor = reactor
        self._error: BaseException | None = None
        self._is_starting = False
        server.listening.addCallbacks(self._started, self._failed)

    def startService(self) -> None:
        """Start the server.

        Raises:
            ListenFailed: it cannot listen, and found out at once.
        """
        Service.startService(self)
        self._server.reload_on_sighup()
        MemoryTrimmer(self._reactor)
        self._is_starting = True
        self._server.startService()
        self._is_starting = False
        if self._error is not None:
            raise self._error

    def stopService(self) -> Any:
        """Stop the server in good order."""
        Service.stopService(self)
        return self._server.stopService()

    def _started(self, addresses: tuple[str, ...]) -> None:
        for shown in addresses:
            self.log.info("listening on {address}", address=shown)

    def _failed(self, failure: Failure) -> None:
        error: Any = failure.value
        if isinstance(error, ConfigError):
            error = self._locate(error)
        self._error = error
        if not self._is_starting:  # the endpoint failed later, when nothing can be raised any more
            self.log.critical("{reason}", reason=safe_str(error))
            atexit.register(_exit_with_failure)  # twistd itself would end as after a stop in order
            self._reactor.stop()


def _exit_with_failure() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def _explain(description: str, error: Exception, flags: str) -> ListenFailed:
    if isinstance(error, OverflowError):
        return ListenFailed(f"cannot listen on {description}: a port is 0 to 65535")
    cause = getattr(error, "socketError", error)
    reason = getattr(cause, "strerror", None) or safe_str(cause)
    is_locked = reason == "Cannot acquire lock"  # Twisted's words for a Unix socket that has a server
    if not is_locked and getattr(cause, "errno", None) != errno.EADDRINUSE:
        return ListenFailed(f"cannot listen on {description}: {reason}")
    if isinstance(error, CannotListenError) and error.interface is not None:  # not a Unix socket
        host = error.interface or "*"
        description = f"[{host}]:{error.port}" if ":" in host else f"{host}:{error.port}"
    advice = f"is another server running there? {flags} moves it"
    return ListenFailed(f"cannot listen on {description}: address already in use; {advice}")
