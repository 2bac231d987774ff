"""TLS on a server's ports: clients' certificates, ALPN, and why a handshake failed.

Invariant: a client's mistake is at most one line a second in the log.
"""

import functools
import time
from datetime import UTC, datetime
from typing import Any

import attrs
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import AcceptableCiphers, CertificateOptions
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from xformd.errors import ConfigError
from xformd.net import endpoints
from xformd.net.connections import RefusalLog, share_of
from xformd.net.factory import RefusingFactory
from xformd.net.plain import read_address
from xformd.net.tls import NO_NAMES
from xformd.net.tls.certificates import Authorities, Reloading, read_certificates, read_pair, reason_of
from xformd.net.tls.words import explain_distrust
from xformd.net.turns import Turns

_CIPHERS = AcceptableCiphers.fromOpenSSLCipherString("ECDHE+AESGCM:ECDHE+CHACHA20")
"""Of TLS 1.2: forward secrecy and authenticated encryption alone. Those of TLS 1.3 are all like that."""

_HANDSHAKE = 22  # with this begins a record that may cost the server a signature, for which it takes turns

_TLS_ONLY = bytes((21, 3, 3, 0, 2, 2, 70))
"""A fatal alert about the version of TLS: clients of netstrings know what that means."""

_HTTPS_ONLY = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"this port speaks TLS: use https:\n"
)


def names_in(certificate: x509.Certificate) -> frozenset[str]:
    """Return whom a certificate names: DNS names in lower case, URIs and IP addresses.

    None can be taken for one of another kind, which its issuer may be free to write: a DNS name with a colon, a URI
    without one, and either that is an IP address, are left out.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):  # an odd one, although it is signed
        return NO_NAMES
    found = {name.lower() for name in names.get_values_for_type(x509.DNSName) if ":" not in name}
    found |= {uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if ":" in uri}
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return frozenset({each for each in found if read_address(each) is None}.union(addresses))


@attrs.frozen
class TlsOptions:
    """The options of an ``ssl:`` endpoint: the names and the defaults are Twisted's.

    ``clientCa`` is ours: whoever is to sign the certificates of clients. A client may do without one.
    """

    port: int = attrs.field(converter=int)
    privateKey: str = "server.pem"
    certKey: str = attrs.field(default=attrs.Factory(lambda options: options.privateKey, takes_self=True))
    interface: str = ""
    backlog: str | None = None
    clientCa: str | None = None

    @property
    def paths(self) -> tuple[str | None, ...]:
        """The files."""
        return self.certKey, self.privateKey, self.clientCa

    def load(self) -> CertificateOptions:
        """Read the files; raise ``ConfigError``, which names the file, if one is bad."""
        key, (certificate, *chain) = read_pair(self.privateKey, self.certKey)
        more: dict[str, Any] = {"acceptableCiphers": _CIPHERS}
        if self.clientCa is not None:
            more["trustRoot"] = Authorities(read_certificates(self.clientCa))
        loaded = CertificateOptions(key, certificate, extraCertChain=chain, **more)
        try:
            loaded.getContext().set_alpn_select_callback(_choose_protocol)
        except SSL.Error as error:  # a key that is too short, say
            raise ConfigError(f"OpenSSL does not accept {self.certKey}: {reason_of(error)}") from error
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not start <= datetime.now(UTC) <= end:
            message = "clients will reject the certificate in {path}: it is valid from {start} to {end}"
            Certificates.log.warn(message, path=self.certKey, start=start, end=end)
        return loaded


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> Any:
    """Choose among the protocols that a client offers; ports that speak different ones share a context.

    Twisted's own answers an offer of others with an empty choice (``alpnSelect``, see its TODO), and OpenSSL then ends
    the handshake.
    """
    spoken = connection.get_app_data().factory.alpn
    return next((each for each in spoken if each in offered), SSL.NO_OVERLAPPING_PROTOCOLS)


@implementer(IOpenSSLServerConnectionCreator)
class Certificates(Reloading[CertificateOptions]):
    """The certificate of one or several ports, and its key."""

    def wrap(self, factory: Any, alpn: tuple[bytes, ...]) -> "TlsFactory":
        """Return a factory that puts TLS in front of another, whose protocols have these names in ALPN."""
        return TlsFactory(self, factory, self._clock, alpn)

    def serverConnectionForTLS(self, tlsProtocol: Any) -> Any:  # noqa: N802, N803 - Twisted's names
        """Start a TLS connection with the latest good certificate."""
        options = self.latest()
        connection = SSL.Connection(options.getContext())
        connection.set_app_data(tlsProtocol)
        if options.verify:  # asked for, but not demanded as Twisted would
            connection.set_verify(SSL.VERIFY_PEER, _verify_client)
        return connection


def _verify_client(connection: SSL.Connection, _certificate: X509, number: int, _depth: int, is_valid: int) -> bool:
    if not is_valid:
        advice = "let an authority of tls_client_ca issue one"
        connection.get_app_data().distrust = explain_distrust(number, "client", advice)
    return bool(is_valid)


class TlsProtocol(BufferingTLSTransport):
    """A connection over TLS that logs why its handshake failed."""

    factory: "TlsFactory"
    transport: Any
    _first, _waiting, _share = b"", b"", ""
    distrust = ""  # why the client's certificate is not accepted

    @functools.cached_property
    def _client_names(self) -> frozenset[str]:
        certificate = self._tlsConnection.get_peer_certificate(as_cryptography=True)
        return NO_NAMES if certificate is None else names_in(certificate)

    @property
    def client_names(self) -> frozenset[str]:
        """See the function. What the handshake has left is verified."""
        return self._client_names if self._handshakeDone else NO_NAMES

    def dataReceived(self, data: bytes) -> None:
        """Decrypt and pass on what arrives. Handshakes, of 0.4 ms each, take turns: a peer may begin thousands."""
        if not self._first:
            self._first, self._port = data[:1], endpoints.show(self.transport.getHost())
            self._share = share_of(getattr(self.transport.getPeer(), "host", None))
            if _is_text(self._first):
                self.transport.write(_HTTPS_ONLY if self.factory.alpn else _TLS_ONLY)
                self.transport.loseConnection()
        if _is_text(self._first):
            return
        turns, data, self._waiting = self.factory.turns, self._waiting + data, b""
        if not self._handshakeDone and self._share in turns.over:
            self._waiting = data
            turns.wait(self._share, self, lambda: self.dataReceived(b""))
            return
        began_s = time.perf_counter()
        super().dataReceived(data)  # type: ignore[no-untyped-call]
        turns.used(self._share, time.perf_counter() - began_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Log a failed handshake, unless the server aborted it, or the client sent nothing: that was a mere check."""
        self.factory.turns.forget(self._share, self)
        if self._waiting and self._waiting[0] != _HANDSHAKE:  # an alert, say, which costs nothing and tells why
            super().dataReceived(self._waiting)  # type: ignore[no-untyped-call]
        if self._first and not self._handshakeDone and not self.disconnecting:
            error = self._reason and self._reason.value
            self.factory.handshake_failed(self._port, self._first, error, self.distrust)
        super().connectionLost(reason)


class TlsFactory(RefusingFactory, TLSMemoryBIOFactory):
    """Puts TLS in front of another factory, whose protocols have these names in ALPN."""

    protocol = TlsProtocol

    def __init__(self, certificates: Certificates, factory: Any, clock: Any, alpn: tuple[bytes, ...]) -> None:
        TLSMemoryBIOFactory.__init__(self, certificates, False, factory, clock)
        self._failures = RefusalLog(clock)
        self.turns = Turns(clock)
        self.alpn = alpn

    def handshake_failed(self, port: str, first: bytes, error: Exception | None, distrust: str) -> None:
        """Log that a handshake failed, at most once a second; ``first`` is the byte with which the client began."""
        if _is_text(first):
            advice = "use https:" if self.alpn else "use tls:"
            self._failures.refused("plain-text", f"a client spoke plain text to the TLS port {port}; {advice}")
        else:
            reason = reason_of(error) if isinstance(error, SSL.Error) else "the client left in the middle of it"
            self._failures.refused("handshake", f"the TLS handshake on {port} failed: {distrust or reason}")


def _is_text(first: bytes) -> bool:
    return first.isascii() and (first.isspace() or first.decode().isprintable())  # a handshake begins with 22
