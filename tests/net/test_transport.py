"""The prompt transport: what it sends at once, and what it leaves to Twisted."""

import socket
from collections.abc import Iterator

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port

from support.reactors import FakeReactor
from xformd.net.transport import EagerServer, make_eager


class Connected:
    """A transport, and the other end of its socket."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.socket.setblocking(False)
        self.reactor = FakeReactor()
        self.protocol = Protocol()
        self.transport = EagerServer(ours, self.protocol, ("", 0), None, 0, self.reactor)  # type: ignore[no-untyped-call, arg-type]
        self.protocol.makeConnection(self.transport)

    def arrived(self) -> bytes:
        """Give what the system has to offer at the other end."""
        try:
            return self.socket.recv(10_000_000)
        except BlockingIOError:
            return b""


@pytest.fixture
def connected() -> Iterator[Connected]:
    made = Connected()
    yield made
    made.transport._closeSocket(True)  # type: ignore[no-untyped-call]
    made.socket.close()


def test_what_the_system_takes_is_sent_at_once(connected: Connected) -> None:
    connected.transport.write(b"abc")
    assert connected.arrived() == b"abc"
    assert not connected.reactor.writers


def test_what_it_does_not_take_follows_in_order(connected: Connected) -> None:
    poem = bytes(range(256)) * 10_000
    connected.transport.write(poem)
    arrived = connected.arrived()
    connected.transport.write(b"the end")  # for which there is room, but not yet its turn
    assert connected.reactor.writers == {connected.transport}
    while connected.reactor.writers:
        connected.transport.doWrite()  # type: ignore[no-untyped-call]
        arrived += connected.arrived()
    assert arrived + connected.arrived() == poem + b"the end"


@pytest.mark.parametrize(("expected_bytes", "read_bytes"), [(0, 65_536), (65_536, 65_536), (65_537, 100_000)])
def test_a_string_that_is_longer_than_a_common_read_is_read_in_a_longer_one(
    connected: Connected, expected_bytes: int, read_bytes: int
) -> None:
    reads: list[int] = []
    connected.protocol.dataReceived = lambda data: reads.append(len(data))  # type: ignore[method-assign]
    connected.socket.send(b"x" * 100_000)
    connected.transport.hint_read_size(expected_bytes)
    connected.transport.doRead()
    assert reads == [read_bytes]


def test_nothing_is_sent_in_plain_once_a_connection_is_encrypted(connected: Connected) -> None:
    ssl = pytest.importorskip("twisted.internet.ssl", reason="pip install 'xformd[tls]'")
    connected.transport.startTLS(ssl.CertificateOptions())
    connected.transport.write(b"secret")
    assert connected.transport.send_now(b"secret") == 0
    assert b"secret" not in connected.arrived()


def test_an_answer_does_not_wait_until_the_client_has_acknowledged_the_last() -> None:
    made: list[Protocol] = []
    factory = Factory.forProtocol(lambda: made.append(Protocol()) or made[-1])  # type: ignore[arg-type, func-returns-value]
    port = Port(0, factory, interface="127.0.0.1", reactor=FakeReactor())  # type: ignore[no-untyped-call, arg-type]
    port.startListening()  # type: ignore[no-untyped-call]
    make_eager(port)
    with socket.create_connection(port.socket.getsockname()):
        port.doRead()  # type: ignore[no-untyped-call]
        (accepted,) = made
        assert isinstance(accepted.transport, EagerServer)
        assert accepted.transport.getTcpNoDelay()  # type: ignore[no-untyped-call]
        accepted.transport._closeSocket(True)  # type: ignore[no-untyped-call]
    port._closeSocket(True)  # type: ignore[no-untyped-call]
