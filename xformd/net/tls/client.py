"""TLS on a client's connections: the server's name is verified, and what goes wrong is said in plain words.

Invariant: a connection is passed on only after its handshake, so that whoever asked for it learns why there is none.
"""

from typing import Any, NoReturn, cast

import attrs
import idna
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from service_identity import cryptography as identity
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import (
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, platformTrust
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.net.plain import read_address
from xformd.net.tls import TlsFailed
from xformd.net.tls.certificates import Authorities, Reloading, read_certificates, read_pair, reason_of
from xformd.net.tls.words import ENDED, UNKNOWN_SERVER, explain_alert, explain_distrust, explain_name


@attrs.frozen
class ClientFiles:
    """Whom a client trusts, by default as the system does, and its own certificate."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The files."""
        return self.certificate, self.key, self.ca

    def load(self) -> CertificateOptions:
        """Read the files; raise ``ConfigError``, which names the file, if one is bad."""
        trust: Any = platformTrust() if self.ca is None else Authorities(read_certificates(self.ca))
        if self.certificate is None or self.key is None:
            return CertificateOptions(trustRoot=trust)
        key, (certificate, *chain) = read_pair(self.key, self.certificate)
        return CertificateOptions(key, certificate, extraCertChain=chain, trustRoot=trust)


Credentials = Reloading[CertificateOptions]
"""What a client trusts and shows, for any number of servers."""


@implementer(IStreamClientEndpoint)
@attrs.frozen
class TlsEndpoint:
    """Connects over TLS. Its Deferred fires once the server's certificate is verified, or fails with ``TlsFailed``.

    The server has ``timeout_s`` for the handshake, after as much for the connection.
    """

    _tcp: IStreamClientEndpoint
    _host: str
    _credentials: Credentials
    _clock: IReactorTime
    _timeout_s: float

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - Twisted's name
        """See ``IStreamClientEndpoint``."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        handshakes = Factory.forProtocol(_Handshake)
        handshakes.noisy = False
        wrapper = _TlsClientFactory(self._credentials, self._host, handshakes, self._clock)
        tls: Any = await self._tcp.connect(wrapper)
        await tls.wrappedProtocol.done.addTimeout(self._timeout_s, self._clock, self._give_up)
        tls.wrappedProtocol = protocol = cast(IProtocol, factory.buildProtocol(tls.getPeer()))
        protocol.makeConnection(tls)
        return protocol

    def _give_up(self, *_: object) -> NoReturn:
        raise TlsFailed(f"it has not answered the TLS handshake within {self._timeout_s:g} s: does it speak TLS?")


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Stands for the protocol of a connection until its handshake is ``done``: cancelling that closes it."""

    transport: Any

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.transport.abortConnection())

    def handshakeCompleted(self) -> None:  # noqa: N802 - Twisted's name
        """Let the protocol take its place."""
        self.done.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail with the reason: there was no connection yet."""
        if not self.done.called:
            self.done.errback(reason)


class _TlsClientProtocol(BufferingTLSTransport):
    """A connection to a server over TLS, whose end is explained."""

    factory: "_TlsClientFactory"
    _reason: Any
    distrust = ""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on why it is lost: in plain words if TLS is the reason."""
        error = (self._reason or reason).value
        if self.distrust:
            self._reason = Failure(TlsFailed(self.distrust))
        elif isinstance(error, SSL.Error):
            self._reason = Failure(TlsFailed(self.factory.explain(error)))
        elif not self._handshakeDone and isinstance(error, ConnectionClosed):
            self._reason = Failure(TlsFailed(ENDED))
        super().connectionLost(reason)


@implementer(IOpenSSLClientConnectionCreator)
class _TlsClientFactory(TLSMemoryBIOFactory):
    """Puts TLS around the connections of another factory to the server with this name or address."""

    protocol = _TlsClientProtocol

    def __init__(self, credentials: Credentials, host: str, factory: Any, clock: IReactorTime) -> None:
        super().__init__(self, True, factory, clock)
        self._options = credentials.latest()
        self._host = host if host.isascii() else idna.encode(host).decode()
        self._is_address = read_address(host) is not None

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:  # noqa: N802, N803 - Twisted's names
        """See ``IOpenSSLClientConnectionCreator``."""
        connection = SSL.Connection(self._options.getContext())
        connection.set_app_data(tlsProtocol)
        if not self._is_address:  # RFC 6066, 3
            connection.set_tlsext_host_name(self._host.encode())
        connection.set_verify(SSL.VERIFY_PEER, _verify_server)
        return connection

    def distrust(self, certificate: X509) -> str:
        """Return why a certificate does not name the server; nothing if it does."""
        check = identity.verify_certificate_ip_address if self._is_address else identity.verify_certificate_hostname
        try:
            check(certificate.to_cryptography(), self._host)
        except (VerificationError, CertificateError, ValueError):
            return explain_name(self._host)
        return ""

    def explain(self, error: SSL.Error) -> str:
        """Return in plain words what OpenSSL says of a server's answer."""
        has_certificate = self._options.certificate is not None
        return explain_alert(reason_of(error), has_certificate=has_certificate)


def _verify_server(connection: SSL.Connection, certificate: X509, number: int, depth: int, is_valid: int) -> bool:
    protocol = connection.get_app_data()
    if not is_valid:
        protocol.distrust = explain_distrust(number, "server", UNKNOWN_SERVER)
    elif depth == 0:
        protocol.distrust = protocol.factory.distrust(certificate)
    return not protocol.distrust
