"""A network in memory: endpoints, connections that a test can watch and break, and no reactor."""

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError  # noqa: A004
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocol,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IHalfCloseableDescriptor)
class Wire(StringTransport):
    """One side of a connection; what it sends arrives when the network is pumped."""

    def __init__(self, network: "Network", protocol: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network = network
        self.protocol = protocol
        self.peer: Wire
        self.is_gone = False
        self.sent = b""

    def write(self, data: bytes) -> None:
        if not self.is_gone:
            self.sent += data
            self.network.events.append((self.peer.receive, data))

    def loseConnection(self) -> None:  # type: ignore[override]
        self.network.events.append((self._close, None))

    def loseWriteConnection(self) -> None:
        self.network.events.append((self.peer.end, None))

    def abortConnection(self) -> None:
        self.network.events.append((self._abort, None))

    def receive(self, data: bytes) -> None:
        if not self.is_gone:
            self.protocol.dataReceived(data)

    def end(self, _: None = None) -> None:
        """Receive the end of the peer's side."""
        if self.is_gone:
            return
        if IHalfCloseableProtocol.providedBy(self.protocol):
            self.protocol.readConnectionLost()
        else:
            self.lose(ConnectionDone())
            self.peer.end()

    def lose(self, reason: Exception) -> None:
        """Be gone."""
        if not self.is_gone:
            self.is_gone = True
            self.protocol.connectionLost(Failure(reason))

    def _close(self, _: None) -> None:
        self.lose(ConnectionDone())
        self.peer.lose(ConnectionDone())

    def _abort(self, _: None) -> None:
        self.lose(ConnectionAborted())
        self.peer.lose(ConnectionLost())

    def readConnectionLost(self, reason: object) -> None: ...
    def writeConnectionLost(self, reason: object) -> None: ...


@implementer(IStreamClientEndpoint)
class Host:
    """A place to connect to. It refuses connections while it has no factory, and lets them hang while it is slow."""

    def __init__(self, network: "Network", factory: Factory | None) -> None:
        self.network = network
        self.factory = factory
        self.is_slow = False
        self.wires: list[Wire] = []  # the server's side of each connection

    def connect(self, factory: Factory) -> Deferred[IProtocol]:
        connecting: Deferred[IProtocol] = Deferred()
        if not self.is_slow:
            self.network.events.append((self._accept, (factory, connecting)))
        return connecting

    def _accept(self, arguments: tuple[Factory, Deferred[IProtocol]]) -> None:
        client_factory, connecting = arguments
        if connecting.called:
            return
        server: Protocol | None = self.factory.buildProtocol(None) if self.factory is not None else None
        if server is None:
            connecting.errback(ConnectionRefusedError(osError=111))
            return
        client = client_factory.buildProtocol(None)
        ours, theirs = Wire(self.network, server), Wire(self.network, client)
        ours.peer, theirs.peer = theirs, ours
        self.wires.append(ours)
        server.makeConnection(ours)
        assert client is not None
        client.makeConnection(theirs)
        connecting.callback(client)


class Network:
    """What is on its way."""

    def __init__(self) -> None:
        self.events: deque[tuple[Any, Any]] = deque()

    def host(self, factory: Factory | None = None) -> Host:
        """Make a place to connect to."""
        return Host(self, factory)

    def pump(self) -> None:
        """Deliver everything, and what comes of it."""
        for _ in range(10_000):
            if not self.events:
                return
            act, argument = self.events.popleft()
            act(argument)
        raise AssertionError("the network never comes to rest")
