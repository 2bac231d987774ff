"""``TransformClient``: transform servers, as an asyncio program sees them. It needs no Twisted.

Invariant: an ``xform`` that is cancelled is cancelled at the server too, and every other failure is an ``XformError``
that carries the poem.
"""

import math
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from xformd.client.requests import Text
from xformd.client.servers import Core, NotInTime, watch
from xformd.client.sockets import HandshakeFailed, SocketClient, why_lost
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue

if TYPE_CHECKING:  # loading it takes longer than all the rest, and whoever has a loop has it
    import asyncio

__all__ = ["ClientTls", "TransformClient"]


class TransformClient(SocketClient):
    """One or several transform servers. Use it as an async context manager, or ``await close()``."""

    _loop: Any = None

    @overload
    async def xform(
        self, transform: str, poem: str | bytes, /, *, result: type[Text], **options: OptionValue | None
    ) -> Text: ...

    @overload
    async def xform(self, transform: str, poem: Text, /, **options: OptionValue | None) -> Text: ...

    async def xform(
        self,
        transform: str,
        poem: str | bytes,
        /,
        *,
        result: Any = None,
        timeout: Any = None,
        traceparent: Any = None,
        hedge: Any = None,
        **options: OptionValue | None,
    ) -> Any:
        """Send a poem, and return the result. Cancelling the task cancels the request at the server.

        Args:
            transform: a transform's name, or a whole spec such as ``wrap:width=40+upper``.
            poem: ``str``, sent as UTF-8, or ``bytes``.
            result: ``str`` or ``bytes``; by default, the poem's type.
            timeout: give up after this many seconds; the server gives up too.
            traceparent: the trace that the request belongs to; by default, that of OpenTelemetry's current span.
            hedge: whether a second server may be asked too; by default, as ``TransformClient`` was told.
            options: the transform's options; with a spec of several steps, write them into the spec.

        Raises:
            XformError: the server's error, or ``ConnectionFailed``, ``ConnectionLost``, ``RequestRefused``,
                ``BadFrame``, ``TooLarge``, ``TransformTimeout``, ``BadRequest`` or ``GibberishError``.
            ValueError: the timeout is not a number of seconds above 0.
        """
        work = self._xform(transform, poem, timeout, traceparent, result, hedge, options)
        return await self._within(timeout, work, poem)

    async def list_transforms(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what ``xformd list-transforms --json`` prints for a server; raise as ``xform`` does."""
        listed: dict[str, Any] = await self._within(timeout, self._list(timeout))
        return listed

    async def ping(self, *, timeout: float | None = None) -> str:
        """Check that a server answers: return its name and version, and what it still misses."""
        name: str = await self._within(timeout, self._ping(timeout))
        return name

    async def close(self) -> None:
        """Accept no new requests, and wait until those in flight are done and every connection is closed."""
        await self._within(None, self._close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _within(self, timeout: float | None, work: Coroutine[Any, Any, Any], poem: Any = None) -> Any:
        import asyncio

        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop, self._now = loop, loop.time
            self._turns.clear()
            self._forget_connections()  # which belong to another loop, which is over
        if timeout is None or not 0 < timeout < math.inf:
            return await work
        try:
            async with asyncio.timeout(timeout):
                return await work
        except TimeoutError:
            raise self._expired(timeout, poem) from None

    # What ``Client`` needs.

    def _start(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self._loop.create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # those who wait are told
        return task

    def _waiter(self) -> Any:
        return self._loop.create_future()

    def _settle(self, waiter: Any, value: Any) -> None:
        if not waiter.done():
            (waiter.set_exception if isinstance(value, Exception) else waiter.set_result)(value)

    async def _wait(self, waiter: Any, seconds: float | None, ends_at: float | None) -> Any:  # noqa: ARG002
        import asyncio

        done, _ = await asyncio.wait({waiter}, timeout=seconds)
        if not done:
            raise NotInTime
        return waiter.result()

    async def _look_up(self, host: str, port: int) -> Any:
        return await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _connect_socket(self, connection: socket.socket, address: Any) -> None:
        import asyncio

        async with asyncio.timeout(PEER_TIMEOUT_S):
            await self._loop.sock_connect(connection, address)

    async def _talk(
        self,
        connection: socket.socket,
        core: Core,
        host: str,
        name: str | None,
        within_s: float | None,
        ends_at: float | None,
    ) -> Any:
        link: Any = _Link(self._loop, connection, core, host, self._tls)
        secure: dict[str, Any] = {}
        if name is not None:
            secure = {"ssl": self._tls.context(), "server_hostname": name, "ssl_handshake_timeout": PEER_TIMEOUT_S}
        try:
            try:
                await self._loop.create_connection(lambda: link, sock=connection, **secure)
            except OSError as error:
                raise HandshakeFailed from error
            value = await self._wait(link.opened, within_s, ends_at)
        except BaseException:
            link.abort()
            connection.close()
            raise
        return value if isinstance(value, bytes) else link

    async def _in_thread(self, work: Callable[[], str]) -> Any:
        return await self._loop.run_in_executor(None, work)


class _Link:
    """The connection of a core: a protocol of asyncio."""

    renews_at = math.inf

    def __init__(
        self, loop: "asyncio.AbstractEventLoop", connection: socket.socket, core: Core, host: str, tls: ClientTls
    ) -> None:
        watch(core, connection)
        self.core: Any = core
        self._tls = tls
        self.host = host
        self.opened = core.opener = loop.create_future()
        self.closed = loop.create_future()
        self._loop = loop
        self._transport: Any = None
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        is_open: bool = self.core.is_open(self._loop.time())
        return is_open

    async def ask(self, request: Any) -> bytes:
        """Send a request, and return its answer."""
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        pending = request.send(self.core, waiter, self._loop.time())
        # What is sent in one turn of the loop leaves in one piece.
        self._follow_soon()
        try:
            return await waiter
        finally:
            if waiter.cancelled():
                self.core.cancel(pending, self._loop.time())
                self._follow_soon()

    def close(self) -> None:
        """Close once what is in flight is answered."""
        self.core.close()
        self._follow()

    def abort(self) -> None:
        """Close now."""
        self.core.abort()
        self._follow()

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        self.core.open()
        self._follow()

    def data_received(self, data: bytes) -> None:
        """Deliver each answer to its request."""
        self.core.receive(data, self._loop.time())
        self._follow()

    def eof_received(self) -> None:
        """Take the end of the server's side for that of the connection."""

    def pause_writing(self) -> None:
        """Go on: the server's limits bound what is on its way."""

    resume_writing = pause_writing

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is in flight."""
        self.core.lose(why_lost(error, self._tls), is_clean=error is None)
        self._follow()
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def _check(self) -> None:
        self._timer = None
        if self.core.check_at <= self._loop.time():
            self.core.check(self._loop.time())
        self._follow()

    def _follow_soon(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._follow)

    def _follow(self) -> None:
        """Do what the core wants done after each call."""
        self._is_scheduled = False
        core = self.core
        if self._transport is not None and (data := core.data_to_send()):
            self._transport.write(data)
        for waiter, value in core.outcomes():
            if not waiter.done():
                (waiter.set_exception if isinstance(value, Exception) else waiter.set_result)(value)
        if self._timer is None and core.check_at < math.inf:
            self._timer = self._loop.call_at(core.check_at, self._check)
        if self._transport is None:
            return
        if core.is_aborted:
            self._transport.abort()
        elif core.is_finished:
            self._transport.close()
