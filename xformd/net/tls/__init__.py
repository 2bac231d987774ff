"""TLS for the ports of a server and for clients: which files they use, and whom a client's certificate names.

Importing this needs no OpenSSL; its modules need what the extra ``tls`` installs.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xformd.errors import ConfigError
from xformd.net.plain import file_fingerprint, is_loopback

if TYPE_CHECKING:
    import ssl

    from xformd.net.tls.client import Credentials
    from xformd.net.tls.server import Certificates

NO_NAMES: frozenset[str] = frozenset()


class TlsFailed(Exception):
    """There is no TLS connection, or none any more. The message says why and what to do."""


class ServerTls:
    """What gives TLS to the TCP ports of a server: all of them, or those that other machines can reach."""

    def __init__(self, certificates: "Certificates", covers_loopback: bool = False, asks_clients: bool = False) -> None:
        self.certificates, self.covers_loopback, self.asks_clients = certificates, covers_loopback, asks_clients

    def for_port(self, host: str) -> "Certificates | None":
        """Return the certificates for a port on the interface with this address, empty for all; None for plain TCP."""
        if is_loopback(host) and not self.covers_loopback:
            return None
        return self.certificates


def server_tls(settings: Any, clock: Any) -> ServerTls | None:
    """Return what the settings ``tls_certificate``, ``tls_key``, ``tls_client_ca`` and ``tls`` ask for.

    Raises:
        ConfigError: one is missing, a file is bad, or xformd is installed without TLS.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    is_for_all = settings.tls == "all"
    if certificate is None:
        for name, is_set in (("tls_key", key), ("tls_client_ca", client_ca), ("tls", is_for_all)):
            if is_set:
                raise ConfigError("TLS needs a certificate: set tls_certificate too", setting=name)
        return None
    if missing := what_is_missing():
        raise ConfigError(missing, setting="tls_certificate")
    from xformd.net.tls.server import Certificates, TlsOptions

    # Absolute: a daemon may change to another folder.
    paths: list[Any] = [
        None if path is None else str(path.absolute()) for path in (key or certificate, certificate, client_ca)
    ]
    try:
        files = TlsOptions(0, **dict(zip(("privateKey", "certKey", "clientCa"), paths, strict=True)))
        return ServerTls(Certificates(files, clock), is_for_all, client_ca is not None)
    except ConfigError as error:
        raise ConfigError(error.reason, setting="tls_certificate") from error


def what_is_missing() -> str:
    """Return what to install for TLS, or an empty string if nothing is missing."""
    needed = ("OpenSSL", "service_identity", "idna")
    if all(importlib.util.find_spec(name) for name in needed):
        return ""
    return "TLS needs more packages: pip install 'xformd[tls]'"


class ClientTls:
    """How a client uses TLS. Files are read again when they change; who shares this object shares what was read.

    Args:
        ca: a file with the certificates of those who may issue the server's; None for those that the system trusts.
        certificate: a file with this client's own certificate and its chain, for servers that ask for one.
        key: a file with its key; None if that is in the same file.
    """

    _credentials: "Credentials | None" = None
    _context: "tuple[object, ssl.SSLContext] | None" = None

    def __init__(
        self, ca: str | Path | None = None, certificate: str | Path | None = None, key: str | Path | None = None
    ) -> None:
        self.ca, self.certificate, self.key = ca, certificate, key

    def __eq__(self, other: object) -> bool:
        mine = self.ca, self.certificate, self.key
        return isinstance(other, ClientTls) and mine == (other.ca, other.certificate, other.key)

    def context(self) -> "ssl.SSLContext":
        """Return what the module ``ssl`` makes of the files, read again once they change; raise as ``credentials``."""
        self._check()
        paths = [each for each in (self.ca, self.certificate, self.key) if each is not None]
        seen = [*map(file_fingerprint, paths)]
        if self._context is not None and self._context[0] == seen:
            return self._context[1]
        try:
            self._context = seen, self._load()
        except ConfigError:
            if self._context is None:
                raise  # otherwise the files are being replaced: what was read before is good
        return self._context[1]

    def _load(self) -> "ssl.SSLContext":
        import ssl

        path = self.ca
        try:
            context = ssl.create_default_context(cafile=path)
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate authority alone may be trusted
            if self.certificate is not None:
                path = self.certificate
                context.load_cert_chain(path, self.key, password=str)  # nobody is there to type one
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                pair = f"the key in {self.key or path} is not that of the certificate in {path}"
                raise ConfigError(pair) from error
            raise ConfigError(f"{path} has no valid certificate, or no key, in PEM format") from error
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        return context

    def _check(self) -> None:
        if self.key and not self.certificate:
            raise ConfigError("a client's key needs its certificate: give --tls-client-certificate too")

    def credentials(self, clock: Any) -> "Credentials":
        """Read the files; raise ``ConfigError``, which names the file, if one is bad."""
        if self._credentials is None:
            if missing := what_is_missing():
                raise ConfigError(missing)
            self._check()
            from xformd.net.tls.client import ClientFiles, Credentials

            paths = (self.ca, self.certificate, self.key or self.certificate)
            ca, certificate, key = (None if path is None else str(Path(path).absolute()) for path in paths)
            self._credentials = Credentials(ClientFiles(ca, certificate, key), clock)
        return self._credentials


def client_names(transport: Any) -> frozenset[str]:
    """Return the subject alternative names of the client's verified certificate; none without one, or without TLS.

    These are DNS names, in lower case, URIs and IP addresses. They are known once the first data has arrived.
    """
    names: frozenset[str] = getattr(transport, "client_names", NO_NAMES)  # wrappers pass this on to what they wrap
    return names
