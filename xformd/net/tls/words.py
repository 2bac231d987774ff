"""What is wrong with a certificate, or with a handshake, in plain words: the same for every client, and for the server.

It needs ``cryptography``, and neither Twisted nor pyOpenSSL.
"""

import contextlib
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from xformd.errors import one_line
from xformd.net.plain import PEER_TIMEOUT_S, read_address
from xformd.net.tls import NO_NAMES

# Of X509_STORE_CTX_get_error(3).
_NOT_YET_VALID, _EXPIRED, _INVALID_PURPOSE, _WRONG_NAMES = 9, 10, 26, (62, 64)
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21)

UNKNOWN_SERVER = "if that is right, name a file with its certificate with --tls-ca"
ENDED = "it ended the connection in the TLS handshake: does it speak TLS?"
SLOW = f"it has not answered the TLS handshake within {PEER_TIMEOUT_S:g} s: does it speak TLS?"

_PLAIN_SERVER = "it speaks no TLS: leave out --tls, or tls: in its address"
_IN_PLAIN_WORDS = {
    "wrong version number": _PLAIN_SERVER,
    "packet length too long": _PLAIN_SERVER,
    "record layer failure": _PLAIN_SERVER,
    "alert protocol version": "it accepts no version of TLS from 1.2 on",
    "unsupported protocol": "it accepts no version of TLS from 1.2 on",
    "alert certificate required": "it demands a certificate of its clients: give one with --tls-client-certificate",
    "alert certificate expired": "it does not accept this client's certificate, which has expired: renew it",
    "alert unknown ca": "it does not trust whoever issued this client's certificate: give one that it trusts",
    "alert bad certificate": "it does not accept this client's certificate",
    "alert certificate": "it does not accept this client's certificate; its log says why",
    "alert unsupported certificate": "it does not accept this client's certificate; its log says why",
    "alert access denied": "it denies access to this client's certificate",
}
"""What a server's answer to a handshake means, by what OpenSSL says of it."""


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


def out_of_date(certificate: x509.Certificate) -> str:
    """Return that a certificate has expired, or is not valid yet, and what to do; nothing if it is valid today."""
    if (end := certificate.not_valid_after_utc) < (now := datetime.now(UTC)):
        return f"expired on {end:%Y-%m-%d %H:%M} UTC: renew it"
    start = certificate.not_valid_before_utc
    return f"is not valid before {start:%Y-%m-%d %H:%M} UTC: wait, or set the clock right" if start > now else ""


def explain_distrust(certificate: x509.Certificate, number: int, depth: int, whose: str, unknown_issuer: str) -> str:
    """Return in plain words why OpenSSL does not accept a certificate of ``whose`` peer, or one of its issuers.

    ``number`` is its code for the reason, and ``depth`` how many steps the issuer is above it. ``unknown_issuer`` says
    what to do about an issuer that is not known.
    """
    name = f"the {whose}'s certificate"
    if number in (_EXPIRED, _NOT_YET_VALID):
        why = out_of_date(certificate) or "was out of date just now"
    elif number in _UNKNOWN_ISSUER:
        issuer = one_line(certificate.issuer.rfc4514_string()) or "nobody"
        return f"{name} was issued by {issuer}, whom nobody here trusts: {unknown_issuer}"
    elif number == _INVALID_PURPOSE:
        why = f"is not meant for a {whose}: issue one whose extended key usage is {whose} authentication"
    else:
        why = f"is not accepted by OpenSSL (verification error {number}): issue another one"
    return f"{name} {why}" if depth == 0 else f"an issuer of {name} {why}"


def explain_name(certificate: x509.Certificate, host: str) -> str:
    """Return that a certificate does not name a server, and what to do."""
    names = ", ".join(sorted(names_in(certificate))[:5]) or "no name"
    advice = f"call it by a name that is in it, or put {host} into it"
    return f"the server's certificate is for {names}, not for {host}: {advice}"


def explain_alert(reason: str, own: x509.Certificate | None) -> str:
    """Return in plain words what OpenSSL says of a server's answer to a client, which may have a certificate."""
    if "alert" in reason and own is None and ("handshake failure" in reason or "bad certificate" in reason):
        reason = "alert certificate required"
    said = next((words for part, words in _IN_PLAIN_WORDS.items() if part in reason), f"TLS failed: {reason}")
    problem = out_of_date(own) if own is not None and "certificate" in said else ""
    return f"it does not accept this client's certificate, which {problem}" if problem else said


def explain(error: OSError, family: int, address: Any, host: str, own_path: str | Path | None) -> str:
    """Return why there is no TLS connection to a server, or none any more, from what the module ``ssl`` raises.

    It connects again to see the certificates of a server that is not trusted. ``own_path`` has the client's own one.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        certificates = _certificates_at(family, address, host)
        if certificates and error.verify_code in _WRONG_NAMES:
            return explain_name(certificates[0], host)
        if certificates:
            return _explain_chain(certificates, error.verify_code)
    if isinstance(error, ssl.SSLError) and error.reason and not isinstance(error, ssl.SSLEOFError):
        own = None if own_path is None else x509.load_pem_x509_certificates(Path(own_path).read_bytes())[0]
        return explain_alert(error.reason.lower().replace("_", " "), own)
    return SLOW if isinstance(error, TimeoutError) or "longer than" in str(error) else ENDED


def _explain_chain(certificates: list[x509.Certificate], number: int) -> str:
    depth = 0
    if number in _UNKNOWN_ISSUER:
        depth = len(certificates) - 1
    elif number in (_EXPIRED, _NOT_YET_VALID):
        depth = next((each for each, found in enumerate(certificates) if out_of_date(found)), len(certificates) - 1)
    return explain_distrust(certificates[depth], number, depth, "server", UNKNOWN_SERVER)


def _certificates_at(family: int, address: Any, host: str) -> list[x509.Certificate]:
    """Return a server's certificate and those that it sends along, unverified: only to say what is wrong with them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError, ValueError), socket.socket(family) as plain:
        plain.settimeout(PEER_TIMEOUT_S)
        plain.connect(address)
        with context.wrap_socket(plain, server_hostname=host) as connection:
            inner: Any = connection  # that of the socket is newer: Python 3.13
            chain = inner._sslobj.get_unverified_chain()
            return [x509.load_pem_x509_certificate(each.public_bytes().encode()) for each in chain]
    return []
