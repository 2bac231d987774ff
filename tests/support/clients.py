"""The three clients behind one interface, and a server in threads that says whatever a test wants."""

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.threads import blockingCallFromThread

from support.processes import DEADLINE_S, netstring
from xformd import TransformProxy, aio, blocking
from xformd.errors import BadFrame
from xformd.wire.netstring import Decoder

HELLO = b'xformd/2 {"server": "scripted 1", "max_request_bytes": 1000000, "max_in_flight": 4}'


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, "it does not come true"
        time.sleep(0.002)


# Clients.


class AsyncioClients:
    """An event loop in a thread, and clients on it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._made: list[aio.TransformClient] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE_S)

    def make(self, servers: Any, **options: Any) -> Any:
        self._made.append(aio.TransformClient(servers, **options))
        return _AsyncioClient(self, self._made[-1])

    def stop(self) -> None:
        for client in self._made:
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(client.close(), self.loop).result(1)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE_S)
        self.loop.close()


class _AsyncioClient:
    def __init__(self, clients: AsyncioClients, client: aio.TransformClient) -> None:
        self._clients, self._client = clients, client

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self._clients.run(getattr(self._client, name)(*arguments, **options))

    def start(self, *arguments: Any, **options: Any) -> Any:
        """Begin a request; return what has ``result()`` and ``cancel()``."""
        work = self._client.xform(*arguments, **options)
        return asyncio.run_coroutine_threadsafe(work, self._clients.loop)


class TwistedClients:
    """A reactor of its own in a thread, and clients on it."""

    def __init__(self) -> None:
        self.reactor: Any = EPollReactor()
        self._thread = threading.Thread(target=self.reactor.run, args=(False,), daemon=True)
        self._thread.start()
        self._made: list[TransformProxy] = []

    def make(self, servers: Any, **options: Any) -> Any:
        made = functools.partial(TransformProxy, servers, reactor=self.reactor, **options)
        self._made.append(blockingCallFromThread(self.reactor, made))
        return _TwistedClient(self.reactor, self._made[-1])

    def stop(self) -> None:
        def close() -> None:
            for proxy in self._made:
                proxy.close().addErrback(lambda _: None)
                for address in proxy._balancer.nodes:
                    address.link.abort()  # type: ignore[attr-defined]
            self.reactor.callLater(0, self.reactor.stop)

        self.reactor.callFromThread(close)
        self._thread.join(DEADLINE_S)


class _TwistedClient:
    def __init__(self, reactor: Any, proxy: TransformProxy) -> None:
        self._reactor, self._proxy = reactor, proxy

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: blockingCallFromThread(
            self._reactor, getattr(self._proxy, name), *arguments, **options
        )

    def start(self, *arguments: Any, **options: Any) -> Any:
        answer: Future[Any] = Future()
        deferreds: list[Deferred[Any]] = []

        def ask() -> None:
            deferreds.append(self._proxy.xform(*arguments, **options))
            deferreds[0].addCallbacks(answer.set_result, lambda failure: answer.set_exception(failure.value))

        def cancel() -> None:
            self._reactor.callFromThread(lambda: deferreds[0].cancel())

        self._reactor.callFromThread(ask)
        answer.cancel = cancel  # type: ignore[method-assign,assignment]
        return answer


class BlockingClients:
    """Clients on plain sockets."""

    def __init__(self) -> None:
        self._made: list[blocking.TransformClient] = []

    def make(self, servers: Any, **options: Any) -> Any:
        self._made.append(_BlockingClient(servers, **options))
        return self._made[-1]

    def stop(self) -> None:
        for client in self._made:
            client.close()


class _BlockingClient(blocking.TransformClient):
    def start(self, *arguments: Any, **options: Any) -> Any:
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.xform(*arguments, **options))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return answer


CLIENTS: dict[str, Callable[[], Any]] = {
    "twisted": TwistedClients,
    "asyncio": AsyncioClients,
    "blocking": BlockingClients,
}


# A server.


class Conversation:
    """One connection, as the server has it."""

    def __init__(self, server: "FakeServer", connection: socket.socket) -> None:
        self.server = server
        self.socket = connection
        self._decoder = Decoder(10_000_000)
        self._strings: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        """Return the strings of the client, until it closes."""
        while True:
            while self._strings:
                self.server.received.append(string := self._strings.pop(0))
                yield string
            if not (data := self.socket.recv(65_536)):
                return
            self._strings += self._decoder.decode(data)

    def say(self, *strings: bytes) -> None:
        self.socket.sendall(b"".join(map(netstring, strings)))

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Talk = Callable[[Conversation], None]


class FakeServer:
    """Talks on each connection as it is told, in a thread; it can be stopped, and come back at the same port.

    Attributes:
        talk: what it does on new connections.
        received: every string of every client.
        connections: how many there have been.
    """

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self.talk = talk
        self._tls = tls
        self.received: list[bytes] = []
        self.connections = 0
        self._port = 0
        self._open: list[socket.socket] = []
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port))
        self._listener.listen(64)
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Be gone, and every connection with it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.crash()

    def crash(self) -> None:
        """Reset every connection."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RD)
            connection.close()
        self._open = []

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(DEADLINE_S)
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, BadFrame),
            contextlib.ExitStack() as at_end,
        ):  # the client has gone, or we are to be gone
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            at_end.callback(connection.close)
            self.talk(Conversation(self, connection))


def answers(answer: Callable[[bytes], bytes | None], hello: bytes = HELLO) -> Talk:
    """Talk as a server of sessions that answers each string alone, or not."""

    def talk(conversation: Conversation) -> None:
        for string in conversation:
            if b"!cancel" in string:
                continue  # it has been answered, or will not be
            said = hello if string == b"xformd/2" else answer(string)
            if said is not None:
                conversation.say(said)

    return talk


def upper(string: bytes) -> bytes:
    """Answer as the transform ``upper``."""
    head, _, poem = string.partition(b".")
    return head.split(b" ")[0] + b" ok." + poem.upper()


def number(string: bytes) -> bytes:
    """Return the id of a request."""
    return string.split(b" ")[0]


@contextlib.contextmanager
def fake_servers() -> Iterator[Callable[[Talk], FakeServer]]:
    """Return what starts servers in threads; they end with the block."""
    with contextlib.ExitStack() as stack:

        def start(talk: Talk) -> FakeServer:
            server = FakeServer(talk)
            stack.callback(server.stop)
            return server

        yield start
