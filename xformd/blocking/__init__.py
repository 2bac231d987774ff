"""``TransformClient``: transform servers, as a plain program sees them; and ``call``, for a single line.

Invariants: an ``xform`` that ends without its answer, by its timeout or by Ctrl-C, is cancelled at the server too; a
connection is never shared with a forked process.
"""

import contextlib
import math
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, overload

from xformd.blocking.link import Link, Signal, here, pause
from xformd.client.balancer import Kind
from xformd.client.requests import Text
from xformd.client.servers import Core, NotInTime, Server
from xformd.client.sockets import HandshakeFailed, SocketClient, from_environment
from xformd.errors import Cancelled
from xformd.net.plain import PEER_TIMEOUT_S
from xformd.net.tls import ClientTls
from xformd.spec import OptionValue

__all__ = ["ClientTls", "TransformClient", "call"]

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

    def _waiter(self) -> "Signal":
        return Signal()

    def _settle(self, waiter: "Signal", value: Any) -> None:
        if not waiter.is_set():
            waiter.value = value
            waiter.set()

    async def _wait_for_room(self, request: Any, kind: Kind) -> None:
        if here.call is None:  # the caller of ``map`` has said how many are in flight
            await super()._wait_for_room(request, kind)

    def _note(self, node: Any, kind: Kind | None, sent_at: float, error: BaseException | None) -> None:
        # When the result of ``map`` came is not known: its caller was busy with others.
        super()._note(node, kind, sent_at if here.call is None else math.nan, error)

    async def _wait(self, waiter: "Signal", seconds: float | None) -> Any:
        await pause(is_sent=False)
        now = time.monotonic()
        until = min(here.ends_at, math.inf if seconds is None else now + seconds)
        if not waiter.wait(None if until == math.inf else max(0.0, until - now)):
            raise TimeoutError if until == here.ends_at else NotInTime
        if isinstance(waiter.value, Exception):
            raise waiter.value
        return waiter.value

    async def _within(self, timeout: float | None, work: Coroutine[Any, Any, Any], poem: Any = None) -> Any:
        before = here.ends_at
        here.ends_at = min(before, math.inf if timeout is None else time.monotonic() + timeout)
        try:
            return await work
        except TimeoutError:
            raise self._expired(timeout, poem) from None
        finally:
            here.ends_at = before

    async def _dial(self, server: Server, core: Core, in_use: Collection[str]) -> Any:
        if here.ends_at == math.inf:
            return await super()._dial(server, core, in_use)
        dialed, dialing = self._waiter(), super()._dial(server, core, in_use)

        async def dial() -> None:
            try:
                link = await dialing
            except Exception as error:
                self._settle(dialed, error)
            else:
                self._settle(dialed, link)
                link.follow()  # which closes it if nobody has waited for it

        self._start(dial())
        try:
            return await self._wait(dialed, None)
        except BaseException:
            core.abort()
            if isinstance(dialed.value, Link):  # it came at the same moment
                dialed.value.follow()
            raise

    async def _look_up(self, host: str, port: int) -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _connect_socket(self, connection: socket.socket, address: Any) -> None:
        connection.settimeout(PEER_TIMEOUT_S)
        connection.connect(address)

    async def _run_on(self, connection: socket.socket, core: Core, host: str, name: str | None) -> "Link":
        if name is not None:
            try:
                connection = self._tls.context().wrap_socket(connection, server_hostname=name)
            except OSError as error:
                raise HandshakeFailed from error
        link = Link(connection, core, host, self._tls)
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
    before, here.call, here.ends_at = (here.call, here.ends_at), None, math.inf
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    finally:
        here.call, here.ends_at = before
    raise AssertionError("it waits")


class _Task:
    """A coroutine in a thread of its own."""

    asked: Any = None  # what it waits for: the link, the waiter and what was sent
    is_cancelled = False

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        here.task = self
        with contextlib.suppress(Exception):  # those who wait are told
            _run(self._work)

    def cancel(self) -> None:
        """Cancel what it has asked a server, or would ask."""
        self.is_cancelled = True
        if self.asked is not None:
            link, *asked = self.asked
            link.give_up(*asked)


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
        before = here.call, here.ends_at
        here.call, here.ends_at = self, self._ends_at
        try:
            self.is_sent = self._work.send(None) if error is None else self._work.throw(error)
        except StopIteration as done:
            self.outcome = done.value, None
        except Exception as failure:
            self.outcome = None, failure
        finally:
            self._ends_at = here.ends_at
            here.call, here.ends_at = before


def _begin_anew() -> None:
    for client in _clients:
        client._begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
