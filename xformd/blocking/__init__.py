"""``TransformClient``: transform servers, as a plain program sees them; and ``call``, for a single line.

There is no thread that reads: of the threads that wait for an answer on a connection, one reads for all. Invariants: an
``xform`` that ends without its answer, by its timeout or by Ctrl-C, is cancelled at the server too; a connection is
never shared with a forked process.
"""

import contextlib
import math
import os
import select
import socket
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, overload

from xformd.client.balancer import Kind
from xformd.client.requests import Text
from xformd.client.servers import Core, NotInTime, Server, watch
from xformd.client.sockets import HandshakeFailed, SocketClient, from_environment, why_lost
from xformd.errors import Cancelled
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue

__all__ = ["ClientTls", "TransformClient", "call"]

READ_BYTES = 256 * 1024
SENT_AT_ONCE = 4  # poems of ``map``, while results are there that its caller has not taken
AWAY_S = 0.05  # how long a thread with something to send looks away from whether anybody reads

_called: "dict[frozenset[tuple[str, str]], TransformClient]" = {}  # what ``call`` used last, by its variables
_clients: "weakref.WeakSet[TransformClient]" = weakref.WeakSet()


class TransformClient(SocketClient):
    """One or several transform servers, for any number of threads. Use it in a ``with``, or ``close()`` it."""

    def __init__(self, *servers: Any, **options: Any) -> None:
        super().__init__(*servers, **options)
        self._begin_anew()
        _clients.add(self)

    @overload
    def xform(
        self, transform: str, poem: str | bytes, /, *, result: type[Text], **options: OptionValue | None
    ) -> Text: ...

    @overload
    def xform(self, transform: str, poem: Text, /, **options: OptionValue | None) -> Text: ...

    def xform(
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
        """Send a poem, and return the result; arguments and errors are those of ``xformd.aio.TransformClient``."""
        work = self._xform(transform, poem, timeout, traceparent, result, hedge, options)
        return _run(self._within(timeout, work, poem))

    @overload
    def map(
        self, transform: str, poems: Iterable[Any], /, *, result: type[Text], **options: OptionValue | None
    ) -> Iterator[Text]: ...

    @overload
    def map(self, transform: str, poems: Iterable[Text], /, **options: OptionValue | None) -> Iterator[Text]: ...

    def map(
        self,
        transform: str,
        poems: Iterable[Any],
        /,
        *,
        in_flight: Any = 64,
        result: Any = None,
        timeout: Any = None,
        **options: OptionValue | None,
    ) -> Iterator[Any]:
        """Send poems, several at a time, and return an iterator of the results in the same order.

        It raises the first error when its turn comes, and then cancels what is in flight. Arguments are as for
        ``xform``; ``in_flight`` is how many poems are on their way at a time.
        """
        left = iter(poems)
        begun: deque[_Call] = deque()
        try:
            while True:
                while not begun or (len(begun) < in_flight and begun[-1].is_sent):
                    poem: Any = next(left, begun)
                    if poem is begun:
                        break
                    work = self._xform(transform, poem, timeout, None, result, False, options)
                    begun.append(call := _Call(self._within(timeout, work, poem)))
                    while len(begun) == 1 and not (call.is_sent or call.outcome):
                        call.go_on()  # nothing else is to be done meanwhile
                if not begun:
                    return
                yield begun.popleft().finish()
        finally:
            for call in begun:
                call.pauses = False
                if call.outcome is None:
                    call.go_on(Cancelled("given up"))

    def list_transforms(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Return what ``xformd list-transforms --json`` prints for a server; raise as ``xform`` does."""
        return dict(_run(self._within(timeout, self._list(timeout))))

    def ping(self, *, timeout: float | None = None) -> str:
        """Check that a server answers: return its name and version, and what it still misses."""
        return str(_run(self._within(timeout, self._ping(timeout))))

    def close(self) -> None:
        """Accept no new requests, and close every connection once what other threads have asked is answered.

        It does not wait for that.
        """
        self._is_closed = True
        if self._accepted:  # perhaps by what a signal has interrupted in this thread
            self._start(self._close())
        else:
            _run(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin_anew(self) -> None:
        """Forget all connections, without a word to the servers: after a fork they are the other process's."""
        self._lock = threading.RLock()
        for link in [link for server in self._servers for each in server.addresses for link in each.links]:
            link.connection.close()
        self._forget_connections()

    # What ``Client`` needs.

    _now = staticmethod(time.monotonic)

    def _start(self, work: Coroutine[Any, Any, Any]) -> "_Task":
        return _Task(work)

    def _waiter(self) -> "_Signal":
        return _Signal()

    def _settle(self, waiter: "_Signal", value: Any) -> None:
        if not waiter.is_set():
            waiter.value = value
            waiter.set()

    async def _wait_for_room(self, request: Any, kind: Kind) -> None:
        if _here.call is None:  # the caller of ``map`` has said how many are in flight
            await super()._wait_for_room(request, kind)

    def _note(self, node: Any, kind: Kind | None, sent_at: float, error: BaseException | None) -> None:
        # When the result of ``map`` came is not known: its caller was busy with others.
        super()._note(node, kind, sent_at if _here.call is None else math.nan, error)

    async def _wait(self, waiter: "_Signal", seconds: float | None) -> Any:
        await _pause(is_sent=False)
        now = time.monotonic()
        until = min(_here.ends_at, math.inf if seconds is None else now + seconds)
        if not waiter.wait(None if until == math.inf else max(0.0, until - now)):
            raise TimeoutError if until == _here.ends_at else NotInTime
        if isinstance(waiter.value, Exception):
            raise waiter.value
        return waiter.value

    async def _within(self, timeout: float | None, work: Coroutine[Any, Any, Any], poem: Any = None) -> Any:
        before = _here.ends_at
        _here.ends_at = min(before, math.inf if timeout is None else time.monotonic() + timeout)
        try:
            return await work
        except TimeoutError:
            raise self._expired(timeout, poem) from None
        finally:
            _here.ends_at = before

    async def _dial(self, server: Server, core: Core, in_use: Collection[str]) -> Any:
        if _here.ends_at == math.inf:
            return await super()._dial(server, core, in_use)
        dialed, dialing = self._waiter(), super()._dial(server, core, in_use)

        async def dial() -> None:
            try:
                link = await dialing
            except Exception as error:
                self._settle(dialed, error)
            else:
                self._settle(dialed, link)
                link.step(_nothing)  # which closes it if nobody has waited for it

        self._start(dial())
        try:
            return await self._wait(dialed, None)
        except BaseException:
            core.abort()
            if isinstance(dialed.value, _Link):  # it came at the same moment
                dialed.value.step(_nothing)
            raise

    async def _look_up(self, host: str, port: int) -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _connect_socket(self, connection: socket.socket, address: Any) -> None:
        connection.settimeout(PEER_TIMEOUT_S)
        connection.connect(address)

    async def _run_on(self, connection: socket.socket, core: Core, host: str, name: str | None) -> "_Link":
        if name is not None:
            try:
                connection = self._tls.context().wrap_socket(connection, server_hostname=name)
            except OSError as error:
                raise HandshakeFailed from error
        link = _Link(connection, core, host, self._tls)
        link.step(core.open)
        return link


@overload
def call(transform: str, poem: str | bytes, /, *, result: type[Text], **options: OptionValue | None) -> Text: ...


@overload
def call(transform: str, poem: Text, /, **options: OptionValue | None) -> Text: ...


def call(transform: str, poem: Any, /, *, timeout: Any = 60.0, **options: Any) -> Any:
    """Send one poem to the server that ``xformd send`` would use, and return the result.

    That is the one in ``XFORMD_SERVER``, or on this machine; ``XFORMD_TOKEN`` and the variables of TLS count too.
    """
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("XFORMD_"))
    return _client_of(variables).xform(transform, poem, timeout=timeout, **options)


def _client_of(variables: frozenset[tuple[str, str]]) -> TransformClient:
    if (client := _called.get(variables)) is None:
        client = _called.setdefault(variables, TransformClient(**from_environment(dict(variables))))
        for others in {*_called} - {variables}:  # another thread may be here too
            if (other := _called.pop(others, None)) is not None:
                other.close()
    return client


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits, whatever this thread was doing when a signal came."""
    before, _here.call, _here.ends_at = (_here.call, _here.ends_at), None, math.inf
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    finally:
        _here.call, _here.ends_at = before
    raise AssertionError("it waits")


@types.coroutine
def _pause(*, is_sent: bool) -> Iterator[bool]:
    """Let ``map`` begin with other poems before its thread waits for this one."""
    if _here.call is not None and _here.call.pauses:
        yield is_sent


class _Here(threading.local):
    """What this thread runs."""

    task: "_Task | None" = None
    call: "_Call | None" = None
    ends_at = math.inf  # what it waits for, at the latest


_here = _Here()


class _Task:
    """A coroutine in a thread of its own."""

    asked: Any = None  # what it waits for: the link, the waiter and what was sent
    is_cancelled = False

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        _here.task = self
        with contextlib.suppress(Exception):  # those who wait are told
            _run(self._work)

    def cancel(self) -> None:
        """Cancel what it has asked a server, or would ask."""
        self.is_cancelled = True
        if self.asked is not None:
            link, *asked = self.asked
            link.give_up(*asked)


class _Signal(threading.Event):
    """What a thread waits for that is not the answer on a link."""

    value: Any = None


class _Call:
    """What ``map`` does with a poem: it pauses where it would wait, until it is sent, and is finished in its turn."""

    pauses, is_sent = True, False
    outcome: Any = None  # its result and its error
    _ends_at = math.inf

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        self.go_on()

    def finish(self) -> Any:
        """Return the result, or raise what went wrong."""
        self.pauses = False
        if self.outcome is None:
            self.go_on()
        value, error = self.outcome
        if error is not None:
            raise error
        return value

    def go_on(self, error: Exception | None = None) -> None:
        """Go on to the next pause, or to the end; with an error, it is cancelled, at the server too."""
        before = _here.call, _here.ends_at
        _here.call, _here.ends_at = self, self._ends_at
        try:
            self.is_sent = self._work.send(None) if error is None else self._work.throw(error)
        except StopIteration as done:
            self.outcome = done.value, None
        except Exception as failure:
            self.outcome = None, failure
        finally:
            self._ends_at = _here.ends_at
            _here.call, _here.ends_at = before


class _Waiter:
    """What a thread waits for: ``value`` is not None once it is there."""

    __slots__ = ("sleeper", "value")

    def __init__(self) -> None:
        self.value: Any = None
        self.sleeper: Any = None  # a lock that the thread waits for while another one reads


class _Link:
    """The connection of a core. Of the threads that wait, one reads; the others sleep until it wakes them."""

    renews_at = math.inf
    closed = _Signal()  # closing waits for nobody
    closed.set()

    def __init__(self, connection: socket.socket, core: Core, host: str, tls: ClientTls) -> None:
        connection.setblocking(False)
        watch(core, connection)
        core.opener = self._opened = _Waiter()
        self._tls = tls
        self.core: Any = core
        self.host = host
        self.connection = connection
        self._pending = getattr(connection, "pending", None)  # what TLS has read already
        self._lock = threading.Lock()  # of all that follows, and of the core
        self._unsent = memoryview(b"")
        self._is_amid = False  # in a step: a signal's exception may have ended one half-way
        self._reader: _Waiter | None = None  # of the thread that reads
        self._sleepers: dict[_Waiter, None] = {}
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
            return self.wait(self._opened, None, _here.ends_at if seconds is None else time.monotonic() + seconds)
        except TimeoutError:
            raise (TimeoutError if seconds is None else NotInTime) from None

    async def ask(self, request: Any) -> bytes:
        """Send a request, and return its answer."""
        waiter, task, core = _Waiter(), _here.task, self.core
        with self._lock:  # the poems of ``map`` leave together, or when an answer is waited for
            follows = _here.call is None or not _here.call.pauses or core.unsent >= SENT_AT_ONCE
            pending = self._step(request.send, core, waiter, time.monotonic(), follows=follows)
        if task is not None:
            task.asked = self, waiter, pending
            if task.is_cancelled:
                task.cancel()
        try:
            await _pause(is_sent=True)
        except BaseException:
            self.give_up(waiter, pending)
            raise
        return bytes(self.wait(waiter, pending, _here.ends_at))

    def give_up(self, waiter: _Waiter, pending: Any) -> None:
        """Cancel what another thread has asked."""
        with self._lock:
            self._step(self.core.cancel, pending, time.monotonic())
            if waiter.value is None:
                self._wake(waiter, Cancelled("given up"))

    def step(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Do something to the core, and what it wants done then."""
        with self._lock:
            return self._step(act, *arguments)

    def close(self) -> None:
        """Close once what is in flight is answered."""
        self.step(self.core.close)

    def wait(self, waiter: _Waiter, pending: Any, ends_at: float) -> Any:
        """Return what comes of a message, or raise it; raise ``TimeoutError`` and cancel it if that takes too long."""
        try:
            if waiter.value is None and self.core.unsent:
                self.step(_nothing)
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

    def _wait(self, waiter: _Waiter, ends_at: float) -> None:
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
            self.step(_nothing)
            if ends_at <= time.monotonic():
                raise TimeoutError
        elif not waiter.sleeper.acquire(timeout=-1 if ends_at == math.inf else max(0.0, ends_at - time.monotonic())):
            raise TimeoutError

    def _read_until(self, waiter: _Waiter, ends_at: float) -> None:
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

    def _wake(self, waiter: _Waiter, value: Any) -> None:
        waiter.value = value
        if self._sleepers.pop(waiter, waiter) is None:
            waiter.sleeper.release()

    def _wake_reader(self) -> None:
        if self._reader is None and self._sleepers:
            waiter = next(iter(self._sleepers))
            del self._sleepers[waiter]
            waiter.sleeper.release()


def _nothing() -> None: ...


def _must_wait(error: OSError) -> bool:
    return isinstance(error, BlockingIOError) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def _begin_anew() -> None:
    for client in _clients:
        client._begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
