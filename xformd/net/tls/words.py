"""What is wrong with a certificate, or with a handshake, in plain words: the same for every client, and for the server.

It needs nothing that is installed with the extra ``tls``.
"""

import ssl

from xformd.net.plain import PEER_TIMEOUT_S

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
    "alert certificate required": "it demands a certificate of its clients: give one with --tls-client-certificate",
    "alert certificate expired": "it does not accept this client's certificate, which has expired: renew it",
    "alert unknown ca": "it does not trust whoever issued this client's certificate: give one that it trusts",
    "alert bad certificate": "it does not accept this client's certificate; its log says why",
}
"""What a server's answer to a handshake means, by what OpenSSL says of it."""


def explain_distrust(number: int, whose: str, unknown_issuer: str) -> str:
    """Return in plain words why OpenSSL does not accept the certificate of ``whose`` peer, or that of an issuer of it.

    ``number`` is its code for the reason; ``unknown_issuer`` says what to do about an issuer that is not known.
    """
    why = f"is not accepted by OpenSSL (verification error {number}): issue another one"
    if number == _EXPIRED:
        why = "has expired, or that of its issuer: renew it"
    elif number == _NOT_YET_VALID:
        why = "is not valid yet: wait, or set the clock right"
    elif number in _UNKNOWN_ISSUER:
        why = f"was issued by an authority that is not trusted here: {unknown_issuer}"
    elif number == _INVALID_PURPOSE:
        why = f"is not meant for a {whose}: issue one whose extended key usage is {whose} authentication"
    return f"the {whose}'s certificate {why}"


def explain_name(host: str) -> str:
    """Return that the certificate of a server does not name it, and what to do."""
    return f"the server's certificate is not for {host}: call it by a name that is in it, or put {host} into it"


def explain_alert(reason: str, *, has_certificate: bool) -> str:
    """Return in plain words what OpenSSL says of a server's answer to a client, which may have a certificate."""
    if "alert" in reason and not has_certificate and ("handshake failure" in reason or "bad certificate" in reason):
        reason = "alert certificate required"
    return next((words for part, words in _IN_PLAIN_WORDS.items() if part in reason), f"TLS failed: {reason}")


def explain(error: OSError, host: str, *, has_certificate: bool) -> str:
    """Return why there is no TLS connection to a server, or none any more, from what the module ``ssl`` raises."""
    if isinstance(error, ssl.SSLCertVerificationError):
        is_other = error.verify_code in _WRONG_NAMES
        return explain_name(host) if is_other else explain_distrust(error.verify_code, "server", UNKNOWN_SERVER)
    if isinstance(error, ssl.SSLError) and error.reason and not isinstance(error, ssl.SSLEOFError):
        return explain_alert(error.reason.lower().replace("_", " "), has_certificate=has_certificate)
    return SLOW if isinstance(error, TimeoutError) or "longer than" in str(error) else ENDED
