"""Where a server listens: it begins in good order, rests where no file descriptors are left, and ends in good order."""

import errno
from collections.abc import Callable
from typing import Any, Protocol, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError, ListenFailed, safe_str
from xformd.net import endpoints
from xformd.net.transport import make_eager
from xformd.telemetry.rate_limited import RateLimitedLog

REST_S = 1.0

STUCK = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"})
"""Errors of ``accept`` that would come again at once, for ever: the connection stays in the backlog."""

NO_DESCRIPTORS = "no file descriptors are left; raise ulimit -n (LimitNOFILE), or lower max_connections"


@implementer(ILogObserver)
class AcceptErrors:
    """Watches Twisted's log, the only place that reports it, for new connections that could not be accepted.

    Args:
        closed: called for each connection that Twisted closed for want of a descriptor.
        stuck: called with the error's name when Twisted could neither accept nor close one.
    """

    def __init__(self, closed: Callable[[], None], stuck: Callable[[str], None]) -> None:
        self._closed = closed
        self._stuck = stuck

    def __call__(self, event: LogEvent) -> None:
        """Look at an event of the log."""
        if not event.get("log_namespace", "").startswith("twisted.internet."):
            return
        if event.get("acceptError") in STUCK:
            self._stuck(event["acceptError"])
        elif (event.get("log_format") or "").startswith("EMFILE recovery: Closed"):
            self._closed()


class DrainableFactory(Protocol):
    """What a factory of connections must know besides what Twisted asks of it."""

    refusals: RateLimitedLog

    def drain(self) -> Deferred[None]:
        """Take nothing new; fires when what has been accepted is done."""
        ...


class Listening(Service):
    """A server that listens. Stopping it ends what has been accepted first.

    Args:
        listen: the endpoints to listen on.
        factory: makes its connections.
        reactor: what it runs on.
        is_eager: whether what it writes is sent at once; not for a factory whose connections have producers.
        setting: which names the endpoints.
        scheme: what stands before an address that is shown, such as ``http://``.

    Attributes:
        listening: fires with the addresses once it listens on all of them; fails with ``ListenFailed`` or
            ``ConfigError``.
    """

    log = Logger()

    def __init__(
        self,
        listen: tuple[str, ...],
        factory: DrainableFactory,
        reactor: Any,
        *,
        is_eager: bool = False,
        setting: str = "listen",
        scheme: str = "",
    ) -> None:
        self.listening: Deferred[tuple[str, ...]] = Deferred()
        self._listen = listen
        self._factory = factory
        self._reactor = reactor
        self._is_eager = is_eager
        self._setting = setting
        self._scheme = scheme
        self._ports: list[IListeningPort] = []
        self._accept_errors = AcceptErrors(self._ran_out, self._rest)
        self._resting: IDelayedCall | None = None

    def startService(self) -> None:
        """Begin to listen; ``listening`` tells the outcome."""
        Service.startService(self)
        globalLogPublisher.addObserver(self._accept_errors)
        Deferred.fromCoroutine(self._start()).chainDeferred(self.listening)

    def stopService(self) -> Deferred[None]:
        """Stop listening, and fire when what has been accepted is done."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> tuple[str, ...]:
        shown = []
        for description in self._listen:
            endpoint = endpoints.server_endpoint(self._reactor, description, self._setting)
            try:
                port = await endpoint.listen(cast(Any, self._factory))
            except Exception as error:  # each kind of endpoint raises as it likes
                raise _explain(description, error) from error
            if self._is_eager:
                make_eager(port)
            self._ports.append(port)
            shown.append(self._scheme + endpoints.show(port.getHost()))
        return tuple(shown)

    async def _stop(self) -> None:
        globalLogPublisher.removeObserver(self._accept_errors)
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        ports, self._ports = self._ports, []
        for port in ports:
            try:
                closing = port.stopListening()
                if closing is not None:
                    await closing
            except Exception as error:  # its file may be gone, say; what has been accepted is answered all the same
                self.log.warn("a port did not close in order: {error}", error=safe_str(error))
        await self._factory.drain()

    def _ran_out(self) -> None:
        self._factory.refusals.refused("descriptors", NO_DESCRIPTORS)

    def _rest(self, cause: str) -> None:
        """Let new connections wait: who has not been accepted would wake the reactor at once, again and again."""
        if self._resting is not None or not self._ports:
            return
        advice = NO_DESCRIPTORS if cause == "EMFILE" else f"the system says {cause}"
        self._factory.refusals.log.warn("new connections wait for {rest_s} s: {advice}", rest_s=REST_S, advice=advice)
        for port in self._ports:
            port.stopReading()  # type: ignore[attr-defined]  # what accepts, reads
        self._resting = self._reactor.callLater(REST_S, self._resume)

    def _resume(self) -> None:
        self._resting = None
        for port in self._ports:
            port.startReading()  # type: ignore[attr-defined]


class StartOrFail(Service):
    """Starts a server; one that cannot listen ends the process, as twistd's own services do.

    Args:
        server: what to start.
        reactor: what it runs on.
    """

    log = Logger()

    def __init__(self, server: Listening, reactor: Any) -> None:
        self._server = server
        self._reactor = reactor
        self._error: BaseException | None = None
        self._is_starting = False
        server.listening.addCallbacks(self._started, self._failed)

    def startService(self) -> None:
        """Start it.

        Raises:
            ListenFailed: it cannot listen.
        """
        Service.startService(self)
        self._is_starting = True
        self._server.startService()
        self._is_starting = False
        if self._error is not None:
            raise self._error

    def stopService(self) -> Any:
        """Stop it in good order."""
        Service.stopService(self)
        return self._server.stopService()

    def _started(self, addresses: tuple[str, ...]) -> None:
        for shown in addresses:
            self.log.info("listening on {address}", address=shown)

    def _failed(self, failure: Failure) -> None:
        error: Any = failure.value
        if isinstance(error, ConfigError) and error.setting is not None:
            error = error.located_at(f"--{error.setting}")
        self._error = error
        if not self._is_starting:  # an endpoint that took its time to find out
            self.log.critical("{reason}", reason=safe_str(error))
            self._reactor.stop()


def _explain(description: str, error: Exception) -> ListenFailed:
    cause = getattr(error, "socketError", error)
    reason = getattr(cause, "strerror", None) or safe_str(cause)
    advice = "; is another server running there?" if getattr(cause, "errno", None) == errno.EADDRINUSE else ""
    return ListenFailed(f"cannot listen on {description}: {reason}{advice}")
