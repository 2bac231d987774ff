"""``TransformClient``: transform servers, as an asyncio program sees them. It needs no Twisted.

Invariant: an ``xform`` that is cancelled is cancelled at the server too, and every other failure is an ``XformError``
that carries the poem.
"""

import math
import socket
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, overload

from xformd.client.link import Link
from xformd.client.requests import Text
from xformd.client.servers import Core, NotInTime, watch
from xformd.client.sockets import HandshakeFailed, SocketClient, why_lost
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue

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
        return dict(await self._within(timeout, self._list(timeout)))

    async def ping(self, *, timeout: float | None = None) -> str:
        """Check that a server answers: return its name and version, and what it still misses."""
        return str(await self._within(timeout, self._ping(timeout)))

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
            self._loop, self._now, self._call_at = loop, loop.time, loop.call_at
            self._waiter = loop.create_future
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

    def _settle(self, waiter: Any, value: Any) -> None:
        if not waiter.done():
            waiter.set_result(value)  # also an exception: a waiter never fails

    async def _wait(self, waiter: Any, seconds: float | None) -> Any:
        import asyncio

        done, _ = await asyncio.wait({waiter}, timeout=seconds)
        if not done:
            raise NotInTime
        if isinstance(value := waiter.result(), Exception):
            raise value
        return value

    async def _look_up(self, host: str, port: int) -> Any:
        return await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _connect_socket(self, connection: socket.socket, address: Any) -> None:
        import asyncio

        async with asyncio.timeout(PEER_TIMEOUT_S):
            await self._loop.sock_connect(connection, address)

    async def _run_on(self, connection: socket.socket, core: Core, host: str, name: str | None) -> "_Link":
        link: Any = _Link(self, core, connection, host)
        secure: dict[str, Any] = {}
        if name is not None:
            secure = {"ssl": self._tls.context(), "server_hostname": name, "ssl_handshake_timeout": PEER_TIMEOUT_S}
        try:
            await self._loop.create_connection(lambda: link, sock=connection, **secure)
        except OSError as error:
            raise HandshakeFailed from error
        return link  # type: ignore[no-any-return]


class _Link(Link):
    def __init__(self, client: TransformClient, core: Core, connection: socket.socket, host: str) -> None:
        super().__init__(client, core)
        watch(core, connection)
        self.host = host
        self._tls, self._call_soon = client._tls, client._loop.call_soon

    # Called by asyncio.

    connection_made = Link.begin
    data_received = Link.receive

    def eof_received(self) -> None:
        """Take the end of the server's side for that of the connection."""

    def pause_writing(self) -> None:
        """Go on: the server's limits bound what is on its way."""

    resume_writing = pause_writing

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is in flight."""
        self.lose(why_lost(error, self._tls), is_clean=error is None)

    def break_off(self) -> None:
        self.transport.abort()

    def hang_up(self) -> None:
        self.transport.close()
