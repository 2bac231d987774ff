"""A network in memory: endpoints, servers of every kind, and connections that a test can watch and break."""

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError  # noqa: A004
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.wire.netstring import Decoder, encode

HELLO = b'xformd/2 {"server": "scripted 1", "max_request_bytes": 1000, "max_in_flight": 2}'

Answer = Callable[[bytes], bytes | None]


@implementer(IHalfCloseableDescriptor)
class Wire(StringTransport):
    """One side of a connection; what it sends arrives when the network is pumped."""

    def __init__(self, network: "Network", protocol: Any) -> None:
        super().__init__()
        self.network = network
        self.protocol = protocol
        self.peer: Wire
        self.is_gone = False
        self.sent = b""

    def write(self, data: bytes) -> None:
        if data and not self.is_gone:
            self.sent += data
            self.network.events.append((self.peer.receive, data))

    def loseConnection(self) -> None:
        self.network.events.append((self._close, None))

    def loseWriteConnection(self) -> None:
        self.network.events.append((self.peer.end, None))

    def abortConnection(self) -> None:
        self.network.events.append((self._abort, None))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Do what TLS asks of every transport."""

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

    def __init__(self, network: "Network", factory: Any) -> None:
        self.network = network
        self.factory = factory
        self.is_slow = False
        self.cancelled = 0
        self.host = ""  # its address, for those that have one
        self.wires: list[Wire] = []  # the server's side of each connection

    def say(self, data: bytes) -> None:
        """Send to the client that connected last."""
        self.wires[-1].write(data)
        self.network.pump()

    def lose_connections(self, reason: Exception | None = None) -> None:
        """Break every connection, as the client sees it."""
        for wire in self.wires:
            wire.peer.lose(reason or ConnectionLost())

    def vanish(self) -> None:
        """Answer nothing from now on, as a machine without power: clients are not told."""
        self.is_slow = True
        for wire in self.wires:
            wire.is_gone = True

    @property
    def sent(self) -> bytes:
        """All that clients have sent to it."""
        return b"".join(wire.peer.sent for wire in self.wires)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting: Deferred[IProtocol] = Deferred(self._cancel)
        if not self.is_slow:
            self.network.events.append((self._accept, (factory, connecting)))
        return connecting

    def _cancel(self, _: object) -> None:
        self.cancelled += 1

    def _accept(self, arguments: tuple[IProtocolFactory, Deferred[IProtocol]]) -> None:
        client_factory, connecting = arguments
        if connecting.called:
            return
        server: Protocol | None = self.factory.buildProtocol(None) if self.factory is not None else None
        if server is None:
            connecting.errback(ConnectionRefusedError(osError=111))
            return
        client: Any = client_factory.buildProtocol(None)  # type: ignore[arg-type]  # it has no address
        ours, theirs = Wire(self.network, server), Wire(self.network, client)
        theirs.peerAddr = self
        ours.peer, theirs.peer = theirs, ours
        self.wires.append(ours)
        server.makeConnection(ours)
        client.makeConnection(theirs)
        connecting.callback(client)


class Network:
    """What is on its way."""

    def __init__(self) -> None:
        self.events: deque[tuple[Any, Any]] = deque()

    def silent(self) -> Host:
        """Make a server that sends what the test says, and no more."""
        return self.host(Factory.forProtocol(Protocol))

    def scripted(self, answer: Answer) -> tuple[Host, list[bytes]]:
        """Make a server that answers each string; return it, and the list of the strings that it has received."""
        received: list[bytes] = []
        return self.host(Factory.forProtocol(lambda: Scripted(received, answer))), received

    def host(self, factory: Any = None) -> Host:
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


@implementer(IReactorPluggableNameResolver)
class NamedReactor:
    """A reactor whose names stand for hosts: connects to them, and has a clock that only the test moves.

    Attributes:
        names: the addresses of each name; None for a name server that is mute.
        hosts: what is at each address.
        lookups: how often it was asked for a name.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.nameResolver = self
        self.names: dict[str, list[str] | None] = {}
        self.hosts: dict[str, Host] = {}
        self.lookups = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clock, name)

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0) -> None:
        self.lookups += 1
        addresses = self.names.get(name, [])
        if addresses is not None:
            for address in addresses:
                receiver.addressResolved(IPv4Address("TCP", address, portNumber))
            receiver.resolutionComplete()

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float, bindAddress: object) -> None:
        connecting = self.hosts[host].connect(factory)
        connecting.addErrback(lambda failure: factory.clientConnectionFailed(None, failure))
        self.timeout = timeout


class Scripted(Protocol):
    """A server that says what the test tells it to, and knows what it was told."""

    def __init__(self, log: list[bytes], answer: Answer) -> None:
        self._decoder = Decoder(1_000_000)
        self._log = log
        self._answer = answer

    def dataReceived(self, data: bytes) -> None:
        for string in self._decoder.decode(data):
            self._log.append(string)
            answer = self._answer(string)
            if answer is not None:
                self.transport.write(encode(answer))  # type: ignore[union-attr]


def hello_then(answer: Answer) -> Answer:
    return lambda string: HELLO if string == b"xformd/2" else answer(string)


class Tutorial(Protocol):
    """A server of the tutorial: it closes on what holds no dot, and after each answer."""

    def __init__(self) -> None:
        self._decoder = Decoder(1_000_000)

    def dataReceived(self, data: bytes) -> None:
        for string in self._decoder.decode(data):
            name, dot, poem = string.partition(b".")
            if dot and name == b"cummingsify":
                self.transport.write(encode(poem.lower()))  # type: ignore[union-attr]
            self.transport.loseConnection()  # type: ignore[union-attr]


class Dying(Protocol):
    """A server that dies before it has looked at what it was sent."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]
