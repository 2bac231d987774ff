"""TLS on a server's ports: certificates that may be replaced while the server runs, ALPN, and why a handshake failed.

Invariant: a bad certificate never takes the place of a good one, and a client's mistake is at most one line a second
in the log.
"""

import os
import time
from pathlib import Path
from typing import Any

import attrs
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions, DiffieHellmanParameters
from twisted.logger import Logger
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath
from zope.interface import implementer

from xformd.errors import ConfigError, safe_str
from xformd.net import endpoints
from xformd.net.connections import RefusalLog, share_of
from xformd.net.factory import RefusingFactory
from xformd.net.turns import Turns

CHECK_S = 1.0
"""How often to look whether files have changed, while there are new connections."""

_IN_PLAIN_WORDS = {
    "no shared cipher": "the client offers no cipher that the server accepts",
    "unsupported protocol": "the client offers no version of TLS that the server accepts",
    "alert protocol version": "the client accepts no version of TLS that the server offers",
    "alert unknown ca": "the client does not trust who signed the certificate",
    "alert bad certificate": "the client does not accept the certificate",
    "alert certificate": "the client does not accept the certificate",
}
"""What failed handshakes mean, by what OpenSSL says of them."""


@attrs.frozen
class TlsOptions:
    """The options of an ``ssl:`` endpoint: the names, the order, and the defaults are Twisted's."""

    port: int = attrs.field(converter=int)
    privateKey: str = "server.pem"
    certKey: str = attrs.field(default=attrs.Factory(lambda options: options.privateKey, takes_self=True))
    sslmethod: str | None = None
    interface: str = ""
    backlog: str | None = None
    extraCertChain: str | None = None
    dhParameters: str | None = None

    def fingerprint(self) -> tuple[object, ...]:
        """Return what differs once a file has changed."""
        files = (self.privateKey, self.certKey, self.extraCertChain, self.dhParameters)
        return tuple(_fingerprint(path) for path in files if path is not None)

    def load(self, alpn: tuple[bytes, ...]) -> CertificateOptions:
        """Read the files; raise ``ConfigError``, which names the file, if one is bad."""
        key = _read(self.privateKey, "private key", lambda pem: load_pem_private_key(pem, None))
        certificate, *chain = _read(self.certKey, "certificate", load_pem_x509_certificates)
        if self.extraCertChain is not None:
            chain += _read(self.extraCertChain, "certificate", load_pem_x509_certificates)
        if certificate.public_key() != key.public_key():
            raise ConfigError(f"the key in {self.privateKey} is not that of the certificate in {self.certKey}")
        more: dict[str, Any] = {}
        if self.dhParameters is not None:
            more["dhParameters"] = DiffieHellmanParameters.fromFile(FilePath(self.dhParameters))
        if self.sslmethod is not None:
            more["method"] = getattr(SSL, self.sslmethod)
        loaded = _Options(key, certificate, extraCertChain=chain, acceptableProtocols=[*alpn] or None, **more)
        try:
            loaded.getContext()
        except SSL.Error as error:  # a key that is too short, say
            files = " or ".join(filter(None, (self.certKey, self.dhParameters)))
            raise ConfigError(f"OpenSSL does not accept {files}: {_reason(error)}") from error
        return loaded


def _fingerprint(path: str) -> object:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: str, what: str, parse: Any) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except TypeError as error:  # what it raises for want of a password
        raise ConfigError(f"{path}: the {what} is encrypted; nobody is there to type its password") from error
    except ValueError as error:
        raise ConfigError(f"{path} has no valid {what} in PEM format") from error


class _Context(SSL.Context):
    """A context that goes on without ALPN where a client offers only what the server does not speak.

    Twisted answers such an offer with an empty choice (``alpnSelect``, see its TODO), and OpenSSL ends the handshake.
    """

    def set_alpn_select_callback(self, callback: Any) -> None:
        """Set what chooses among the protocols that a client offers."""
        super().set_alpn_select_callback(lambda *offer: callback(*offer) or SSL.NO_OVERLAPPING_PROTOCOLS)


class _Options(CertificateOptions):
    _contextFactory = _Context  # noqa: N815 - Twisted's name


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """The certificate of one port and its key, read again when their files change.

    Raises:
        ConfigError: a file is bad. Later this is logged, and what was read before stays.
    """

    log = Logger()

    def __init__(self, options: TlsOptions, alpn: tuple[bytes, ...], clock: IReactorTime) -> None:
        self._options, self._alpn, self._clock = options, alpn, clock
        self._next_check_s = clock.seconds() + CHECK_S
        self._seen = options.fingerprint()
        self._current = options.load(alpn)

    def wrap(self, factory: Any) -> "TlsFactory":
        """Return a factory that puts TLS in front of another."""
        return TlsFactory(self, factory, self._clock, f"use {'https' if self._alpn else 'tls'}:")

    def serverConnectionForTLS(self, tlsProtocol: Any) -> Any:  # noqa: N802, N803 - Twisted's names
        """Start a TLS connection with the latest good certificate."""
        now_s = self._clock.seconds()
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + CHECK_S
            if self._options.fingerprint() != self._seen:
                self.reload()
        return self._current.serverConnectionForTLS(tlsProtocol)

    def reload(self) -> None:
        """Read the files again; keep what was read before if one is bad, as while only the key has been replaced."""
        self._seen = self._options.fingerprint()  # before reading: what changes meanwhile is a change
        try:
            self._current = self._options.load(self._alpn)
        except Exception as error:  # whatever is in the files now, clients must still be able to connect
            self.log.error("the TLS certificate stays as it was: {reason}", reason=safe_str(error))
        else:
            self.log.info("read the TLS certificate again: {path}", path=self._options.certKey)


class TlsProtocol(BufferingTLSTransport):
    """A connection over TLS that logs why its handshake failed."""

    factory: "TlsFactory"
    transport: Any
    _first, _waiting, _share = b"", b"", ""

    def dataReceived(self, data: bytes) -> None:
        """Decrypt and pass on what arrives. Handshakes, of 0.4 ms each, take turns: a peer may begin thousands."""
        if not self._first:
            self._first, self._port = data[:1], endpoints.show(self.transport.getHost())
            self._share = share_of(getattr(self.transport.getPeer(), "host", None))
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
        if self._first and not self._handshakeDone and not self.disconnecting:
            self.factory.handshake_failed(self._port, self._first, self._reason and self._reason.value)
        super().connectionLost(reason)


class TlsFactory(RefusingFactory, TLSMemoryBIOFactory):
    """Puts TLS in front of another factory; ``advice`` is for a client that speaks plain text."""

    protocol = TlsProtocol

    def __init__(self, certificates: Certificates, factory: Any, clock: Any, advice: str) -> None:
        TLSMemoryBIOFactory.__init__(self, certificates, False, factory, clock)
        self._failures = RefusalLog(clock)
        self.turns = Turns(clock)
        self._advice = advice

    def handshake_failed(self, port: str, first: bytes, error: Exception | None) -> None:
        """Log that a handshake failed, at most once a second; ``first`` is the byte with which the client began."""
        if first.isascii() and (first.isspace() or first.decode().isprintable()):  # a handshake begins with 22
            self._failures.refused("plain-text", f"a client spoke plain text to the TLS port {port}; {self._advice}")
        else:
            reason = _reason(error) if isinstance(error, SSL.Error) else "the client left in the middle of it"
            why = next((words for part, words in _IN_PLAIN_WORDS.items() if part in reason), reason)
            self._failures.refused("handshake", f"the TLS handshake on {port} failed: {why}")


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's own words, from its queue of library, function and reason."""
    queue = error.args[0] if error.args else ()
    return queue[-1][-1] if queue else safe_str(error)
