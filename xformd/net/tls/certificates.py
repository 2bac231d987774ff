"""Read certificates and keys, again when their files change, and say what is wrong with one.

Invariant: bad files never take the place of good ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from xformd.errors import ConfigError, safe_str
from xformd.net.plain import file_fingerprint

CHECK_S = 1.0  # how often to look whether files have changed, while there are new connections

Loaded = TypeVar("Loaded")


class Reloading(Generic[Loaded]):
    """What was read from files, and is read again when they change.

    ``files.load()`` reads ``files.paths``, of which some may be None and the first is named in the log. It raises
    ``ConfigError`` for a bad file; later that is logged, and what was read before stays.
    """

    log = Logger()

    def __init__(self, files: Any, clock: IReactorTime) -> None:
        self._files, self._clock = files, clock
        self._next_check_s = clock.seconds() + CHECK_S
        self._seen = self._fingerprints()
        self._current: Loaded = files.load()

    def _fingerprints(self) -> list[object]:
        return [*map(file_fingerprint, filter(None, self._files.paths))]

    def latest(self) -> Loaded:
        """Return the latest that was good."""
        now_s = self._clock.seconds()
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + CHECK_S
            if self._fingerprints() != self._seen:
                self.reload()
        return self._current

    def reload(self) -> str:
        """Read the files again; keep what was read before if one is bad, as while only the key has been replaced.

        Return why it stays as it was, and nothing if it does not.
        """
        self._seen = self._fingerprints()  # before reading: what changes meanwhile is a change
        try:
            self._current = self._files.load()
        except Exception as error:  # whatever is in the files now, there must still be connections
            self.log.error("the TLS certificate stays as it was: {reason}", reason=safe_str(error))
            return f"the TLS certificate stays as it was: {safe_str(error)}"
        self.log.info("read the TLS certificate again: {path}", path=next(filter(None, self._files.paths), ""))
        return ""


def read_certificates(path: str) -> list[x509.Certificate]:
    """Read the certificates of a file, which may hold a key too; raise ``ConfigError`` if it has none, or a bad one."""
    return _read(path, "certificate", x509.load_pem_x509_certificates)


def read_pair(key_path: str, certificate_path: str) -> tuple[Any, list[Any]]:
    """Read a key, and the certificate that it belongs to with its chain; raise ``ConfigError`` if they are bad."""
    key = _read(key_path, "private key", lambda pem: load_pem_private_key(pem, None))
    certificates = read_certificates(certificate_path)
    if certificates[0].public_key() != key.public_key():
        raise ConfigError(f"the key in {key_path} is not that of the certificate in {certificate_path}")
    return key, certificates


def _read(path: str, what: str, parse: Callable[[bytes], Loaded]) -> Loaded:
    try:
        return parse(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except TypeError as error:  # what it raises for want of a password
        raise ConfigError(f"{path}: the {what} is encrypted; nobody is there to type its password") from error
    except ValueError as error:
        raise ConfigError(f"{path} has no valid {what} in PEM format") from error


@implementer(IOpenSSLTrustRoot)
@attrs.frozen
class Authorities:
    """Those who may issue a peer's certificate; a client learns whose to show."""

    _certificates: list[x509.Certificate]

    def _addCACertsToContext(self, context: SSL.Context) -> None:  # noqa: N802 - Twisted's name
        store: Any = context.get_cert_store()
        store.set_flags(X509StoreFlags.PARTIAL_CHAIN)  # an intermediate authority alone may be trusted
        for certificate in self._certificates:
            store.add_cert(X509.from_cryptography(certificate))
            context.add_client_ca(certificate)


def reason_of(error: SSL.Error) -> str:
    """Return OpenSSL's own words, from its queue of library, function and reason."""
    queue = error.args[0] if error.args else ()
    return queue[-1][-1] if queue else safe_str(error)
