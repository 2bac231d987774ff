"""The PROXY protocol: a proxy in front of the server begins each connection with the address of its client.

Twisted's own ``haproxy:`` endpoints reject a header that arrives in small pieces, and fail on an address that is none.
Invariant: until the header has arrived, a connection has no peer, and the server sees no byte of it.
"""

import ipaddress
import re
import struct
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.protocols.policies import ProtocolWrapper
from zope.interface import implementer

from xformd.net.connections import RefusalLog
from xformd.net.factory import RefusingFactory

MAX_V1_BYTES = 107
MAX_V2_BYTES = 4_096  # addresses take up to 232; the rest is what a proxy may add, such as its client's certificate

V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

_V1 = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP[46] (?P<host>\S+) \S+ (?P<port>[0-9]{1,5}) [0-9]{1,5})\r\n")
_V2_HEAD = struct.Struct("!12sBBH")
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_TCP = {0x11: 4, 0x21: 16}  # how long an address is, by the byte for its family and protocol

Address = IPv4Address | IPv6Address


def parse(data: bytes) -> tuple[Address | None, bytes] | None:
    """Parse the PROXY header, of version 1 or 2, that data begins with; raise ``ValueError`` if it is malformed.

    Return the client's address, None if the header has none, and what follows the header; None if it is incomplete.
    """
    if V2_SIGNATURE.startswith(data[: len(V2_SIGNATURE)]):
        return _parse_v2(data)
    if match := _V1.match(data, 0, MAX_V1_BYTES):
        source = None if match["host"] is None else _address(match["host"].decode(), int(match["port"]))
        return source, data[match.end() :]
    if not b"PROXY ".startswith(data[:6]) or b"\n" in data or len(data) >= MAX_V1_BYTES:
        raise ValueError("no PROXY header")
    return None


def _parse_v2(data: bytes) -> tuple[Address | None, bytes] | None:
    start = _V2_HEAD.size
    if len(data) < start:
        return None
    _, command, family, length = _V2_HEAD.unpack_from(data)
    end = start + length
    if command not in (_V2_LOCAL, _V2_PROXY) or end > MAX_V2_BYTES:
        raise ValueError("unknown version or command, or too long")
    if len(data) < end:
        return None
    if command == _V2_LOCAL or family not in _V2_TCP:  # the proxy checks the server, or its client has no IP address
        return None, data[end:]
    size = _V2_TCP[family]
    if length < 2 * size + 4:
        raise ValueError("no room for the addresses")
    (port,) = struct.unpack_from("!H", data, start + 2 * size)
    return _address(data[start : start + size], port), data[end:]


def _address(host: str | bytes, port: int) -> Address:
    """Return an address in its usual form, so that a client has one however the proxy writes it."""
    ip = ipaddress.ip_address(host)
    return (IPv4Address if ip.version == 4 else IPv6Address)("TCP", str(ip), port)


@implementer(IHalfCloseableProtocol)
class ProxyHeaderProtocol(ProtocolWrapper):
    """A connection that begins with a PROXY header.

    The wrapped protocol is connected before the header arrives, so that waiting for it counts as being idle.
    """

    factory: "ProxyHeaderFactory"
    transport: Any
    wrappedProtocol: Any  # noqa: N815 - Twisted's name

    def __init__(self, factory: "ProxyHeaderFactory", wrapped: Any) -> None:
        super().__init__(factory, wrapped)
        self._header: bytes | None = b""  # the part that has arrived; None once all of it has
        self._source: Address | None = None
        # Of the class: TLS says of itself whatever its transport, which is this, can do.
        self._can_half_close = IHalfCloseableProtocol.implementedBy(type(wrapped))

    def getPeer(self) -> Any:
        """Return the client's address if the proxy has named it, else the proxy's."""
        return self._source or self.transport.getPeer()

    def dataReceived(self, data: bytes) -> None:
        """Take the header off, and pass on the rest."""
        if self._header is None:
            self.wrappedProtocol.dataReceived(data)
            return
        self._header += data
        try:
            parsed = parse(self._header)
        except ValueError:
            self.factory.reject(self)
            return
        if parsed is not None:
            self._header = None
            self._source, rest = parsed
            peer = None if self._source is None else self._source.host
            connection: Any = self.wrappedProtocol
            while isinstance(connection, ProtocolWrapper):  # TLS
                connection = connection.wrappedProtocol
            if self.factory.identify(connection, peer) and rest:
                self.wrappedProtocol.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Pass on the end of the client's side: Twisted's wrapper takes it for the end of both."""
        if self._can_half_close:
            self.wrappedProtocol.readConnectionLost()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Pass on that the system has all output."""
        if self._can_half_close:
            self.wrappedProtocol.writeConnectionLost()


class ProxyHeaderFactory(RefusingFactory):
    """Wraps the factory of a port to which only a proxy connects, or TLS around that.

    ``identify`` counts a connection under its client's address, and returns whether it goes on.
    """

    protocol = ProxyHeaderProtocol

    def __init__(self, wrapped: Any, identify: Callable[[Any, str | None], bool], clock: IReactorTime) -> None:
        super().__init__(wrapped)  # type: ignore[no-untyped-call]
        self.identify = identify
        self._failures = RefusalLog(clock)

    def buildProtocol(self, addr: Any) -> Any:  # noqa: ARG002 - Twisted's signature
        """Wrap the protocol of a connection without a peer: the address is the proxy's, and must not count as one."""
        return super().buildProtocol(None)

    def reject(self, connection: ProxyHeaderProtocol) -> None:
        """Abort a connection that does not begin with a PROXY header."""
        sender = getattr(connection.getPeer(), "host", "a local client")
        advice = "a haproxy: endpoint is only for a proxy that sends one"
        self._failures.refused("proxy-header", f"{sender} sent no valid PROXY header; {advice}")
        connection.abortConnection()
