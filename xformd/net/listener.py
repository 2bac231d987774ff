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

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure

from xformd.errors import ConfigError, ListenFailed, safe_str
from xformd.limits import Limits
from xformd.net import endpoints
from xformd.net.factory import DrainingFactory
from xformd.net.lifecycle import Lifecycle
from xformd.net.plain import detect_loss, is_loopback
from xformd.net.tls import ServerTls
from xformd.net.transport import make_eager
from xformd.telemetry.reloads import ReloadHistory, ReloadOutcome

if TYPE_CHECKING:  # it needs what the extra "tls" installs
    from xformd.net.tls.server import Certificates

ACCEPT_PAUSE_S = 1.0

NO_DESCRIPTORS = "no file descriptors are left; raise ulimit -n (LimitNOFILE), or lower max_connections"
NO_ROOM = "the machine has no descriptors (fs.file-max) or no memory left for sockets; lower max_connections"
STUCK = {"EMFILE": NO_DESCRIPTORS, "ENFILE": NO_ROOM, "ENOBUFS": NO_ROOM, "ENOMEM": NO_ROOM}
"""Errors of ``accept`` that would come again at once, for ever, as the connection stays in the backlog; what to do."""


@attrs.define(eq=False, slots=False)
class ListeningService(Service):
    """A server that listens on one or several endpoints.

    ``listening`` fires with the addresses once it listens on all endpoints, and fails with ``ListenFailed`` or
    ``ConfigError``; ``reloads`` is how its reloads have ended; ``on_reload`` is called with each reload, such as what
    reads an access file again.
    """

    log = Logger()

    _listen: tuple[str, ...]  # the endpoints
    _factory: DrainingFactory[Any]  # makes its connections
    _reactor: Any
    _is_eager: bool = False  # send at once what is written; not for a factory whose connections have producers
    _setting: str = "listen"  # that names the endpoints, for error messages
    _flags: str = attrs.Factory(lambda self: f"--{self._setting}", takes_self=True)  # what moves it to another port
    _scheme: str = ""  # before the addresses shown, such as ``http://``: over TLS ``https://``, or ``tls:`` for none
    _alpn: tuple[bytes, ...] = ()  # the protocols that it speaks, for clients that ask for one over TLS
    _reuse_port: bool = False  # other servers of this user may listen on the same TCP ports
    _tls: ServerTls | None = None  # gives TLS to its TCP ports

    def __attrs_post_init__(self) -> None:
        self._factory.drains_itself = False  # but only once its ports are closed: until then, what connects is served
        self.listening: Deferred[tuple[str, ...]] = Deferred()
        self.certificates: dict[Certificates, None] = {}
        self.exposed: list[str] = []  # where other machines may connect without TLS
        self._ports: list[IListeningPort] = []
        self.reloads = ReloadHistory()
        self.on_reload: list[Callable[[], ReloadOutcome]] = []
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

    def reload(self) -> Deferred[ReloadOutcome]:
        """Read the certificates of its TLS endpoints again, and whatever else may change; fires with the outcome.

        What is bad is logged, and what was there before stays.
        """
        self.reloads.requested += 1
        return Deferred.fromCoroutine(self._reload()).addErrback(self._reload_failed).addCallback(self.reloads.ended)

    async def _reload(self) -> ReloadOutcome:
        found = [certificates.reload() for certificates in self.certificates]
        outcome = ReloadOutcome(errors=tuple(filter(None, found)))
        for read_again in self.on_reload:
            outcome += read_again()
        return outcome

    def _reload_failed(self, failure: Failure) -> ReloadOutcome:
        self.log.failure("not reloaded", failure)
        return ReloadOutcome(errors=("a fault of xformd: see the log",))

    @property
    def limits(self) -> Limits:
        """Its limits now."""
        return self._factory.limits

    def set_limits(self, limits: Limits) -> None:
        """Hold to these limits from now on."""
        self._factory.set_limits(limits)

    def announce_stop(self) -> None:
        """Tell whoever asks that it will stop soon; it still accepts everything."""
        self._factory.will_stop = True

    async def _start(self) -> tuple[str, ...]:
        return tuple([await self._listen_on(description) for description in self._listen])

    async def _listen_on(self, description: str) -> str:
        """Listen on one endpoint; return its address."""
        limits = self.limits
        more: Any = {"backlog": limits.listen_backlog, "alpn": self._alpn}
        more |= {"reuse_port": self._reuse_port, "tls": self._tls}
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
            self.certificates[endpoint.certificates] = None
            scheme = scheme.replace("http:", "https:") or "tls:"
        shown = scheme + endpoints.show(port.getHost())
        if endpoint.certificates is None and not is_loopback(getattr(port.getHost(), "host", "localhost")):
            self.exposed.append(shown)
        return shown

    def _warn_of_tls(self, *, has_access_file: bool) -> None:
        if self._tls is not None and self._tls.asks_clients and not has_access_file:
            self.log.warn("tls_client_ca keeps nobody out: an access file does, with tls_san (--access)")
        if has_access_file and self.exposed:
            advice = "set tls_certificate, unless a proxy in front has TLS"
            message = "tokens of the access file travel in plain text to {addresses}: {advice}"
            self.log.warn(message, addresses=", ".join(self.exposed), advice=advice)

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
        self._locate, self._reactor = locate, reactor
        self._error: BaseException | None = None
        self._is_starting = False
        self._lifecycle = Lifecycle(
            server,
            reactor,
            lambda addresses: [f"listening on {each}" for each in addresses],
            lambda line: self.log.info("{line}", line=line),
            self._failed,
        )

    def startService(self) -> None:
        """Start the server.

        Raises:
            ListenFailed: it cannot listen, and found out at once.
        """
        Service.startService(self)
        self._is_starting = True
        self._lifecycle.start()
        self._is_starting = False
        if self._error is not None:
            raise self._error

    def stopService(self) -> Any:
        """Stop the server in good order, once it has drained; another SIGTERM ends the wait."""
        Service.stopService(self)
        if self._lifecycle.drain_delay_s:
            signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self._lifecycle.end_drain))
        return Deferred.fromCoroutine(self._lifecycle.stop())

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
