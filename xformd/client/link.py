"""A connection of a client on an event loop, Twisted's or that of asyncio: its core decides what goes over it."""

import math
from collections.abc import Callable
from typing import Any

from xformd.client.servers import Core


class Link:
    """The connection of a core, a ``ClientSession`` or a ``ClassicExchange``; a protocol of the loop is made of it."""

    renews_at = math.inf  # the time at which another one should take its place
    host = ""  # where it goes to
    transport: Any = None
    _timer: Any = None
    _is_scheduled = False

    break_off: Callable[[], None]  # what the loops do differently
    hang_up: Callable[[], None]
    _call_soon: Callable[[Callable[[], None]], None]

    def __init__(self, client: Any, core: Core) -> None:
        self.core: Any = core
        self._now, self._call_at = client._now, client._call_at
        self._waiter, self._settle, self._wait = client._waiter, client._settle, client._wait
        self.opened, self.closed = client._waiter(), client._waiter()
        core.opener = self.opened

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        return bool(self.core.is_open(self._now()))

    async def opening(self, seconds: float | None) -> Any:
        """Return what comes of the opening: the server's hello, or the result of a classic exchange; or raise it."""
        try:
            return await self._wait(self.opened, seconds)
        except GeneratorExit:
            raise
        except BaseException:
            self.abort()
            raise

    async def ask(self, request: Any) -> bytes:
        """Send a request, and return its answer; cancelling this cancels it at the server too.

        Raises ``NotSent`` if the server is known not to have run it.
        """
        waiter = self._waiter()
        pending = request.send(self.core, waiter, self._now())
        self.follow_soon()
        try:
            value = await waiter
        except GeneratorExit:
            raise
        except BaseException:
            self.core.cancel(pending, self._now())
            self.follow_soon()
            raise
        if isinstance(value, Exception):
            raise value
        return bytes(value)

    def close(self) -> None:
        """Accept no new requests; ``closed`` has a value once those in flight are answered."""
        self.core.close()
        self.follow()

    def abort(self) -> None:
        """Close now, and ignore what still arrives."""
        self.core.abort()
        self.follow()

    # What the connection does.

    def begin(self, transport: Any) -> None:
        """Send what comes first."""
        self.transport = transport
        self.core.open()
        self.follow()

    def receive(self, data: bytes) -> None:
        """Deliver each answer to its request."""
        self.core.receive(data, self._now())
        self.follow()

    def lose(self, reason: str, *, is_clean: bool) -> None:
        """Fail the requests in flight; those not written yet may go to another server."""
        self.transport = None
        self.core.lose(reason, is_clean=is_clean)
        self.follow()
        if self._timer is not None:
            self._timer.cancel()
        self._settle(self.closed, None)

    def _check(self) -> None:
        self._timer = None
        if self.core.check_at <= self._now():
            self.core.check(self._now())
        self.follow()

    def follow_soon(self) -> None:
        """Let what is sent in one turn of the loop leave in one piece."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self.follow)

    def follow(self) -> None:
        """Do what the core wants done after each call."""
        self._is_scheduled = False
        core = self.core
        if self.transport is not None and (data := core.data_to_send()):
            self.transport.write(data)
        for waiter, value in core.outcomes():
            self._settle(waiter, value)
        if self._timer is None and core.check_at < math.inf:
            self._timer = self._call_at(core.check_at, self._check)
        if self.transport is None:
            return
        if core.is_aborted:
            self.break_off()
        elif core.is_finished:
            self.hang_up()
