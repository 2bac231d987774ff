"""Both transports: what they send at once, and what follows when the system takes more."""

import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from support.reactors import FakeReactor
from xformd.net.transport import Channel, EagerServer, make_eager


class End:
    """The other end of a transport's socket."""

    def __init__(self) -> None:
        self.ours, self.socket = socket.socketpair()
        self.ours.setblocking(False)
        self.socket.setblocking(False)
        self.reactor = FakeReactor()

    def arrived(self) -> bytes:
        """Return what can be read at the other end now."""
        try:
            return self.socket.recv(10_000_000)
        except BlockingIOError:
            return b""

    def rest(self, transport: Any) -> bytes:
        """Return what arrives until the transport has no more to write."""
        arrived = b""
        while self.reactor.writers:
            assert self.reactor.writers == {transport}
            arrived += self.arrived()
            assert transport.doWrite() is None
        return arrived + self.arrived()


class Connected(End):
    """A server's transport, and the other end of its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol = Protocol()
        self.transport: Any = EagerServer(self.ours, self.protocol, ("", 0), None, 0, self.reactor)  # type: ignore[arg-type]
        self.protocol.makeConnection(self.transport)


@pytest.fixture
def connected() -> Iterator[Connected]:
    made = Connected()
    yield made
    made.transport._closeSocket(True)
    made.socket.close()


def test_a_write_is_sent_at_once(connected: Connected) -> None:
    connected.transport.write(b"abc")
    assert connected.arrived() == b"abc"
    assert not connected.reactor.writers


def test_the_rest_of_a_write_follows_in_order(connected: Connected) -> None:
    poem = bytes(range(256)) * 10_000
    connected.transport.write(poem)
    arrived = connected.arrived()
    connected.transport.write(b"the end")  # there is room for it, but it must wait its turn
    assert connected.reactor.writers == {connected.transport}
    assert arrived + connected.rest(connected.transport) == poem + b"the end"


@pytest.mark.parametrize(("expected_bytes", "read_bytes"), [(0, 65_536), (65_536, 65_536), (65_537, 100_000)])
def test_a_long_string_is_read_in_long_pieces(connected: Connected, expected_bytes: int, read_bytes: int) -> None:
    reads: list[int] = []
    connected.protocol.dataReceived = lambda data: reads.append(len(data))  # type: ignore[method-assign]
    connected.socket.send(b"x" * 100_000)
    connected.transport.hint_read_size(expected_bytes)
    connected.transport.doRead()
    assert reads == [read_bytes]


def test_an_encrypted_connection_sends_no_plain_text(connected: Connected) -> None:
    ssl = pytest.importorskip("twisted.internet.ssl", reason="pip install 'xformd[tls]'")
    connected.transport.startTLS(ssl.CertificateOptions())
    connected.transport.write(b"secret")
    assert connected.transport.send_now(b"secret") == 0
    assert b"secret" not in connected.arrived()


def test_accepted_connections_are_eager_and_have_no_delay() -> None:
    made: list[Any] = []

    class Noted(Protocol):
        def connectionMade(self) -> None:
            made.append(self.transport)

    reactor: Any = FakeReactor()
    port: Any = Port(0, Factory.forProtocol(Noted), interface="127.0.0.1", reactor=reactor)
    port.startListening()
    make_eager(port)
    with socket.create_connection(port.socket.getsockname()):
        port.doRead()
        (transport,) = made
        assert isinstance(transport, EagerServer)
        assert transport.getTcpNoDelay()
        made[0]._closeSocket(True)
    port._closeSocket(True)


class WorkersEnd(End):
    """A channel, and the worker's end of it."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[bytes] = []
        self.lose = Mock()
        self.channel = Channel(self.ours, self.received.append, self.lose, self.reactor)


@pytest.fixture
def end() -> Iterator[WorkersEnd]:
    made = WorkersEnd()
    yield made
    made.channel.close()
    made.socket.close()


def test_a_channel_passes_on_all_that_arrives(end: WorkersEnd) -> None:
    end.socket.sendall(b"abc")
    for _ in range(2):  # the second time, there is nothing
        assert end.channel.doRead() is None
        assert end.received == [b"abc"]
    end.channel.read_rest()
    end.socket.sendall(b"def")
    end.socket.close()
    for _ in range(2):
        end.channel.read_rest()
    assert end.received == [b"abc", b"def"]
    end.lose.assert_not_called()


def test_a_channel_sends_at_once_and_the_rest_in_order(end: WorkersEnd) -> None:
    end.channel.send(b"abc")
    assert end.arrived() == b"abc"
    assert not end.reactor.writers
    poem = bytes(range(256)) * 50_000
    end.channel.send(poem)
    end.channel.send(b"the end")
    assert end.channel.doWrite() is None  # the system takes nothing: no error
    assert end.reactor.writers == {end.channel}
    assert end.rest(end.channel) == poem + b"the end"


def test_a_closed_peer_is_reported_once(end: WorkersEnd) -> None:
    end.socket.close()
    end.channel.send(b"abc")
    assert end.channel.doWrite() is None  # what was received before is read first
    assert not end.reactor.writers
    assert end.channel.doRead() is CONNECTION_DONE
    for _ in range(2):
        end.channel.connectionLost(Failure(ConnectionDone()))
    end.lose.assert_called_once_with()
    assert not end.reactor.readers
    assert end.channel.fileno() == -1


def test_a_reset_channel_is_lost(end: WorkersEnd) -> None:
    end.channel.send(b"unread")
    end.channel.send(b"x" * 10_000_000)
    end.socket.close()  # with something unread: a reset
    assert end.channel.doWrite() is None
    assert end.channel.doRead() is CONNECTION_LOST


def test_a_closed_channel_reports_and_sends_nothing(end: WorkersEnd) -> None:
    end.channel.close()
    end.channel.close()
    end.channel.send(b"abc")
    end.channel.connectionLost(Failure(ConnectionDone()))
    end.lose.assert_not_called()
    assert end.arrived() == b""
    assert not end.reactor.readers
    assert end.channel.logPrefix() == "worker"
