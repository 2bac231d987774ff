"""The connection of a core, on a plain socket that threads share; and what each thread runs.

There is no thread that reads. Invariant: of the threads that wait for an answer on a link, one reads, and the others
sleep until it wakes them.
"""

import contextlib
import math
import select
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from xformd.client.servers import Core, NotInTime, watch
from xformd.client.sockets import why_lost
from xformd.errors import Cancelled
from xformd.net.tls import ClientTls

READ_BYTES = 256 * 1024
SENT_AT_ONCE = 4  # poems of ``map``, while results are there that its caller has not taken
AWAY_S = 0.05  # how long a thread with something to send looks away from whether anybody reads


class Here(threading.local):
    """What this thread runs."""

    task: Any = None  # a coroutine in a thread of its own
    call: Any = None  # what ``map`` does with a poem
    ends_at = math.inf  # what it waits for, at the latest


here = Here()


@types.coroutine
def pause(*, is_sent: bool) -> Iterator[bool]:
    """Let ``map`` begin with other poems before its thread waits for this one."""
    if here.call is not None and here.call.pauses:
        yield is_sent


class Signal(threading.Event):
    """What a thread waits for that is not the answer on a link."""

    value: Any = None


class Waiter:
    """What a thread waits for: ``value`` is not None once it is there."""

    __slots__ = ("sleeper", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.sleeper: Any = None  # a lock that the thread waits for while another one reads


class Link:
    """The connection of a core. Of the threads that wait, one reads; the others sleep until it wakes them."""

    renews_at = math.inf
    closed = Signal()  # closing waits for nobody
    closed.set()

    def __init__(self, connection: socket.socket, core: Core, host: str, tls: ClientTls) -> None:
        connection.setblocking(False)
        watch(core, connection)
        core.opener = self._opened = Waiter()
        self._tls = tls
        self.core: Any = core
        self.host = host
        self.connection = connection
        self._pending = getattr(connection, "pending", None)  # what TLS has read already
        self._lock = threading.Lock()  # of all that follows, and of the core
        self._unsent = memoryview(b"")
        self._is_amid = False  # in a step: a signal's exception may have ended one half-way
        self._reader: Waiter | None = None  # of the thread that reads
        self._sleepers: dict[Waiter, None] = {}
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._events = select.POLLIN

    @property
    def is_open(self) -> bool:
        """Whether it accepts new requests."""
        core = self.core
        if self._reader is None and (not core.load or core.check_at <= time.monotonic()):
            with self._lock:
                if self._reader is None:
                    self._step(self._read)  # while nobody has read, the server may have closed
        return bool(core.is_open(time.monotonic()))

    async def opening(self, seconds: float | None) -> Any:
        """Return what comes of the opening, or raise it."""
        try:
            return self.wait(self._opened, None, here.ends_at if seconds is None else time.monotonic() + seconds)
        except TimeoutError:
            raise (TimeoutError if seconds is None else NotInTime) from None

    async def ask(self, request: Any) -> bytes:
        """Send a request, and return its answer."""
        waiter, task, core = Waiter(), here.task, self.core
        with self._lock:  # the poems of ``map`` leave together, or when an answer is waited for
            follows = here.call is None or not here.call.pauses or core.unsent >= SENT_AT_ONCE
            pending = self._step(request.send, core, waiter, time.monotonic(), follows=follows)
        if task is not None:
            task.asked = self, waiter, pending
            if task.is_cancelled:
                task.cancel()
        try:
            await pause(is_sent=True)
        except BaseException:
            self.give_up(waiter, pending)
            raise
        return bytes(self.wait(waiter, pending, here.ends_at))

    def give_up(self, waiter: Waiter, pending: Any) -> None:
        """Cancel what another thread has asked."""
        with self._lock:
            self._step(self.core.cancel, pending, time.monotonic())
            if waiter.value is None:
                self._wake(waiter, Cancelled("given up"))

    def step(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Do something to the core, and what it wants done then."""
        with self._lock:
            return self._step(act, *arguments)

    def follow(self) -> None:
        """Do what the core wants done: send, wake, or close."""
        self.step(lambda: None)

    def close(self) -> None:
        """Close once what is in flight is answered."""
        self.step(self.core.close)

    def wait(self, waiter: Waiter, pending: Any, ends_at: float) -> Any:
        """Return what comes of a message, or raise it; raise ``TimeoutError`` and cancel it if that takes too long."""
        try:
            if waiter.value is None and self.core.unsent:
                self.follow()
            while waiter.value is None:
                self._wait(waiter, ends_at)
        except BaseException:
            with self._lock:
                if self._reader is waiter:
                    self._reader = None
                if pending is None:
                    self._step(self.core.abort)
                else:
                    self._step(self.core.cancel, pending, time.monotonic())
            raise
        finally:
            if self._sleepers:
                with self._lock:
                    self._sleepers.pop(waiter, None)
                    self._wake_reader()
        if isinstance(waiter.value, Exception):
            raise waiter.value
        return waiter.value

    def _wait(self, waiter: Waiter, ends_at: float) -> None:
        with self._lock:
            if waiter.value is not None:
                return
            reads = self._reader is None
            if reads:
                self._reader = waiter
            else:
                waiter.sleeper = threading.Lock()
                waiter.sleeper.acquire()
                self._sleepers[waiter] = None
        if reads:
            self._read_until(waiter, ends_at)
        elif self._unsent:
            output = select.poll()
            with contextlib.suppress(ValueError):  # who reads has closed it meanwhile
                output.register(self.connection, select.POLLOUT)
                output.poll(1000 * AWAY_S)
            self.follow()
            if ends_at <= time.monotonic():
                raise TimeoutError
        elif not waiter.sleeper.acquire(timeout=-1 if ends_at == math.inf else max(0.0, ends_at - time.monotonic())):
            raise TimeoutError

    def _read_until(self, waiter: Waiter, ends_at: float) -> None:
        core = self.core
        while True:
            until, now = min(core.check_at, ends_at), time.monotonic()
            events = select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN
            if events != self._events:
                self._events = events
                self._poll.modify(self.connection, events)
            ready = self._poll.poll(None if until == math.inf else max(0, math.ceil(1000 * (until - now))))
            with self._lock:
                now = time.monotonic()
                if ready:
                    self._step(self._read)
                elif core.check_at <= now:
                    self._step(core.check, now)
                if waiter.value is not None:
                    self._reader = None
                    return
            if now >= ends_at:
                raise TimeoutError

    # With the lock held.

    def _step(self, act: Callable[..., Any], *arguments: Any, follows: bool = True) -> Any:
        if self._is_amid:
            self.core.lose("", is_clean=False)
        self._is_amid = True
        done = act(*arguments)
        if follows:
            self._follow()
        self._is_amid = False
        return done

    def _follow(self) -> None:
        core = self.core
        if not core.is_aborted and (data := core.data_to_send()):
            self._unsent = memoryview(bytes(self._unsent) + data if self._unsent else data)
        if self._unsent:
            try:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            except OSError as error:
                if not _must_wait(error):  # broken: reading finds out how, after what the server had said before
                    self._unsent = memoryview(b"")
        for waiter, value in core.outcomes():
            self._wake(waiter, value)
        if core.is_aborted or (core.is_finished and not self._unsent):
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            self.connection.close()

    def _read(self) -> None:
        try:
            data = self.connection.recv(READ_BYTES)
            while self._pending is not None and self._pending():
                data += self.connection.recv(READ_BYTES)
        except OSError as error:
            if not _must_wait(error):
                self.core.lose(why_lost(error, self._tls), is_clean=False)
            return
        if data:
            self.core.receive(data, time.monotonic())
        else:
            self.core.lose("", is_clean=True)

    def _wake(self, waiter: Waiter, value: Any) -> None:
        waiter.value = value
        if self._sleepers.pop(waiter, waiter) is None:
            waiter.sleeper.release()

    def _wake_reader(self) -> None:
        if self._reader is None and self._sleepers:
            waiter = next(iter(self._sleepers))
            del self._sleepers[waiter]
            waiter.sleeper.release()


def _must_wait(error: OSError) -> bool:
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
